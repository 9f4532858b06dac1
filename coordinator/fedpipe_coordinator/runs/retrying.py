"""Who got no plan for want of time gets one again now and then, as if its slow rounds had been stalls.

Pure. Without a plan nothing new is measured, so one stall would leave a device out for ever. A single slow round is
tried anew at once, more of them after ever more rounds without a plan: who really is slow is asked ever more rarely.
"""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import NonNegativeInt

from fedpipe_coordinator.runs.pace import SLOWER
from fedpipe_coordinator.runs.steadying import slowed
from fedpipe_profiles.costs.memory import measured_size
from fedpipe_profiles.costs.step import StepSetting, Task
from fedpipe_profiles.costs.timing import DEFAULT_TIMING, DeviceRates, load_s, step_s
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import StepMeasurement
from fedpipe_profiles.values import Value

FIRST_PATIENCE = 2
MOST_PATIENCE = 64
FORGETTING = 8
"""After so many times its patience with a plan, a device's tries are forgotten."""


class Retry(Value):
    """A device's rounds without a plan for want of time; the empty one is of a device that never lacked one."""

    idle: NonNegativeInt = 0
    """Plannings since its last plan that gave none."""
    patience: NonNegativeInt = 0
    """So many of those must go by before the next try."""
    calm: NonNegativeInt = 0
    """Plannings in a row that gave a plan, the try not counted."""


def planned(before: Retry) -> Retry:
    """After a planning that gave a plan by what was measured."""
    if not before.patience:
        return Retry()
    calm = before.calm + 1
    return Retry() if calm >= FORGETTING * before.patience else Retry(patience=before.patience, calm=calm)


def is_due(before: Retry, *, once: bool) -> bool:
    """Whether to try now, where there is no plan; `once`: no steps but the newest stand in the way."""
    return before.idle >= (before.patience or (0 if once else FIRST_PATIENCE))


def is_single(measured: Sequence[StepMeasurement], unstalled: Sequence[StepMeasurement]) -> bool:
    """Whether none but the newest steps were slow."""
    if len(measured) < 2:  # noqa: PLR2004 - the newest, and one before
        return True
    last = measured[-1].step_s / unstalled[-1].step_s
    former = measured[-2].step_s / unstalled[-2].step_s
    return former <= max(SLOWER, last / SLOWER**2)


def tried(before: Retry) -> Retry:
    """After a try was planned."""
    return Retry(patience=min(MOST_PATIENCE, max(FIRST_PATIENCE, 2 * before.patience)))


def waited(before: Retry) -> Retry:
    """After a planning that gave no plan, nor a try."""
    return before.model_copy(update={"idle": before.idle + 1, "calm": 0})


def as_unstalled(
    shape: ModelShape, measurements: tuple[StepMeasurement, ...], rates: DeviceRates, task: Task
) -> tuple[StepMeasurement, ...]:
    """The same steps as if none had stalled: at the pace of the fastest, or at the usual one where all are as slow.

    What was learned of memory stays.
    """
    if not measurements:
        return ()
    ratios = [_ratio(shape, m, rates, task) for m in measurements]
    pace = min(ratios)
    if max(ratios) <= SLOWER * pace:
        pace = min(pace, 1.0)
    paced = [
        slowed(m, pace / ratio) if ratio > SLOWER * pace else m for m, ratio in zip(measurements, ratios, strict=True)
    ]
    usual_load_s = load_s(shape, replace(DEFAULT_TIMING, load_s=None))
    others = [m.other_s for m in paced if m.other_s is not None]
    least_s = min([usual_load_s, *(m.load_s for m in paced if m.load_s > 0)]) if len(paced) == 1 else None
    found = []
    for m in paced:
        loads = [each.load_s for each in paced if each.bits == m.bits and each.load_s > 0]
        load = min([m.load_s, *loads, *([] if least_s is None else [least_s])])
        other = None if m.other_s is None else min(others)
        found.append(m.model_copy(update={"load_s": load, "other_s": other}))
    return tuple(found)


def _ratio(shape: ModelShape, m: StepMeasurement, rates: DeviceRates, task: Task) -> float:
    """Measured over usual seconds of a step."""
    setting = StepSetting(
        bits=m.bits,
        batch_size=m.batch_size,
        sequence_length=m.sequence_length,
        gradient_checkpointing=m.gradient_checkpointing,
        task=task,
        kind=rates.kind,
    )
    return m.step_s / step_s(shape, setting, measured_size(shape, m), rates, DEFAULT_TIMING)
