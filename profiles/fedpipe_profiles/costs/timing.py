"""The time model: seconds of a step, of an evaluated example, and of loading.

Counted work (`work.py`) is divided by the device's measured rates and corrected by two coefficients per device and bit
width: a factor (how far real steps are from the rates) and a constant (seconds per kernel, whatever its size).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import geometric_mean

from fedpipe_profiles.costs.fit import Line, LinePrior, Point, fit_line_robustly, weighted_median
from fedpipe_profiles.costs.memory import measured_size
from fedpipe_profiles.costs.step import (
    AdapterSize,
    DeviceKind,
    StepConfig,
    StepSetting,
    Task,
    adapter_paths,
    adapter_size,
    compute_bytes,
    compute_dtype,
    device_kind,
)
from fedpipe_profiles.costs.work import Work, evaluation_work, step_work
from fedpipe_profiles.device import Bits, DeviceProfile, Source
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import StepMeasurement

DEFAULT_LOAD_BPS = 200e6
"""Bytes per second at which a base is read and placed, until a load was measured."""

PEAK_UTILISATION = 0.4
"""Share of a published peak that training reaches: 35 to 50 % is usual on GPUs (PaLM, arXiv 2204.02311, table 3: 21 to
57 %). A published bandwidth is reached by 80 %."""
_BANDWIDTH_UTILISATION = 0.8

_OPTIMIZER_BYTES = 32
"""Fused AdamW with clipping: reads value, gradient (twice) and two moments, writes value and moments, in fp32."""
_DRIFT_SD = 0.03
"""From round to round a device changes by so much, relative."""
_STEP_SD = 0.15
"""Steps of one setting differ by so much: the mean of n steps is good to this over the root of n."""
_MOST_STEPS = 64
_HALVING = 2**0.5
_LEAST_FACTOR = 0.02


@dataclass(frozen=True, slots=True)
class TimingCoefficients:
    """How real steps of one bit width differ from the counted ones.

    `slowdown` multiplies counted seconds, `kernel_s` the counted kernels; `evaluation_slowdown` multiplies the seconds
    that both give for an evaluated example; `load_s` is the time to load the base, None where it was never measured;
    `other_s` is a round's compute beside loading, evaluating and steps.
    """

    slowdown: float = 1.3
    kernel_s: float = 10e-6
    evaluation_slowdown: float = 1.0
    load_s: float | None = None
    other_s: float = 0.1


DEFAULT_TIMING = TimingCoefficients()


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
    return min(1.0, DEFAULT_TIMING.slowdown * share) if source == "theoretical" else 1.0


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
            sum(c.kernel_s for c in known) / len(known),
            geometric_mean(c.evaluation_slowdown for c in known),
            max(loads) if loads else None,
            known[0].other_s,
        )


def predict_step_s(
    shape: ModelShape, config: StepConfig, rates: DeviceRates, coefficients: TimingCoefficients
) -> float:
    """Seconds of one training step: forward, backward and optimizer, with two adapters counted on every weight.

    Raises:
        KeyError: if the model has no weight of some name in `config.ranks`.
        ValueError: if a rank is outside of 0 to the global rank.
    """
    return step_s(shape, config, adapter_size(shape, config.ranks, config.global_rank), rates, coefficients)


def expected_step_s(
    shape: ModelShape, config: StepConfig, rates: DeviceRates, coefficients: TimingCoefficients
) -> float:
    """As `predict_step_s`, with the adapters that `config.ranks` really asks for; never more.

    Not linear: a weight whose components are all trained, or none, has one adapter instead of two.
    """
    size = adapter_size(shape, config.ranks, config.global_rank)
    counted = replace(size, paths=float(adapter_paths(config.ranks, config.global_rank)))
    return step_s(shape, config, counted, rates, coefficients)


def step_s(
    shape: ModelShape,
    setting: StepSetting,
    size: AdapterSize,
    rates: DeviceRates,
    coefficients: TimingCoefficients,
) -> float:
    """As `predict_step_s`, for adapters of which only the size is known. Linear in both parameter counts."""
    return _seconds(step_work(shape, setting, size), setting, rates, coefficients)


def counted_step_s(shape: ModelShape, setting: StepSetting, size: AdapterSize, rates: DeviceRates) -> float:
    """Seconds of the counted work of one step at the device's measured rates, without the kernels."""
    return counted_s(step_work(shape, setting, size), setting, rates)


def evaluation_example_s(
    shape: ModelShape,
    setting: StepSetting,
    size: AdapterSize,
    rates: DeviceRates,
    coefficients: TimingCoefficients,
) -> float:
    """Seconds to evaluate one held-out example, in batches of the setting's size."""
    batch = _seconds(evaluation_work(shape, setting, size), setting, rates, coefficients)
    return coefficients.evaluation_slowdown * batch / setting.batch_size


