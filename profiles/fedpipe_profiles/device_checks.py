"""What is wrong with a profile whose single figures may all be right: contradictions, and figures that no machine has.

Owns these checks only. The bounds of single figures stand with their types; whoever reads a profile asks here before it
plans with it.
"""

from collections import Counter
from collections.abc import Iterator

from fedpipe_profiles.device import MIB, DeviceProfile

LEAST_MEMORY_BYTES = 64 * MIB
"""Less than a process holds that has only begun: a device that reports no memory."""
LEAST_FLOPS, MOST_FLOPS = 1e6, 1e18
"""Operations per second: of a microcontroller, and a thousand times those of the fastest GPU of today."""
LEAST_BANDWIDTH, MOST_BANDWIDTH = 1e5, 1e16
LEAST_VALUES, MOST_VALUES = 1e4, 1e16
"""Of weights per second, made plain or taken through the optimizer's step: each needs some operations and bytes."""
LEAST_BPS, MOST_BPS = 1e3, 1e13
"""Below, the smallest message takes longer than a session is kept; above is more than a backbone carries."""
MOST_LATENCY_S = 3600.0
MOST_MEMORY_BYTES = 1 << 50
_UNIFIED_TOLERANCE = 0.25
"""A driver may keep a part of a shared memory for itself; two figures that differ by more are of two memories."""


def profile_problems(profile: DeviceProfile) -> tuple[str, ...]:
    """One line for each contradiction, with both values and what to do; none for a profile that can be planned with."""
    return (
        *_memory_problems(profile),
        *_rate_problems(profile),
        *_small_rate_problems(profile),
        *_link_problems(profile),
    )


def limit_problems(profile: DeviceProfile) -> tuple[str, ...]:
    """One line for each limit beyond what the machine has.

    Harmless where the machine itself is planned for, since no more than it has is ever used; but of a profile that
    somebody hands over, a sign of figures that are not this machine's.
    """
    lent, gpu = profile.limits, profile.accelerator
    name, total = ("host", profile.host.total_bytes) if gpu is None else ("accelerator", gpu.total_bytes)
    found = []
    if lent.memory_bytes is not None and lent.memory_bytes > total:
        found.append(
            f"limits.memory_bytes is {lent.memory_bytes} and {name}.total_bytes is {total}: no more can be lent than "
            "there is"
        )
    if lent.threads is not None and lent.threads > profile.host.threads:
        found.append(
            f"limits.threads is {lent.threads} and host.threads is {profile.host.threads}: no more can be lent than "
            "there are"
        )
    if lent.uplink_bps is not None and not LEAST_BPS <= lent.uplink_bps <= MOST_BPS:
        found.append(_absurd("limits.uplink_bps", lent.uplink_bps, LEAST_BPS, MOST_BPS, "bits per second"))
    return tuple(found)


def _memory_problems(profile: DeviceProfile) -> Iterator[str]:
    host, gpu = profile.host, profile.accelerator
    figures = [("host", host.total_bytes, host.free_bytes)]
    if gpu is not None:
        figures.append(("accelerator", gpu.total_bytes, gpu.free_bytes))
    for name, total, free in figures:
        if total < LEAST_MEMORY_BYTES:
            yield f"{name}.total_bytes is {total}, less than any such device has: give bytes, not MiB or GiB"
        if total > MOST_MEMORY_BYTES:
            yield f"{name}.total_bytes is {total}, more than any such device has ({MOST_MEMORY_BYTES}): give bytes"
        if free > total:
            yield f"{name}.free_bytes is {free} and {name}.total_bytes is {total}: no more can be free than there is"
    if gpu is not None and gpu.unified_memory:
        high, low = max(gpu.total_bytes, host.total_bytes), min(gpu.total_bytes, host.total_bytes)
        if high - low > _UNIFIED_TOLERANCE * high:
            yield (
                f"accelerator.unified_memory is true, with {gpu.total_bytes} bytes of the accelerator and "
                f"{host.total_bytes} of the host: one memory has one size, or unified_memory is false"
            )


def _rate_problems(profile: DeviceProfile) -> Iterator[str]:
    for bits, count in Counter(profile.supported_bits).items():
        if count > 1:
            yield f"supported_bits has {bits} {count} times: name each width once"
    for dtype, count in Counter(rate.dtype for rate in profile.matmul).items():
        if count > 1:
            yield f"matmul has {count} rates of {dtype}: give one"
    if profile.rate("float32") is None:
        given = ", ".join(rate.dtype for rate in profile.matmul)
        yield f"matmul has {given} and no float32, which counts for every dtype that was not measured: add its rate"
    for rate in profile.matmul:
        if not LEAST_FLOPS <= rate.flops_per_s <= MOST_FLOPS:
            yield _absurd(f"matmul {rate.dtype}: flops_per_s", rate.flops_per_s, LEAST_FLOPS, MOST_FLOPS)
    if not LEAST_BANDWIDTH <= profile.bandwidth.bytes_per_s <= MOST_BANDWIDTH:
        yield _absurd("bandwidth.bytes_per_s", profile.bandwidth.bytes_per_s, LEAST_BANDWIDTH, MOST_BANDWIDTH)


def _small_rate_problems(profile: DeviceProfile) -> Iterator[str]:
    for bits, count in Counter(rate.bits for rate in profile.dequantization).items():
        if count > 1:
            yield f"dequantization has {count} rates of {bits} bits: give one"
    for rate in profile.dequantization:
        if not LEAST_VALUES <= rate.values_per_s <= MOST_VALUES:
            key = f"dequantization {rate.bits} bits: values_per_s"
            yield _absurd(key, rate.values_per_s, LEAST_VALUES, MOST_VALUES, "values per second")
    step = profile.optimizer
    if step is not None and not LEAST_VALUES <= step.parameters_per_s <= MOST_VALUES:
        yield _absurd(
            "optimizer.parameters_per_s", step.parameters_per_s, LEAST_VALUES, MOST_VALUES, "parameters per second"
        )


def _link_problems(profile: DeviceProfile) -> Iterator[str]:
    link = profile.link
    if link is None:
        return
    for key, value in (("link.uplink_bps", link.uplink_bps), ("link.downlink_bps", link.downlink_bps)):
        if not LEAST_BPS <= value <= MOST_BPS:
            yield _absurd(key, value, LEAST_BPS, MOST_BPS, "bits per second")
    if link.latency_s > MOST_LATENCY_S:
        yield _absurd("link.latency_s", link.latency_s, 0, MOST_LATENCY_S, "seconds")


def _absurd(key: str, value: float, least: float, most: float, unit: str = "operations or bytes per second") -> str:
    return f"{key} is {value:g}, and devices have {least:g} to {most:g}: give {unit}, measured"
