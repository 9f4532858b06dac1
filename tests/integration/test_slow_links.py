"""Blobs over a real line that is slow, long, lossy or cut: Mosquitto and the coordinator's pump on its far side.

An agent's pump sends from the near side. Times are compared with what the line itself allows, never with a wall clock.
"""

import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mosquitto_support import mosquitto_or_skip
from slow_line import Line, Quality, line

from benchmarks.transfer import Figures, Process, make_blob
from fedpipe_coordinator.broker.managed import find_mosquitto, write_config

pytestmark = [pytest.mark.slow, pytest.mark.alone]
SLOW = Quality(bps=20e6, delay_s=0.001)
LONG = Quality(delay_s=0.1)
LOSSY = Quality(bps=20e6, delay_s=0.001, lost=0.02)
ALL = Quality(bps=20e6, delay_s=0.1, lost=0.02)
PORT = 18883
WINDOW = 4


@dataclass
class Transfer:
    """Both sides, connected; nothing is asked for yet."""

    line: Line
    sender: Process
    receiver: Process
    sent: Path
    came: Path

    @property
    def whole(self) -> bool:
        """Whether the receiver has the sender's bytes under the sender's name."""
        copy = self.came / self.sent.name
        return copy.exists() and copy.read_bytes() == self.sent.read_bytes()

    def finish(self) -> tuple[Figures, Figures]:
        """Wait for the blob and end both sides: the figures of the sender and of the receiver."""
        outcome = self.receiver.hear("arrived", "failed")
        assert "failed" not in outcome, outcome
        return self.end()

    def end(self) -> tuple[Figures, Figures]:
        """End both sides: the figures of the sender and of the receiver."""
        for side in (self.sender, self.receiver):
            side.tell("stop")
        return self.sender.hear("published"), self.receiver.hear("published")


