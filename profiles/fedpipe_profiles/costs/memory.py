"""The memory model of a device: what a step is predicted to hold, and how its trainer was found to differ from that.

The prediction itself is counted in `memory_terms.py`, and its names are this module's too. Per device and bit width two
coefficients are fitted to steps that the trainer really took, for what counting cannot know: what the allocator keeps,
and what libraries hold. They begin at a factor of 1 and a few MiB.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedpipe_profiles.costs.fit import Line, LinePrior, Point, fit_line
from fedpipe_profiles.costs.memory_generic import rank_bytes
from fedpipe_profiles.costs.memory_rows import MemoryRow, memory_rows
from fedpipe_profiles.costs.memory_terms import (
    SIDE_BYTES,
    TRAINABLE_BYTES,
    MemoryBreakdown,
    MemoryCoefficients,
    base_bytes,
    is_counted,
    predict_memory,
    step_memory,
)
from fedpipe_profiles.costs.step import AdapterSize, DeviceKind, StepSetting, Task, device_kind
from fedpipe_profiles.device import MIB, Bits, DeviceProfile
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import StepMeasurement

__all__ = [
    "CAUTIOUS_COEFFICIENTS",
    "DEFAULT_COEFFICIENTS",
    "DEFAULT_CONTEXT_BYTES",
    "SAFETY_MARGIN",
    "SIDE_BYTES",
    "TRAINABLE_BYTES",
    "MemoryBreakdown",
    "MemoryCoefficients",
    "MemoryModel",
    "MemoryRow",
    "base_bytes",
    "context_bytes",
    "fit_memory",
    "is_counted",
    "measured_size",
    "memory_rows",
    "predict_memory",
    "rank_bytes",
    "step_memory",
    "with_margin",
]

SAFETY_MARGIN = 0.1
"""Share added to a predicted peak before it is compared with what is lent."""

DEFAULT_CONTEXT_BYTES: Mapping[DeviceKind, int] = {"cpu": 450 * MIB, "cuda": 512 * MIB}
"""What a trainer process holds before any model is loaded, until it was measured."""

DEFAULT_COEFFICIENTS = MemoryCoefficients()
CAUTIOUS_COEFFICIENTS = MemoryCoefficients(slack_bytes=48.0 * MIB)
"""For a first try on a device that was never measured: tokenizer, encoded data, libraries that grow with use and what
the allocator keeps are counted nowhere else, and fitted slacks on CPU lie between 40 and 80 MiB."""
_PRIOR = LinePrior(
    slope=DEFAULT_COEFFICIENTS.activation_scale,
    slope_sd=0.1,
    intercept=DEFAULT_COEFFICIENTS.slack_bytes,
    intercept_sd=32.0 * MIB,
    least_slope=0.8,
    least_intercept=0.0,
)
_MOST_SCALE = 1.5
_RELATIVE_SD = 0.02


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """The fitted coefficients of one device. Bit widths never measured take the largest ones of those measured."""

    fitted: Mapping[Bits, MemoryCoefficients] = field(default_factory=dict)

    def coefficients(self, bits: Bits) -> MemoryCoefficients:
        """The coefficients of one bit width."""
        if bits in self.fitted:
            return self.fitted[bits]
        known = self.fitted.values() or (DEFAULT_COEFFICIENTS,)
        return MemoryCoefficients(max(c.activation_scale for c in known), max(c.slack_bytes for c in known))


def fit_memory(
    shape: ModelShape,
    measurements: Sequence[StepMeasurement],
    *,
    kind: DeviceKind,
    task: Task,
    num_labels: int = 0,
) -> MemoryModel:
    """Fit both coefficients per bit width to measured peaks.

    The slack is raised until no measured peak is above its prediction: a memory model may be wrong by being too high
    only.
    """
    points: dict[Bits, list[Point]] = {}
    for m in measurements:
        setting = StepSetting(
            bits=m.bits,
            batch_size=m.batch_size,
            sequence_length=m.longest_sequence or m.sequence_length,
            gradient_checkpointing=m.gradient_checkpointing,
            task=task,
            num_labels=num_labels,
            kind=kind,
        )
        counted = step_memory(shape, setting, measured_size(shape, m), MemoryCoefficients(1.0, 0))
        static = counted.total_bytes - counted.scaled_bytes
        sd = _RELATIVE_SD * m.peak_bytes + MIB
        points.setdefault(m.bits, []).append(Point(float(counted.scaled_bytes), float(m.peak_bytes - static), sd))
    return MemoryModel({bits: _above(found) for bits, found in points.items()})


def _above(points: Sequence[Point]) -> MemoryCoefficients:
    line = fit_line(points, _PRIOR)
    slope = min(line.slope, _MOST_SCALE)
    under = max(p.y - Line(slope, line.intercept).at(p.x) for p in points)
    return MemoryCoefficients(slope, line.intercept + max(0.0, under))


def measured_size(shape: ModelShape, m: StepMeasurement) -> AdapterSize:
    """The adapters of a measured step; its ranks are estimated by the mean width of the weights."""
    adapters = max(0, m.trainable_parameters - shape.head_parameters)
    mean_width = shape.weight_widths / len(shape.weights)
    return AdapterSize(m.trainable_parameters, m.side_parameters, adapters / mean_width)


def context_bytes(profile: DeviceProfile, measurements: Sequence[StepMeasurement]) -> int:
    """What the process holds beside the training memory: the most that was measured, else a default."""
    measured = [m.context_bytes for m in measurements if m.context_bytes > 0]
    return max(measured) if measured else DEFAULT_CONTEXT_BYTES[device_kind(profile)]


def with_margin(context: int, total_bytes: float) -> float:
    """Bytes that the whole process must be lent to train with a predicted peak of `total_bytes`."""
    return context + total_bytes * (1 + SAFETY_MARGIN)
