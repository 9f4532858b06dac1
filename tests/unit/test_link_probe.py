"""The link probe on a simulated line: what it sends, when, and what it makes of the times."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from fedpipe_agent.link_probe import (
    BURST_CHUNK_BYTES,
    BURST_CHUNKS,
    BURST_COUNT,
    MAX_BURST_CHUNKS,
    SMALL_COUNT,
    LinkProbe,
)
from fedpipe_profiles.device import Link


class Line:
    """A line of a fixed rate and latency: acknowledges each publication when its bytes are through."""

    def __init__(self, bps: float, latency_s: float) -> None:
        self.bps, self.latency_s = bps, latency_s
        self.now = self.free_at = 0.0
        self.due: list[tuple[float, int]] = []
        self.sent: list[tuple[float, int]] = []
        self.up = True

    def publish(self, size: int) -> int | None:
        if not self.up:
            return None
        self.free_at = max(self.now, self.free_at) + size * 8 / self.bps
        self.sent.append((self.now, size))
        self.due.append((self.free_at + self.latency_s, len(self.sent)))
        return len(self.sent)

    def run(self, probe: LinkProbe, until: Callable[[], bool], *, step_s: float = 0.001) -> None:
        for _ in range(200_000):
            if until():
                return
            probe.tick(self.now)
            for at, handle in [each for each in self.due if each[0] <= self.now]:
                self.due.remove((at, handle))
                probe.delivered(handle, at)
            self.now += step_s
        raise AssertionError("the probe does not end")


def _measured(line: Line, limit_bps: float | None = None) -> Link:
    probe = LinkProbe(line.publish, limit_bps)
    line.run(probe, lambda: probe.link is not None)
    assert probe.link is not None
    return probe.link


@pytest.mark.parametrize(("bps", "latency_s"), [(1e6, 0.05), (20e6, 0.02), (20e6, 0.2), (100e6, 0.02), (900e6, 0.001)])
def test_the_lines_rate_and_latency_are_found(bps: float, latency_s: float) -> None:
    link = _measured(Line(bps, latency_s))
    assert link.uplink_bps == pytest.approx(bps, rel=0.2)
    assert link.latency_s == pytest.approx(latency_s, rel=0.2)
    assert link.uplink_source == "measured"


def test_only_what_is_announced_is_sent_and_nothing_afterwards() -> None:
    line = Line(20e6, 0.01)
    probe = LinkProbe(line.publish, None)
    line.run(probe, lambda: probe.link is not None)
    assert sum(size for _, size in line.sent) == SMALL_COUNT + BURST_COUNT * BURST_CHUNKS * BURST_CHUNK_BYTES
    probe.tick(line.now + 100)
    assert len(line.sent) == SMALL_COUNT + BURST_COUNT * BURST_CHUNKS


def test_a_line_of_any_latency_is_measured_with_few_bytes() -> None:
    line = Line(20e6, 5.0)
    probe = LinkProbe(line.publish, None)
    line.run(probe, lambda: probe.link is not None, step_s=0.01)
    assert sum(size for _, size in line.sent) <= SMALL_COUNT + BURST_COUNT * MAX_BURST_CHUNKS * BURST_CHUNK_BYTES


def test_the_owners_limit_is_kept_while_measuring() -> None:
    line = Line(100e6, 0.001)
    limit = 4e6
    _measured(line, limit)
    bits: dict[float, int] = {}
    for at, size in line.sent:
        if size > 1:
            bits[at] = bits.get(at, 0) + 8 * size
    assert len(bits) == BURST_COUNT
    assert all(later - at >= bits[at] / limit for at, later in pairwise(sorted(bits)))
    # nobody else on the line waits for more than half a second of what is lent
    assert max(bits.values()) <= max(0.5 * limit, 8 * BURST_CHUNK_BYTES)


def test_a_lost_connection_begins_the_open_part_anew() -> None:
    line = Line(20e6, 0.01)
    probe = LinkProbe(line.publish, None)
    line.run(probe, lambda: any(size > 1 for _, size in line.sent))
    line.due.clear()
    probe.lost()
    line.now += 50.0
    line.free_at = line.now
    line.run(probe, lambda: probe.link is not None)
    assert probe.link is not None
    assert probe.link.uplink_bps == pytest.approx(20e6, rel=0.2)


def test_a_burst_of_which_a_part_was_not_taken_measures_nothing() -> None:
    line = Line(20e6, 0.01)
    taken = iter([True] * (SMALL_COUNT + 1) + [False] * 3 + [True] * 100)
    probe = LinkProbe(lambda size: line.publish(size) if next(taken) else None, None)
    line.run(probe, lambda: probe.link is not None)
    assert probe.link is not None
    assert probe.link.uplink_bps == pytest.approx(20e6, rel=0.25)


def test_nothing_is_measured_while_the_line_is_down() -> None:
    line = Line(20e6, 0.01)
    line.up = False
    probe = LinkProbe(line.publish, None)
    for at in range(100):
        probe.tick(float(at))
    assert probe.link is None
    line.now = line.free_at = 100.0
    line.up = True
    line.run(probe, lambda: probe.link is not None)
    assert probe.link is not None
    assert probe.link.latency_s == pytest.approx(0.01, rel=0.2)


def test_acknowledgements_of_others_are_passed_over() -> None:
    line = Line(20e6, 0.01)
    probe = LinkProbe(line.publish, None)
    probe.tick(0.0)
    for _ in range(100):
        probe.delivered(4711, 0.0)
    assert probe.link is None
    assert len(line.sent) == 1
