"""The time model: seconds of a step, of an evaluated example, and of loading.

Counted work (`work.py`) is divided by the device's measured rates and corrected by two coefficients per device and bit
width: a factor (how far real steps are from the rates) and a constant (seconds per kernel, whatever its size).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import geometric_mean

from fedpipe_profiles.costs.fit import Expected, Line, Point, follow_line, weighted_median
from fedpipe_profiles.costs.memory import measured_size
from fedpipe_profiles.costs.rates import USUAL_SLOWDOWN, DeviceRates, counted_s, device_rates
from fedpipe_profiles.costs.step import AdapterSize, StepConfig, StepSetting, Task, adapter_paths, adapter_size
from fedpipe_profiles.costs.work import Work, evaluation_work, step_work
from fedpipe_profiles.device import Bits
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import StepMeasurement

__all__ = [
    "DEFAULT_TIMING",
    "DeviceRates",
    "TimingCoefficients",
    "TimingModel",
    "counted_step_s",
    "device_rates",
    "evaluation_example_s",
    "expected_step_s",
    "fit_timing",
    "load_s",
    "predict_step_s",
    "step_s",
    "transfer_s",
]

DEFAULT_LOAD_BPS = 200e6
"""Bytes per second at which a base is read and placed, until a load was measured."""

IMPORTS_S = 2.0
"""What of a process's first load is the import of libraries, which no later load repeats."""
_LEAST_LOAD_PART = 0.1

_DRIFT_SD = 0.03
"""From round to round a device changes by so much, relative."""
_STEP_SD = 0.15
"""Steps of one setting differ by so much: the mean of n steps is good to this over the root of n."""
_MOST_STEPS = 64
_SLOPE_SD, _KERNEL_SD = 0.7, 1.0
"""How far a device's coefficients are from what is expected, relative: a kernel's overhead varies far more than how
much of a measured rate is reached."""


@dataclass(frozen=True, slots=True)
class TimingCoefficients:
    """How real steps of one bit width differ from the counted ones.

    `slowdown` multiplies counted seconds, `kernel_s` the counted kernels; `evaluation_slowdown` multiplies the seconds
    that both give for an evaluated example; `load_s` is the time to load the base, None where it was never measured;
    `other_s` is a round's compute beside loading, evaluating and steps.
    """

    slowdown: float = USUAL_SLOWDOWN
    kernel_s: float = 15e-6
    evaluation_slowdown: float = 1.0
    load_s: float | None = None
    other_s: float = 0.1


DEFAULT_TIMING = TimingCoefficients()
_EXPECTED = Expected(Line(DEFAULT_TIMING.slowdown, DEFAULT_TIMING.kernel_s), _SLOPE_SD, _KERNEL_SD)


@dataclass(frozen=True, slots=True)
class TimingModel:
    """The fitted coefficients of one device.

    A bit width never measured takes the geometric mean of those measured: the counted seconds already say how it
    differs.
    """

    fitted: Mapping[Bits, TimingCoefficients] = field(default_factory=dict)
    newest_load_s: float | None = None

    def coefficients(self, bits: Bits) -> TimingCoefficients:
        """The coefficients of one bit width."""
        if bits in self.fitted:
            return self.fitted[bits]
        if not self.fitted:
            return DEFAULT_TIMING
        known = tuple(self.fitted.values())
        return TimingCoefficients(
            geometric_mean(c.slowdown for c in known),
            sum(c.kernel_s for c in known) / len(known),
            geometric_mean(c.evaluation_slowdown for c in known),
            self.newest_load_s,
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
    """A measurement with what is counted of it."""

    m: StepMeasurement
    setting: StepSetting
    size: AdapterSize
    counted: float
    kernels: float

    def point(self) -> Point:
        """Seconds per kernel, as their constant is the same whatever the setting."""
        sd = (_DRIFT_SD**2 + _STEP_SD**2 / min(self.m.steps, _MOST_STEPS)) ** 0.5
        return Point(self.counted / self.kernels, self.m.step_s / self.kernels, sd)


def fit_timing(
    shape: ModelShape,
    measurements: Sequence[StepMeasurement],
    rates: DeviceRates,
    *,
    task: Task,
) -> TimingModel:
    """Fit the coefficients per bit width to measured steps, oldest first.

    All bits together tell what each is expected to be; `follow_line` says what becomes of stalls and of a device that
    changes its speed.
    """
    if not measurements:
        return TimingModel()
    everything = [_sample(shape, m, rates, task) for m in reversed(measurements)]
    usual = Expected(
        follow_line([sample.point() for sample in everything], _EXPECTED), _SLOPE_SD, _KERNEL_SD, of_this_device=True
    )
    others = [(m.other_s, 0.5**age) for age, m in enumerate(reversed(measurements)) if m.other_s is not None]
    other_s = weighted_median(*zip(*others, strict=True)) if others else DEFAULT_TIMING.other_s
    loads = _loads(measurements)
    fitted = {
        bits: replace(_fit_bits(shape, found, rates, usual), load_s=_load_of(loads, bits), other_s=other_s)
        for bits in {m.bits for m in measurements}
        for found in ([sample for sample in everything if sample.m.bits == bits],)
    }
    newest = loads[-1][1] if loads else None
    if newest is not None and len(loads) == 1:
        newest = max(_LEAST_LOAD_PART * newest, newest - IMPORTS_S)
    return TimingModel(fitted, newest)


def _loads(measurements: Sequence[StepMeasurement]) -> list[tuple[Bits, float]]:
    """Every load that was measured, oldest first; measurements on the same loaded base repeat its seconds."""
    found: list[tuple[Bits, float]] = []
    for m in measurements:
        if m.load_s > 0 and found[-1:] != [(m.bits, m.load_s)]:
            found.append((m.bits, m.load_s))
    return found


def _load_of(loads: Sequence[tuple[Bits, float]], bits: Bits) -> float | None:
    """The newest load at these bits; the very first load of all also imported libraries, so a newer one caps it."""
    own = [index for index, (width, _) in enumerate(loads) if width == bits]
    if not own:
        return None
    seconds = loads[own[-1]][1]
    return min(seconds, loads[-1][1]) if own[-1] == 0 else seconds


def _sample(shape: ModelShape, m: StepMeasurement, rates: DeviceRates, task: Task) -> _Sample:
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
    return _Sample(m, setting, size, counted_s(work, setting, rates), work.kernels)


def _fit_bits(
    shape: ModelShape, samples: Sequence[_Sample], rates: DeviceRates, expected: Expected
) -> TimingCoefficients:
    """The coefficients of samples of one bit width, newest first."""
    line = follow_line([sample.point() for sample in samples], expected)
    found = TimingCoefficients(line.slope, line.intercept)
    ratios = [
        (s.m.evaluation_example_s / evaluation_example_s(shape, s.setting, s.size, rates, found), 0.5**age)
        for age, s in enumerate(samples)
        if s.m.evaluation_example_s is not None
    ]
    return replace(found, evaluation_slowdown=weighted_median(*zip(*ratios, strict=True)) if ratios else 1.0)
