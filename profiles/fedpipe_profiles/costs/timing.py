"""The time model: seconds of a step, of an evaluated example, and of a transfer.

Operations and bytes are counted, divided by the device's measured rates, and corrected by two coefficients per device
and bit width: a factor (how far the real step is from the measured rates) and a constant per step.

Counting follows Kaplan et al. (arXiv 2001.08361): two operations per parameter and token forward, two more backward for
the input's gradient, two more for the weight's own gradient where it is trained; checkpointing adds one forward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean

from fedpipe_profiles.costs.fit import LinePrior, Point, fit_line
from fedpipe_profiles.costs.memory import base_bytes, measured_size
from fedpipe_profiles.costs.step import (
    AdapterSize,
    DeviceKind,
    StepConfig,
    StepSetting,
    Task,
    adapter_size,
    compute_bytes,
    compute_dtype,
    device_kind,
)
from fedpipe_profiles.device import Bits, DeviceProfile
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import StepMeasurement

DEFAULT_LOAD_BPS = 200e6
"""Bytes per second at which a base is read and placed, until a load was measured."""

_OPTIMIZER_BYTES = 32
_RELATIVE_SD = 0.03
_HALVING = 2**0.5


@dataclass(frozen=True, slots=True)
class TimingCoefficients:
    """How real steps of one bit width differ from the counted ones.

    `slowdown` multiplies counted seconds and `overhead_s` is added once per step; `evaluation_slowdown` multiplies the
    counted seconds of an evaluated example; `load_s` is the time to load the base, None where it was never measured.
    """

    slowdown: float = 1.7
    overhead_s: float = 0.0
    evaluation_slowdown: float = 1.7
    load_s: float | None = None


DEFAULT_TIMING = TimingCoefficients()


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """The rates that the counted work is divided by."""

    kind: DeviceKind
    flops_per_s: Mapping[str, float]
    bytes_per_s: float

    def flops(self, bits: Bits) -> float:
        """Operations per second at the compute dtype of `bits`; float32's where that dtype was not measured."""
        fallback = self.flops_per_s.get("float32", min(self.flops_per_s.values()))
        return self.flops_per_s.get(compute_dtype(self.kind, bits), fallback)


def device_rates(profile: DeviceProfile) -> DeviceRates:
    """The rates of a profile."""
    return DeviceRates(
        device_kind(profile),
        {rate.dtype: rate.flops_per_s for rate in reversed(profile.matmul)},
        profile.bandwidth.bytes_per_s,
    )


@dataclass(frozen=True, slots=True)
class TimingModel:
    """The fitted coefficients of one device.

    A bit width never measured takes the geometric mean of those measured: the counted seconds already say how it
    differs.
    """

    fitted: Mapping[Bits, TimingCoefficients] = field(default_factory=dict)

    def coefficients(self, bits: Bits) -> TimingCoefficients:
        """The coefficients of one bit width."""
        if bits in self.fitted:
            return self.fitted[bits]
        if not self.fitted:
            return DEFAULT_TIMING
        known = tuple(self.fitted.values())
        loads = [c.load_s for c in known if c.load_s is not None]
        return TimingCoefficients(
            geometric_mean(c.slowdown for c in known),
            sum(c.overhead_s for c in known) / len(known),
            geometric_mean(c.evaluation_slowdown for c in known),
            max(loads) if loads else None,
        )


def predict_step_s(
    shape: ModelShape, config: StepConfig, rates: DeviceRates, coefficients: TimingCoefficients
) -> float:
    """Seconds of one training step: forward, backward and optimizer.

    Raises:
        KeyError: if the model has no weight of some name in `config.ranks`.
        ValueError: if a rank is outside of 0 to the global rank.
    """
    return step_s(shape, config, adapter_size(shape, config.ranks, config.global_rank), rates, coefficients)


def step_s(
    shape: ModelShape,
    setting: StepSetting,
    size: AdapterSize,
    rates: DeviceRates,
    coefficients: TimingCoefficients,
) -> float:
    """As `predict_step_s`, for adapters of which only the size is known. Linear in both parameter counts."""
    counted = counted_step_s(shape, setting, size, rates)
    return coefficients.slowdown * counted + coefficients.overhead_s


