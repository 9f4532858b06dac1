"""How fast a device really is now: by its newest steps, where they are far from what its earlier ones led to expect.

Pure. A fit of all steps would follow a throttled clock only over several rounds. Much slower steps count at once;
much faster ones when two rounds in a row agree.
"""

from collections.abc import Sequence

from fedpipe_coordinator.runs.steadying import slowed
from fedpipe_profiles.costs.memory import measured_size
from fedpipe_profiles.costs.step import StepSetting, Task
from fedpipe_profiles.costs.timing import DeviceRates, fit_timing, step_s
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import StepMeasurement

SLOWER = 1.4
"""Steps that take longer than expected by this factor are of a slower device, not of a wrong model or of noise."""
FASTER = 1 / SLOWER


def at_present_pace(
    shape: ModelShape, measurements: tuple[StepMeasurement, ...], rates: DeviceRates, task: Task
) -> tuple[tuple[StepMeasurement, ...], float]:
    """The steps as the device would take them now, oldest first, and the factor that the newest changed older ones by.

    Only steps of a kind that was measured before say anything of the pace: of another the model may be wrong. What was
    found once holds on, for the kinds too that were measured only before; but a slow round between two others that
    agree was a stall.
    """
    paced, factor = measurements[:1], 1.0
    before: tuple[StepMeasurement, ...] | None = None
    for newest in measurements[1:]:
        known = () if before is None else before[:-1]
        alike = any(_kind(m) == _kind(newest) for m in known)
        if before is not None and alike and _surprise(shape, known, newest, rates, task) < SLOWER:
            paced, factor, before = (*before, newest), 1.0, None
            continue
        found = (*paced, newest)
        paced, factor = _paced(shape, found, rates, task)
        before = found if factor > SLOWER else None
    return paced, factor


def _paced(
    shape: ModelShape, measurements: tuple[StepMeasurement, ...], rates: DeviceRates, task: Task
) -> tuple[tuple[StepMeasurement, ...], float]:
    """As `at_present_pace`, where all but the newest are of one pace."""
    if len(measurements) < 2:  # noqa: PLR2004 - one to compare and one to compare with
        return measurements, 1.0
    factor = _surprise(shape, measurements[:-1], measurements[-1], rates, task)
    if factor > SLOWER:
        return _rescaled(measurements, 1, factor), factor
    if factor < FASTER:
        before = _surprise(shape, measurements[:-2], measurements[-2], rates, task)
        last = _surprise(shape, measurements[:-2], measurements[-1], rates, task)
        if before < FASTER and last < FASTER:
            factor = max(before, last)
            return _rescaled(measurements, 2, factor), factor
    return measurements, 1.0


def _surprise(
    shape: ModelShape,
    known: Sequence[StepMeasurement],
    newest: StepMeasurement,
    rates: DeviceRates,
    task: Task,
) -> float:
    """Measured over expected seconds of a step; 1 where no such step is known."""
    alike = [m for m in known if _kind(m) == _kind(newest)]
    if not alike:
        return 1.0
    setting = StepSetting(
        bits=newest.bits,
        batch_size=newest.batch_size,
        sequence_length=newest.sequence_length,
        gradient_checkpointing=newest.gradient_checkpointing,
        task=task,
        kind=rates.kind,
    )
    coefficients = fit_timing(shape, alike, rates, task=task).coefficients(newest.bits)
    return newest.step_s / step_s(shape, setting, measured_size(shape, newest), rates, coefficients)


def _kind(measurement: StepMeasurement) -> tuple[int, bool]:
    return measurement.bits, measurement.gradient_checkpointing


def _rescaled(measurements: tuple[StepMeasurement, ...], new: int, factor: float) -> tuple[StepMeasurement, ...]:
    return (*(slowed(m, factor) for m in measurements[:-new]), *measurements[-new:])
