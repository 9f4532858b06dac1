"""Scoring: the contribution of every weight, and a few real steps measured, at the most bits that fit.

What does not fit is tried smaller: one example at a time, then fewer bits. Only one example at the fewest bits that
does not fit is an error.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fedpipe_agent.train.adapters import TRAINED, attached, reset_head
from fedpipe_agent.train.base import Base
from fedpipe_agent.train.contribution import probe_factors
from fedpipe_agent.train.contribution_methods import measure_contribution
from fedpipe_agent.train.data import Encoded, Encoder, Example, batches, sample
from fedpipe_agent.train.errors import MemoryExceededError, OutOfTimeError
from fedpipe_agent.train.evaluate import evaluate
from fedpipe_agent.train.loop import Watch, measurement, train
from fedpipe_agent.train.memory import Meter, is_out_of_memory
from fedpipe_agent.train.step import StepSettings
from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.costs.memory import CAUTIOUS_COEFFICIENTS, SAFETY_MARGIN, predict_memory
from fedpipe_profiles.costs.step import DeviceKind, StepConfig
from fedpipe_profiles.device import MIB, Bits
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import StepMeasurement
from fedpipe_wire.message_values import JobTerms

SCORING_PART = 0.6
"""Share of the budget that the contribution may take; the rest is for measured steps."""

STEPS = 4
"""Steps per measurement, the first of which warms up and carries the longest examples."""

_MEASURED_RANK = 8
_MEASURED_RATE = 1e-4
_EVALUATED_BATCHES = 4
_EVALUATED_EXAMPLES = 16
_SAMPLE = 256

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Scored:
    """What scoring found."""

    contribution: Contribution
    measurements: tuple[StepMeasurement, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """What scoring works on. `load` gives a base at given bits, and frees any other one before."""

    terms: JobTerms
    shape: ModelShape
    train: Sequence[Example]
    held_out: Sequence[Example]
    encoder: Encoder
    load: Callable[[Bits], Base]
    meter: Meter
    clock: Callable[[], float]
    said: Callable[[int, int], None]

    @property
    def smallest(self) -> int:
        """The smallest batch that the job allows."""
        return min(self.terms.batch_sizes)

    def groups(self, examples: Sequence[Example], size: int, wanted: int) -> list[list[Encoded]]:
        """Batches of a seeded draw."""
        return list(batches(examples, self.encoder, batch_size=size, wanted=wanted, seed=self.terms.seed))


def bits_in_order(
    shape: ModelShape, terms: JobTerms, supported: Sequence[Bits], kind: DeviceKind, free: int
) -> list[Bits]:
    """Bits to try, most first; those predicted not to fit `free` bytes come only where none fits: then the fewest."""
    wanted = sorted(supported, reverse=True)
    fitting = [bits for bits in wanted if _predicted(shape, terms, bits, kind) * (1 + SAFETY_MARGIN) <= free]
    return fitting or wanted[-1:]


def _predicted(shape: ModelShape, terms: JobTerms, bits: Bits, kind: DeviceKind) -> int:
    rank = min(_MEASURED_RANK, terms.max_rank)
    config = StepConfig(
        bits=bits,
        batch_size=min(terms.batch_sizes),
        sequence_length=terms.sequence_length,
        gradient_checkpointing=False,
        task=terms.task,
        num_labels=max((head.shape[0] for head in shape.head), default=0),
        kind=kind,
        ranks={weight.name: rank for weight in shape.weights},
        global_rank=rank,
    )
    return predict_memory(shape, config, CAUTIOUS_COEFFICIENTS).total_bytes


def score(work: Work, order: Sequence[Bits], *, wanted_batches: int, budget_s: float) -> Scored:
    """Score every candidate weight and measure a few steps.

    Raises:
        MemoryExceededError: if nothing fits.
    """
    started = work.clock()
    for bits in order:
        # in a call of its own, so that nothing refers to a base that did not fit while the next is loaded
        found = _score_at(work, bits, wanted_batches, (started + SCORING_PART * budget_s, started + budget_s))
        if found is not None:
            return found
    raise MemoryExceededError(
        f"not even one example fits at {order[-1]} bits within {work.meter.limit_bytes // MIB} MiB: "
        "a shorter sequence, a smaller model or a larger limit is needed",
        work.meter.peak_bytes(),
    )


def _score_at(work: Work, bits: Bits, wanted_batches: int, stops: tuple[float, float]) -> Scored | None:
    base = _if_it_fits(lambda: work.load(bits), work.meter)
    if base is None:
        return None
    reset_head(base)
    contribution = _contribution(work, base, wanted_batches, stops[0])
    if contribution is None:
        return None
    measured = tuple(_measurements(work, base, stops[1]))
    return Scored(contribution, measured) if measured else None


def _if_it_fits(action: Callable[[], T], meter: Meter) -> T | None:
    """The action's result, or None if memory ran out."""
    try:
        return action()
    except MemoryExceededError:
        pass
    except (RuntimeError, SystemError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
    meter.release()
    return None


def _contribution(work: Work, base: Base, wanted_batches: int, stop_at: float) -> Contribution | None:
    for size in dict.fromkeys((work.smallest, 1)):
        groups = work.groups(work.train, size, wanted_batches * work.smallest)

        def attempt(groups: list[list[Encoded]] = groups) -> Contribution:
            return measure_contribution(
                base,
                work.terms.contribution,
                groups,
                max_rank=work.terms.max_rank,
                seed=work.terms.seed,
                sequence_length=work.terms.sequence_length,
                may_go_on=lambda: work.clock() < stop_at,
                said=lambda done: work.said(done, len(groups)),
            )

        found = _if_it_fits(attempt, work.meter)
        if found is not None:
            return found
    return None


def _measurements(work: Work, base: Base, stop_at: float) -> Iterator[StepMeasurement]:
    """Steps at the smallest batch, at the largest that should fit, and at that one with checkpointing."""
    work.meter.reset()
    before = work.meter.peak_bytes()
    first = _measure(work, base, work.smallest, checkpointing=False, stop_at=None)
    if first is None:
        return
    yield first
    per_example = max(1, first.peak_bytes - before) / first.batch_size
    room = (work.meter.available_bytes - before) / (1 + SAFETY_MARGIN)
    larger = [size for size in work.terms.batch_sizes if size > first.batch_size and size * per_example <= room]
    if not larger:
        return
    size = max(larger)
    for checkpointing in (False, True):
        needed_s = STEPS * first.step_s * size / first.batch_size
        if checkpointing and not base.model.supports_gradient_checkpointing:
            return
        if work.clock() + needed_s > stop_at:
            return
        found = _measure(work, base, size, checkpointing=checkpointing, stop_at=stop_at)
        if found is not None and found.batch_size == size:
            yield found


def _measure(
    work: Work, base: Base, size: int, *, checkpointing: bool, stop_at: float | None
) -> StepMeasurement | None:
    """Take a few steps on all weights; `stop_at` None takes them whatever the time."""
    rank = min(_MEASURED_RANK, work.terms.max_rank)
    settings = StepSettings(work.terms.sequence_length, _MEASURED_RATE, 0, size, checkpointing)

    def attempt() -> StepMeasurement:
        with attached(base, {TRAINED: probe_factors(base, rank, work.terms.seed)}, scale=1.0) as on_base:
            work.meter.release()
            work.meter.reset()
            trained = train(
                base,
                on_base,
                _measured_groups(work, size),
                settings=settings,
                seed=work.terms.seed,
                watch=Watch(work.clock, float("inf") if stop_at is None else stop_at, work.meter),
            )
            seconds = _evaluation_example_s(work, base, size) if stop_at is None else None
            return measurement(base, on_base, trained, batch_size=size, meter=work.meter, evaluation_example_s=seconds)

    try:
        return _if_it_fits(attempt, work.meter)
    except OutOfTimeError:
        return None
    finally:
        reset_head(base)


def _measured_groups(work: Work, size: int) -> list[list[Encoded]]:
    """The longest examples of a sample first, for the peak, then a typical draw, for the time."""
    drawn = [work.encoder.encode(e) for e in sample(work.train, _SAMPLE, work.terms.seed)]
    longest = sorted(drawn, key=lambda e: len(e.ids), reverse=True)[:size]
    filled = (longest * size)[:size]
    return [filled, *work.groups(work.train, size, (STEPS - 1) * size)]


def _evaluation_example_s(work: Work, base: Base, size: int) -> float:
    examples = sample(work.held_out, max(_EVALUATED_EXAMPLES, _EVALUATED_BATCHES * size), work.terms.seed)
    groups = work.groups(examples, size, len(examples))
    started = work.clock()
    metrics = evaluate(base, groups, sequence_length=work.terms.sequence_length, meter=work.meter)
    return max(1e-9, (work.clock() - started) / metrics.examples)