def counted_step_s(shape: ModelShape, setting: StepSetting, size: AdapterSize, rates: DeviceRates) -> float:
    """Seconds of the counted operations and bytes of one step at the device's measured rates."""
    passes = 3 if setting.gradient_checkpointing else 2
    frozen = shape.weight_parameters + size.side_parameters
    per_token = 2 * passes * frozen + (2 * passes + 2) * size.trainable_parameters
    if setting.task == "causal-lm":
        per_token += 4 * shape.vocabulary_size * shape.hidden_size
    # scores and weighted values, 2 * s * h each; their backward pass needs both gradients
    attention = 4 * shape.layers * setting.sequence_length * shape.hidden_size * (passes + 1)
    matmul_s = setting.tokens * (per_token + attention) / rates.flops(setting.bits)
    moved = passes * _dequantized_bytes(shape, setting)
    moved += _OPTIMIZER_BYTES * size.trainable_parameters
    return matmul_s + moved / rates.bytes_per_s


def evaluation_example_s(
    shape: ModelShape,
    setting: StepSetting,
    size: AdapterSize,
    rates: DeviceRates,
    coefficients: TimingCoefficients,
) -> float:
    """Seconds to evaluate one held-out example, in batches of the setting's size."""
    return coefficients.evaluation_slowdown * _counted_evaluation_s(shape, setting, size, rates)


def _counted_evaluation_s(shape: ModelShape, setting: StepSetting, size: AdapterSize, rates: DeviceRates) -> float:
    parameters = shape.weight_parameters + size.side_parameters + size.trainable_parameters
    per_token = 2 * parameters + 4 * shape.layers * setting.sequence_length * shape.hidden_size
    if setting.task == "causal-lm":
        per_token += 2 * shape.vocabulary_size * shape.hidden_size
    matmul_s = setting.sequence_length * per_token / rates.flops(setting.bits)
    return matmul_s + _dequantized_bytes(shape, setting) / rates.bytes_per_s / setting.batch_size


def _dequantized_bytes(shape: ModelShape, setting: StepSetting) -> int:
    """Bytes read and written to dequantize every weight once; 0 for an unquantized base."""
    if setting.bits in (16, 32):
        return 0
    written = shape.weight_parameters * compute_bytes(setting.kind, setting.bits)
    return base_bytes(shape, setting.bits) + written


def load_s(shape: ModelShape, coefficients: TimingCoefficients) -> float:
    """Seconds to load the base; from its size in bf16 where no load was measured."""
    if coefficients.load_s is not None:
        return coefficients.load_s
    return 2 * (shape.weight_parameters + shape.other_parameters) / DEFAULT_LOAD_BPS


def transfer_s(size_bytes: float, bps: float, latency_s: float) -> float:
    """Seconds until a blob of `size_bytes` bytes is acknowledged over a link of `bps` bits per second."""
    return latency_s + 8 * size_bytes / bps


def fit_timing(
    shape: ModelShape,
    measurements: Sequence[StepMeasurement],
    rates: DeviceRates,
    *,
    task: Task,
) -> TimingModel:
    """Fit the coefficients per bit width to measured steps, oldest first.

    The weight of a step halves with each newer one.
    """
    groups: dict[Bits, list[StepMeasurement]] = {}
    for m in measurements:
        groups.setdefault(m.bits, []).append(m)
    return TimingModel({bits: _fit_bits(shape, found, rates, task) for bits, found in groups.items()})


def _fit_bits(
    shape: ModelShape, measurements: Sequence[StepMeasurement], rates: DeviceRates, task: Task
) -> TimingCoefficients:
    points, ratios = [], []
    for age, m in enumerate(reversed(measurements)):
        setting = StepSetting(
            bits=m.bits,
            batch_size=m.batch_size,
            sequence_length=m.sequence_length,
            gradient_checkpointing=m.gradient_checkpointing,
            task=task,
            kind=rates.kind,
        )
        size = measured_size(shape, m)
        counted = counted_step_s(shape, setting, size, rates)
        points.append(Point(counted, m.step_s, _RELATIVE_SD * m.step_s * _HALVING**age))
        if m.evaluation_example_s is not None:
            expected = _counted_evaluation_s(shape, setting, size, rates)
            ratios.append((0.5**age, m.evaluation_example_s / expected))
    line = fit_line(
        points,
        LinePrior(
            slope=DEFAULT_TIMING.slowdown,
            slope_sd=DEFAULT_TIMING.slowdown,
            intercept=0.0,
            # a constant of the order of the shortest step is as likely as none
            intercept_sd=0.5 * min(m.step_s for m in measurements),
            least_slope=0.02,
            least_intercept=0.0,
        ),
    )
    loads = [m.load_s for m in measurements if m.load_s > 0]
    total = sum(weight for weight, _ in ratios)
    return TimingCoefficients(
        line.slope,
        line.intercept,
        sum(weight * ratio for weight, ratio in ratios) / total if ratios else line.slope,
        loads[-1] if loads else None,
    )