def counted_s(work: Work, setting: StepSetting, rates: DeviceRates) -> float:
    """Seconds of counted work at the device's rates, without the kernels."""
    seconds = work.operations / rates.flops(setting.bits) + work.moved_bytes / rates.bytes_per_s
    if work.dequantized:
        # read compressed, written plain
        bytes_each = compute_bytes(setting.kind, setting.bits) + setting.bits / 8
        seconds += work.dequantized / rates.values_per_s.get(setting.bits, rates.bytes_per_s / bytes_each)
    return seconds + work.optimized / (rates.parameters_per_s or rates.bytes_per_s / _OPTIMIZER_BYTES)


def _seconds(work: Work, setting: StepSetting, rates: DeviceRates, coefficients: TimingCoefficients) -> float:
    return coefficients.slowdown * counted_s(work, setting, rates) + coefficients.kernel_s * work.kernels


def load_s(shape: ModelShape, coefficients: TimingCoefficients) -> float:
    """Seconds to load the base; from its size in bf16 where no load was measured."""
    if coefficients.load_s is not None:
        return coefficients.load_s
    return 2 * (shape.weight_parameters + shape.other_parameters) / DEFAULT_LOAD_BPS


def transfer_s(size_bytes: float, bps: float, latency_s: float) -> float:
    """Seconds until a blob of `size_bytes` bytes is acknowledged over a link of `bps` bits per second."""
    return latency_s + 8 * size_bytes / bps


# --- learning ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sample:
    """A measurement with what is counted of it; `age` in measurements, 0 for the newest."""

    m: StepMeasurement
    age: int
    setting: StepSetting
    size: AdapterSize
    counted: float
    kernels: float

    def point(self) -> Point:
        """Seconds per kernel: their constant is the same whatever the setting."""
        sd = (_DRIFT_SD**2 + _STEP_SD**2 / min(self.m.steps, _MOST_STEPS)) ** 0.5 * _HALVING**self.age
        return Point(self.counted / self.kernels, self.m.step_s / self.kernels, sd * self.m.step_s / self.kernels)


def fit_timing(
    shape: ModelShape,
    measurements: Sequence[StepMeasurement],
    rates: DeviceRates,
    *,
    task: Task,
) -> TimingModel:
    """Fit the coefficients per bit width to measured steps, oldest first.

    The weight of a measurement halves with each newer one of its bits, and one far off the others has little say: a
    stall is forgotten, a device that became slower is followed once two measurements say so. All bits together tell
    what each is expected to be.
    """
    groups: dict[Bits, list[_Sample]] = {}
    for m in reversed(measurements):
        found = groups.setdefault(m.bits, [])
        found.append(_sample(shape, m, len(found), rates, task))
    if not groups:
        return TimingModel()
    prior = _prior(Line(DEFAULT_TIMING.slowdown, DEFAULT_TIMING.kernel_s), 1.0)
    everything = [sample.point() for found in groups.values() for sample in found]
    usual = _prior(fit_line_robustly(everything, prior), 0.5) if len(groups) > 1 else prior
    others = [(m.other_s, 0.5**age) for age, m in enumerate(reversed(measurements)) if m.other_s is not None]
    other_s = weighted_median(*zip(*others, strict=True)) if others else DEFAULT_TIMING.other_s
    return TimingModel(
        {bits: replace(_fit_bits(shape, found, rates, usual), other_s=other_s) for bits, found in groups.items()}
    )


def _prior(line: Line, spread: float) -> LinePrior:
    kernel_s = max(line.intercept, 0.1 * DEFAULT_TIMING.kernel_s)
    return LinePrior(
        slope=line.slope,
        slope_sd=spread * line.slope,
        intercept=kernel_s,
        intercept_sd=spread * kernel_s,
        least_slope=_LEAST_FACTOR,
        least_intercept=0.0,
    )


def _sample(shape: ModelShape, m: StepMeasurement, age: int, rates: DeviceRates, task: Task) -> _Sample:
    setting = StepSetting(
        bits=m.bits,
        batch_size=m.batch_size,
        sequence_length=m.sequence_length,
        gradient_checkpointing=m.gradient_checkpointing,
        task=task,
        kind=rates.kind,
    )
    size = replace(measured_size(shape, m), paths=None if m.adapter_paths is None else float(m.adapter_paths))
    work = step_work(shape, setting, size)
    return _Sample(m, age, setting, size, counted_s(work, setting, rates), work.kernels)


def _fit_bits(
    shape: ModelShape, samples: Sequence[_Sample], rates: DeviceRates, prior: LinePrior
) -> TimingCoefficients:
    """The coefficients of samples of one bit width, newest first."""
    line = fit_line_robustly([sample.point() for sample in samples], prior)
    found = TimingCoefficients(line.slope, line.intercept)
    ratios = [
        (s.m.evaluation_example_s / evaluation_example_s(shape, s.setting, s.size, rates, found), 0.5**s.age)
        for s in samples
        if s.m.evaluation_example_s is not None
    ]
    loads = [s.m.load_s for s in samples if s.m.load_s > 0]
    return replace(
        found,
        evaluation_slowdown=weighted_median(*zip(*ratios, strict=True)) if ratios else 1.0,
        load_s=loads[0] if loads else None,
    )
