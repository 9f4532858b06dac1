"""Training within a time budget: as many steps of a plan as there is time for."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median

import torch

from fedpipe_agent.train.adapters import Attached
from fedpipe_agent.train.base import Base
from fedpipe_agent.train.data import Encoded, padded_length
from fedpipe_agent.train.errors import OutOfTimeError
from fedpipe_agent.train.memory import Meter
from fedpipe_agent.train.step import Stepper, StepSettings
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


def warm_up_steps(steps: int) -> int:
    """Steps of linear warm-up among `steps`."""
    return min(MOST_WARM_UP_STEPS, steps // WARM_UP_PART)


def write_reserve_s(parameters: int) -> float:
    """Seconds to leave for writing and syncing an update of that many float32 values, on a slow disk."""
    return _LEAST_RESERVE_S + 4 * parameters / _WRITE_BYTES_PER_S


def train(
    base: Base,
    on_base: Attached,
    groups: Iterable[list[Encoded]],
    *,
    settings: StepSettings,
    seed: int,
    watch: Watch,
) -> Trained:
    """Train batch after batch until there is no more, or until the next step might end after `watch.stop_at`.

    Args:
        base: With `on_base` attached.
        on_base: What is trained.
        groups: The batches.
        settings: How; changed in place where memory runs out.
        seed: Of dropout. On a CPU, the same seed, threads and batches give the same result to the bit.
        watch: Time and memory.

    Raises:
        OutOfTimeError: if there is no time for even one step.
        MemoryExceededError: if not even one example at a time, with checkpointing, fits.
        ModelError: if loss or gradient is not finite.
    """
    torch.manual_seed(seed)
    stepper = Stepper(base, on_base, settings, watch.meter)
    times: list[float] = []
    waits: list[float] = []
    lengths: list[int] = []
    sizes: list[int] = []
    loss_sum = 0.0
    ended = None
    for group in groups:
        started = watch.clock()
        waits.append(0.0 if ended is None else started - ended)
        if started + expected_s(times) > watch.stop_at:
            break
        loss = stepper.step(group)
        ended = watch.clock()
        times.append(ended - started)
        loss_sum += loss * len(group)
        sizes.append(len(group))
        lengths.append(padded_length(group, settings.sequence_length))
        watch.said(sum(sizes), loss)
    if not times:
        raise OutOfTimeError("no time for even one step: a longer deadline or a smaller plan is needed")
    first = min(1, len(times) - 1)
    tokens = [size * length for size, length in zip(sizes[first:], lengths[first:], strict=True)]
    waited = waits[first : len(times)]
    return Trained(
        examples=sum(sizes),
        steps=len(times),
        loss=loss_sum / sum(sizes),
        step_s=tuple(times[first:]),
        wait_s=sum(waited) / len(waited),
        step_tokens=tuple(tokens),
        tokens_per_example=sum(tokens) / sum(sizes[first:]),
        longest=max(lengths),
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
