"""Training within a time budget: as many steps of a plan as there is time for."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median

import torch

from fedpipe_agent.train.adapters import Attached
from fedpipe_agent.train.base import Base
from fedpipe_agent.train.data import Encoded, padded_length
from fedpipe_agent.train.errors import MemoryExceededError, OutOfTimeError
from fedpipe_agent.train.memory import Meter
from fedpipe_agent.train.step import Kept, Stepper, StepSettings
from fedpipe_profiles.plan import StepMeasurement

MOST_WARM_UP_STEPS = 4
WARM_UP_PART = 10
"""The learning rate rises over a tenth of the steps, at most `MOST_WARM_UP_STEPS`."""

_RECENT = 16
_WRITE_BYTES_PER_S = 50e6
_LEAST_RESERVE_S = 0.2
_LEAST_STEP_S = 1e-9
_MOST_STALLED = 3.0


@dataclass(frozen=True, slots=True)
class Watch:
    """What training is held to: `clock` in monotonic seconds, when to stop by it, and the memory.

    `said` is told the number of examples done, and the last loss, after every step.
    """

    clock: Callable[[], float]
    stop_at: float
    meter: Meter
    said: Callable[[int, float], None] = lambda _done, _loss: None


@dataclass(frozen=True, slots=True)
class Trained:
    """What a call of `train` did.

    `step_s`, `wait_s` (until the next batch was made, mean), `step_tokens` (padded, of each step's batch) and
    `tokens_per_example` (padded, mean) leave out the first step, which also warms up, where there are others;
    `longest` is over all steps.
    """

    examples: int
    steps: int
    loss: float
    step_s: tuple[float, ...]
    wait_s: float
    step_tokens: tuple[int, ...]
    tokens_per_example: float
    longest: int
    settings: StepSettings

    @property
    def usual_step_s(self) -> float:
        """Seconds of a step with its wait: the mean, where a step far beyond what its tokens explain counts less."""
        return usual_s(self.step_s, self.step_tokens) + self.wait_s


@dataclass(slots=True)
class Course:
    """A round's training, whichever bases it is taken on: its batches, and what was made of them so far.

    Attributes:
        groups: The batches that were not begun.
        pending: The batch at which memory ran out.
        kept: What the finished steps made, once they have to go on elsewhere.
    """

    groups: Iterator[list[Encoded]]
    pending: list[Encoded] | None = None
    kept: Kept | None = None
    examples: int = 0
    steps: int = 0
    loss_sum: float = 0.0

    def next(self) -> list[Encoded] | None:
        """The next batch, None at the end."""
        pending, self.pending = self.pending, None
        return next(self.groups, None) if pending is None else pending

    def finished(self, group: list[Encoded], loss: float) -> None:
        """A batch was trained, at a mean loss."""
        self.steps += 1
        self.examples += len(group)
        self.loss_sum += loss * len(group)


def warm_up_steps(steps: int) -> int:
    """Steps of linear warm-up among `steps`."""
    return min(MOST_WARM_UP_STEPS, steps // WARM_UP_PART)


def write_reserve_s(parameters: int) -> float:
    """Seconds to leave for writing and syncing an update of that many float32 values, on a slow disk."""
    return _LEAST_RESERVE_S + 4 * parameters / _WRITE_BYTES_PER_S


def train(
    base: Base,
    on_base: Attached,
    groups: Iterable[list[Encoded]] | Course,
    *,
    settings: StepSettings,
    seed: int,
    watch: Watch,
) -> Trained:
    """Train batch after batch until there is no more, or until the next step might end after `watch.stop_at`.

    Args:
        base: With `on_base` attached.
        on_base: What is trained.
        groups: The batches; or a course, which goes on where it was: it keeps what is done when memory runs out.
        settings: How; changed in place where memory runs out.
        seed: Of dropout. On a CPU, the same seed, threads and batches give the same result to the bit.
        watch: Time and memory.

    Returns:
        Examples, steps and loss of the whole course; times and lengths of the steps as they were taken at last.

    Raises:
        OutOfTimeError: if there is no time for even one step.
        MemoryExceededError: if not even one example at a time, with checkpointing, fits.
        ModelError: if loss or gradient is not finite.
    """
    course = groups if isinstance(groups, Course) else Course(iter(groups))
    torch.manual_seed(seed + course.steps)
    stepper = Stepper(base, on_base, settings, watch.meter, course.kept)
    course.kept = None  # it is in the stepper now, and memory is short
    taken = _Taken()
    ended = None
    while (group := course.next()) is not None:
        started = watch.clock()
        waited = 0.0 if ended is None else started - ended
        if started + expected_s(taken.times) > watch.stop_at:
            break
        way = settings.micro_batch, settings.checkpointing
        try:
            loss = stepper.step(group)
        except MemoryExceededError:
            course.pending, course.kept = group, stepper.keep()
            raise
        ended = watch.clock()
        if way != (settings.micro_batch, settings.checkpointing):
            taken = _Taken()
        taken.add(ended - started, waited, group, settings.sequence_length)
        course.finished(group, loss)
        watch.said(course.examples, loss)
    if not taken.times:
        raise OutOfTimeError("no time for even one step: a longer deadline or a smaller plan is needed")
    return taken.told(course, settings)


class _Taken:
    """Steps that were all taken in the same way."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._waits: list[float] = []
        self._lengths: list[int] = []
        self._sizes: list[int] = []

    def add(self, seconds: float, waited_s: float, group: list[Encoded], sequence_length: int) -> None:
        self.times.append(seconds)
        self._waits.append(waited_s)
        self._sizes.append(len(group))
        self._lengths.append(padded_length(group, sequence_length))

    def told(self, course: Course, settings: StepSettings) -> Trained:
        first = min(1, len(self.times) - 1)
        sizes, waits = self._sizes[first:], self._waits[first:]
        tokens = [size * length for size, length in zip(sizes, self._lengths[first:], strict=True)]
        return Trained(
            examples=course.examples,
            steps=course.steps,
            loss=course.loss_sum / course.examples,
            step_s=tuple(self.times[first:]),
            wait_s=sum(waits) / len(waits),
            step_tokens=tuple(tokens),
            tokens_per_example=sum(tokens) / sum(sizes),
            longest=max(self._lengths),
            settings=settings,
        )


def expected_s(times: list[float]) -> float:
    """How long the next step may take: the longest of the recent ones, the first left out where there are others."""
    return max(islice(reversed(times[1:] or times), _RECENT), default=0.0)


def usual_s(times: Sequence[float], tokens: Sequence[int]) -> float:
    """The mean of `times`, in seconds, each counted as at most three times the median step of its `tokens`.

    A round's time is a sum, so a step is told by its mean; but one that the machine stalled says nothing of the next.
    Half of a step is taken to grow with its tokens.
    """
    usual = sum(tokens) / len(tokens)
    sizes = [(count + usual) / (2 * usual) for count in tokens]
    most = _MOST_STALLED * median(time / size for time, size in zip(times, sizes, strict=True))
    return sum(min(time, most * size) for time, size in zip(times, sizes, strict=True)) / len(times)


def measurement(
    base: Base,
    on_base: Attached,
    trained: Trained,
    *,
    batch_size: int,
    meter: Meter,
    evaluation_example_s: float | None,
) -> StepMeasurement:
    """The figures of finished steps of `batch_size`, as really taken: per micro-batch where they were split."""
    settings = trained.settings
    size = min(batch_size, settings.micro_batch)
    return StepMeasurement(
        bits=base.bits,
        batch_size=size,
        sequence_length=max(1, round(trained.tokens_per_example)),
        longest_sequence=trained.longest,
        gradient_checkpointing=settings.checkpointing,
        trainable_parameters=on_base.trainable_parameters,
        side_parameters=on_base.side_parameters,
        adapter_paths=sum(len(of_weight) for of_weight in on_base.factors.values()),
        steps=trained.steps,
        step_s=max(_LEAST_STEP_S, trained.usual_step_s * size / batch_size),
        evaluation_example_s=evaluation_example_s,
        load_s=base.load_s,
        peak_bytes=meter.peak_bytes(),
        context_bytes=meter.context_bytes,
    )
