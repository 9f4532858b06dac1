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
_UNIFIED_TOLERANCE = 0.25
"""A driver may keep a part of a shared memory for itself; two figures that differ by more are of two memories."""


def profile_problems(profile: DeviceProfile) -> tuple[str, ...]:
    """One line for each contradiction, with both values and what to do; none for a profile that can be planned with."""
    return (*_memory_problems(profile), *_rate_problems(profile))


def _memory_problems(profile: DeviceProfile) -> Iterator[str]:
    host, gpu = profile.host, profile.accelerator
    figures = [("host", host.total_bytes, host.free_bytes)]
    if gpu is not None:
        figures.append(("accelerator", gpu.total_bytes, gpu.free_bytes))
    for name, total, free in figures:
        if total < LEAST_MEMORY_BYTES:
            yield f"{name}.total_bytes is {total}, less than any such device has: give bytes, not MiB or GiB"
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


def _absurd(key: str, value: float, least: float, most: float) -> str:
    return f"{key} is {value:g}, and devices have {least:g} to {most:g}: give operations or bytes per second, measured"
