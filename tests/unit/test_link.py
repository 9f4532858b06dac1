"""The link's estimate: what moves it, what does not, and how the owner's limit enters it."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_agent.link import LinkError, Sample, link_from_samples

MB = 1_000_000
TRANSFERS = st.lists(st.tuples(st.integers(1, 10**9), st.floats(0.001, 1000.0)), min_size=1, max_size=20)
RTTS = st.lists(st.floats(0.0, 0.5), min_size=1, max_size=10)


def test_one_transfer_with_its_round_trip_taken_off() -> None:
    link = link_from_samples([(10 * MB, 4.1)], [0.1, 0.05, 5.0])
    assert link.uplink_bps == pytest.approx(20e6)
    assert link.latency_s == 0.1
    assert (link.uplink_source, link.downlink_source) == ("measured", "theoretical")
    assert link.downlink_bps == link.uplink_bps
    assert link.measured_bytes == 10 * MB


def test_a_token_buckets_first_burst_and_one_stall_do_not_count() -> None:
    burst, stall = (1 * MB, 0.01), (1 * MB, 60.0)
    steady: list[Sample] = [(1 * MB, 0.4), (1 * MB, 0.41), (1 * MB, 0.39)]
    assert link_from_samples([burst, *steady, stall], [0.0]).uplink_bps == pytest.approx(20e6, rel=0.03)


def test_transfers_that_mostly_wait_are_left_out_where_there_are_longer_ones() -> None:
    waits: list[Sample] = [(1000, 0.11)] * 5
    assert link_from_samples([*waits, (MB, 1.1)], [0.1]).uplink_bps == pytest.approx(8e6)
    assert link_from_samples(waits, [0.1]).uplink_bps == pytest.approx(8000 / 0.11)


def test_downlink_has_its_own_transfers() -> None:
    link = link_from_samples([(MB, 1.0)], [0.0], downlink=[(5 * MB, 1.0)])
    assert (link.uplink_bps, link.downlink_bps) == (8e6, 40e6)
    assert (link.downlink_source, link.measured_bytes) == ("measured", 6 * MB)


@pytest.mark.parametrize(
    ("limit_mbit", "expected_mbit", "source"),
    [(4, 4.0, "limit"), (8, 8.0, "limit"), (8.5, 8.0, "limit"), (20, 8.0, "measured")],
)
def test_a_limit_that_binds_is_said_to(limit_mbit: float, expected_mbit: float, source: str) -> None:
    link = link_from_samples([(MB, 1.0)], [0.0], uplink_limit_bps=limit_mbit * 1e6, downlink_limit_bps=limit_mbit * 1e6)
    assert (link.uplink_bps, link.uplink_source) == (expected_mbit * 1e6, source)
    assert link.downlink_bps == expected_mbit * 1e6
    assert link.downlink_source == ("limit" if source == "limit" else "theoretical")


@pytest.mark.parametrize(
    ("samples", "rtts", "message"),
    [
        ([], [0.1], "0 transfers and 1 round trips"),
        ([(1, 1.0)], [], "1 transfers and 0 round trips"),
        ([(1, 1.0)], [-0.1], "-0.1 s was timed"),
        ([(0, 1.0)], [0.1], "0 bytes in 1.0 s"),
        ([(1, 0.0)], [0.1], "1 bytes in 0.0 s"),
    ],
)
def test_times_that_no_clock_measures_are_refused(samples: list[Sample], rtts: list[float], message: str) -> None:
    with pytest.raises(LinkError, match=message):
        link_from_samples(samples, rtts)


@given(TRANSFERS, RTTS, st.randoms(use_true_random=False))
def test_order_does_not_matter(samples: list[Sample], rtts: list[float], random: Random) -> None:
    shuffled = list(samples)
    random.shuffle(shuffled)
    assert link_from_samples(shuffled, rtts[::-1]) == link_from_samples(samples, rtts)


@given(TRANSFERS, RTTS)
def test_the_rate_lies_among_those_of_the_transfers(samples: list[Sample], rtts: list[float]) -> None:
    rate = link_from_samples(samples, rtts).uplink_bps
    assert min(8 * size / seconds for size, seconds in samples) <= rate * (1 + 1e-9)
    # one round trip is never more than half of the time that it is taken off
    assert rate <= max(1.0, *(16 * size / seconds for size, seconds in samples)) * (1 + 1e-9)


@given(TRANSFERS, RTTS, st.floats(1.0, 1e12))
def test_a_limit_is_never_exceeded(samples: list[Sample], rtts: list[float], limit: float) -> None:
    link = link_from_samples(samples, rtts, uplink_limit_bps=limit, downlink_limit_bps=limit)
    assert max(link.uplink_bps, link.downlink_bps) <= limit
