"""The rates of a device, as the time model divides counted work by them.

Owns the step from a profile's figures to seconds of counted work. How real steps differ from these is `timing.py`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedpipe_profiles.costs.step import DeviceKind, StepSetting, compute_bytes, compute_dtype, device_kind
from fedpipe_profiles.costs.work import Work
from fedpipe_profiles.device import Bits, DeviceProfile, Source

USUAL_SLOWDOWN = 1.3
"""How much longer real work takes than counted work at measured rates, until steps were measured."""
PEAK_UTILISATION = 0.4
"""Share of a published peak that training reaches: 35 to 50 % is usual on GPUs (PaLM, arXiv 2204.02311, table 3, has
21 to 46 % for whole models). A published bandwidth is reached by 80 %."""
_BANDWIDTH_UTILISATION = 0.8

_OPTIMIZER_BYTES = 32
"""Fused AdamW with clipping: reads value, gradient (twice) and two moments, writes value and moments, in fp32."""


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """The rates that the counted work is divided by.

    `values_per_s` are those of dequantization, by bits, and `parameters_per_s` is the optimizer's; where they were not
    measured, the bandwidth stands in for them.
    """

    kind: DeviceKind
    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    values_per_s: Mapping[int, float] = field(default_factory=dict)
    parameters_per_s: float | None = None

    def flops(self, bits: Bits) -> float:
        """Operations per second at the compute dtype of `bits`; float32's where that dtype was not measured."""
        fallback = self.flops_per_s.get("float32", min(self.flops_per_s.values()))
        return self.flops_per_s.get(compute_dtype(self.kind, bits), fallback)


def device_rates(profile: DeviceProfile) -> DeviceRates:
    """The rates of a profile; of theoretical ones the share that training reaches.

    That share is raised by the usual slowdown, which the model puts on any rate until steps were measured.
    """
    optimizer = profile.optimizer
    return DeviceRates(
        device_kind(profile),
        {rate.dtype: rate.flops_per_s * _reached(rate.source, PEAK_UTILISATION) for rate in reversed(profile.matmul)},
        profile.bandwidth.bytes_per_s * _reached(profile.bandwidth.source, _BANDWIDTH_UTILISATION),
        {rate.bits: rate.values_per_s for rate in reversed(profile.dequantization)},
        None if optimizer is None else optimizer.parameters_per_s,
    )


def _reached(source: Source, share: float) -> float:
    return min(1.0, USUAL_SLOWDOWN * share) if source == "theoretical" else 1.0


def counted_s(work: Work, setting: StepSetting, rates: DeviceRates) -> float:
    """Seconds of counted work at the device's rates, without the kernels."""
    seconds = work.operations / rates.flops(setting.bits) + work.moved_bytes / rates.bytes_per_s
    if work.dequantized:
        # read compressed, written plain
        bytes_each = compute_bytes(setting.kind, setting.bits) + setting.bits / 8
        seconds += work.dequantized / rates.values_per_s.get(setting.bits, rates.bytes_per_s / bytes_each)
    return seconds + work.optimized / (rates.parameters_per_s or rates.bytes_per_s / _OPTIMIZER_BYTES)