@contextmanager
def broker(line: Line, folder: Path) -> Iterator[None]:
    """A Mosquitto on the far side, with the managed broker's settings."""
    extra = (f"listener {PORT} {line.far_host}",)
    config = write_config(folder, "127.0.0.1", PORT - 1, extra)
    command = [*line.inside(line.far), str(find_mosquitto()), "-c", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def transfer(folder: Path, quality: Quality, size: int, *sender_more: str, **more: Any) -> Iterator[Transfer]:
    """A blob ready to cross; `more` are both sides' options, `sender_more` the sender's arguments."""
    mosquitto_or_skip()
    with ExitStack() as stack:
        between = stack.enter_context(line(quality))
        stack.enter_context(broker(between, folder / "broker"))
        sent, came = folder / "sent", folder / "came"
        sent.mkdir()
        sha256 = make_blob(folder / "blob", size, seed=size)
        path = (folder / "blob").rename(sent / sha256)
        common = ["--host", between.far_host, "--port", str(PORT), "--sha256", sha256, "--size", str(size)]
        common += [part for name, value in more.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        sides = (
            Process(
                "benchmarks.transfer_sides",
                *("sender", "--folder", str(sent), *common, *sender_more),
                prefix=between.inside(between.near),
            ),
            Process(
                "benchmarks.transfer_sides",
                *("receiver", "--folder", str(came), *common),
                prefix=between.inside(between.far),
            ),
        )
        for side in sides:
            stack.enter_context(side)
            side.hear("ready")
        yield Transfer(between, *sides, path, came)


@pytest.mark.parametrize(
    ("quality", "mib", "chunk_kib"),
    [(SLOW, 6, 256), (LONG, 16, 256), (LOSSY, 4, 256), (ALL, 1, 64)],
    ids=["20 Mbit/s", "200 ms", "2 % loss", "all three"],
)
def test_a_blob_crosses_and_no_chunk_is_sent_twice(tmp_path: Path, quality: Quality, mib: int, chunk_kib: int) -> None:
    with transfer(tmp_path, quality, mib << 20, chunk_kib=chunk_kib) as crossing:
        crossing.receiver.tell("go")
        sender, receiver = crossing.finish()
        assert crossing.whole
        assert sender["published"] == receiver["arrivals"] == (mib << 10) // chunk_kib
        assert (sender["resent"], sender["cuts"], receiver["cuts"]) == (0, 0, 0)


def test_a_message_is_not_kept_waiting_by_a_blob(tmp_path: Path) -> None:
    with transfer(tmp_path, SLOW, 8 << 20, "--beat-s", "0.1") as crossing:
        time.sleep(2.0)  # the delays of an idle line
        crossing.receiver.tell("go")
        _, receiver = crossing.finish()
        idle = receiver["delays"][: receiver["delays_before"]]
        loaded = receiver["delays"][receiver["delays_before"] :]
        assert len(idle) > 5
        assert len(loaded) > 15
        # The window is on the line before it: 1 MiB takes 0.42 s at this speed.
        assert max(loaded) < 1.0
        assert statistics.median(idle) < 0.1 * statistics.median(loaded)  # the line was full all the time


def test_the_lent_uplink_is_kept_within_a_tenth_together_with_messages(tmp_path: Path) -> None:
    limit_bps = 8e6
    uplink = ("--uplink-bps", str(limit_bps), "--beat-s", "0.05")
    with transfer(tmp_path, Quality(delay_s=0.001), 16 << 20, *uplink, chunk_kib=64, tell_every=10) as crossing:
        crossing.receiver.tell("go")
        crossing.receiver.hear("arrivals")
        stretches = []
        for _ in range(4):
            begin, begin_bytes = time.monotonic(), crossing.line.sent_bytes(crossing.line.near)
            time.sleep(3.0)
            end, end_bytes = time.monotonic(), crossing.line.sent_bytes(crossing.line.near)
            stretches.append(8 * (end_bytes - begin_bytes) / (end - begin) / limit_bps)
        crossing.finish()
        assert crossing.whole
        assert all(0.9 <= share <= 1.1 for share in stretches), stretches


def test_a_slow_transfer_outlives_the_silence_that_ends_others(tmp_path: Path) -> None:
    uplink = ("--uplink-bps", "1e6")  # a chunk in half a second
    with transfer(tmp_path, SLOW, 768 << 10, *uplink, chunk_kib=64, silence_s=1.5, idle_s=0.4) as crossing:
        crossing.receiver.tell("go")
        sender, receiver = crossing.finish()
        assert crossing.whole
        assert receiver["seconds"] > 2 * 1.5
        assert sender["published"] == 12


def test_a_sender_that_falls_silent_is_given_up_with_the_reason(tmp_path: Path) -> None:
    with transfer(tmp_path, SLOW, 8 << 20, silence_s=2, idle_s=0.5, tell_every=8) as crossing:
        crossing.receiver.tell("go")
        crossing.receiver.hear("arrivals")
        crossing.sender.send_signal(signal.SIGSTOP)
        assert crossing.receiver.hear("failed")["failed"].endswith("chunks missing and nothing came for 2 s")
        assert not crossing.whole
        assert list(crossing.came.glob("*.part"))  # what came is there for the next time


@pytest.mark.parametrize(("cut_s", "keepalive_s"), [(1.0, 15), (9.0, 2)], ids=["TCP survives", "TCP is given up"])
def test_a_cut_in_mid_transfer_repeats_no_more_than_a_window(tmp_path: Path, cut_s: float, keepalive_s: int) -> None:
    with transfer(tmp_path, SLOW, 10 << 20, tell_every=10, keepalive_s=keepalive_s, idle_s=2) as crossing:
        crossing.receiver.tell("go")
        crossing.receiver.hear("arrivals")
        with crossing.line.cut():
            time.sleep(cut_s)
        sender, receiver = crossing.finish()
        assert crossing.whole
        assert sender["cuts"] == (cut_s > 2 * keepalive_s)
        # What the pump published, and what the session sent again without being asked.
        assert sender["published"] == 40
        assert sender["resent"] <= WINDOW * sender["cuts"]
        assert receiver["arrivals"] <= 40 + sender["resent"]
