"""How fast the path to the coordinator is, from the times at which bytes were acknowledged.

Pure: whoever sends the bytes takes the times. Owns the estimate and how the owner's limit enters it.
"""

import statistics
from collections.abc import Sequence

from fedpipe_profiles.device import Link, Source
from fedpipe_profiles.values import MIN_RATE

Sample = tuple[int, float]
"""Bytes sent, and seconds from the first byte handed over to the last acknowledgement."""

BITS_PER_BYTE = 8
_LATENCY_SHARE = 0.5
_LIMIT_REACHED = 0.9


class LinkError(ValueError):
    """Nothing to estimate a link from, or times that no clock can have measured."""


def link_from_samples(
    samples: Sequence[Sample],
    small_rtts: Sequence[float],
    *,
    downlink: Sequence[Sample] = (),
    uplink_limit_bps: float | None = None,
    downlink_limit_bps: float | None = None,
) -> Link:
    """Estimate a link from acknowledged transfers, in any order.

    A rate is the median of the transfers' rates, each weighing as many bytes as it moved: neither the burst that a
    token bucket lets through at first, nor one stall, moves it, as long as they carried less than half of the bytes.
    One round trip is taken off every transfer's time, since the last acknowledgement travels back when all bytes are
    through; transfers that mostly wait for it are left out where longer ones exist.

    Where the owner's limit binds, the limiter itself was measured: such a rate is marked "limit", and never exceeds it.

    Args:
        samples: Transfers to the coordinator.
        small_rtts: Seconds from a small message to its acknowledgement, one or more.
        downlink: Transfers from the coordinator. With none, the downlink is taken to be as fast as the uplink was
            measured, which most lines reach, and marked "theoretical".
        uplink_limit_bps: The owner's limit, bits per second.
        downlink_limit_bps: The owner's limit, bits per second.

    Raises:
        LinkError: if there is no transfer or no round trip, or one with no bytes or no time.
    """
    if not samples or not small_rtts:
        raise LinkError(
            f"{len(samples)} transfers and {len(small_rtts)} round trips were timed, at least 1 of each is needed"
        )
    if min(small_rtts) < 0:
        raise LinkError(f"a round trip of {min(small_rtts)} s was timed: use a monotonic clock")
    latency_s = statistics.median(small_rtts)
    up_bps = _rate(samples, latency_s)
    down_bps = _rate(downlink, latency_s) if downlink else up_bps
    uplink_bps, uplink_source = _limited(up_bps, uplink_limit_bps, "measured")
    downlink_bps, downlink_source = _limited(down_bps, downlink_limit_bps, "measured" if downlink else "theoretical")
    return Link(
        uplink_bps=uplink_bps,
        downlink_bps=downlink_bps,
        latency_s=latency_s,
        measured_bytes=sum(size for size, _ in (*samples, *downlink)),
        uplink_source=uplink_source,
        downlink_source=downlink_source,
    )


def _rate(samples: Sequence[Sample], latency_s: float) -> float:
    """Bits per second: the byte-weighted lower median over transfers that did not mostly wait, from `MIN_RATE`."""
    for size, seconds in samples:
        if size <= 0 or seconds <= 0:
            raise LinkError(f"a transfer of {size} bytes in {seconds} s was timed: both must be more than 0")
    steady = [(size, seconds - latency_s) for size, seconds in samples if latency_s <= _LATENCY_SHARE * seconds]
    rates = sorted((size * BITS_PER_BYTE / seconds, size) for size, seconds in steady or samples)
    half = sum(size for _, size in rates) / 2
    moved = 0
    for rate, size in rates:
        moved += size
        if moved >= half:
            return max(rate, MIN_RATE)
    raise AssertionError("the weights of a non-empty list reach half of their sum")


def _limited(measured_bps: float, limit_bps: float | None, source: Source) -> tuple[float, Source]:
    if limit_bps is None or measured_bps < _LIMIT_REACHED * limit_bps:
        return measured_bps, source
    return min(measured_bps, limit_bps), "limit"
