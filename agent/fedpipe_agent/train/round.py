"""One round of a run: metrics before, training, the update, and what is said of it.

Owns what a round keeps while it moves from a base that was too large to one of fewer bits. Which base that is, and that
it is free before the next is loaded, is `worker.py`'s.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedpipe_agent.train.adapters import Attached, attached, read_plan, write_update
from fedpipe_agent.train.base import Base
from fedpipe_agent.train.data import Encoded, Encoder, batches, sample
from fedpipe_agent.train.errors import ModelError, TrainerError
from fedpipe_agent.train.evaluate import evaluate
from fedpipe_agent.train.loop import Course, Watch, measurement, train, warm_up_steps, write_reserve_s
from fedpipe_agent.train.memory import Meter
from fedpipe_agent.train.refresher import Refresher
from fedpipe_agent.train.step import StepSettings
from fedpipe_agent.trainer_protocol import EvaluatedReply, EvaluateRequest, Reply, TrainedReply, TrainRequest
from fedpipe_data.examples import ClassificationExample, Dataset, Example
from fedpipe_profiles.plan import EVALUATION_PART, Plan
from fedpipe_wire.message_values import JobTerms, Metrics

_MOST_ACTIONS = 60
"""As many as a report may have."""


class Progress(Protocol):
    """Told how far a stage is."""

    def __call__(self, stage: str, done: int, of: int, loss: float | None = None) -> None:
        """`done` of `of` examples; 0 of 0 where nobody knows."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all rounds of a run are worked with; `clock` in monotonic seconds."""

    terms: JobTerms
    dataset: Dataset[Example]
    meter: Meter
    refresher: Refresher
    clock: Callable[[], float]
    say: Callable[[Reply], None]
    progress: Progress


@dataclass(slots=True)
class Round:
    """One round's training, on whatever bases: what is done on one that was too large goes on on the next.

    Attributes:
        bench: What it is worked with.
        request: What is to be done.
        stop_at: By the clock, when it must be done.
        settings: How steps are taken now; its `actions` say what was done about memory.
    """

    bench: Bench
    request: TrainRequest
    stop_at: float
    settings: StepSettings = field(init=False)
    _course: Course | None = None
    _evaluation_s: float | None = None

    def __post_init__(self) -> None:
        """Begin as the plan says."""
        plan = self.request.plan
        self.settings = StepSettings(
            sequence_length=plan.sequence_length,
            learning_rate=plan.learning_rate,
            warm_up_steps=warm_up_steps(-(-plan.examples // plan.batch_size)),
            micro_batch=plan.batch_size,
            checkpointing=plan.gradient_checkpointing,
            label_counts=_label_counts(self.bench, self.request.labels),
        )

    def on(self, base: Base) -> TrainedReply:
        """Do what is left of the round, and write the update.

        Returns:
            The reply, without the time that the whole request took.

        Raises:
            MemoryExceededError: if it does not fit; so do other errors that `is_out_of_memory`.
            OutOfTimeError: if there is no time for even one step.
            TrainerError: if the plan, the adapter or the disk cannot be used.
        """
        bench, plan = self.bench, self.request.plan
        began, as_planned, evaluated_s = bench.clock(), not self.settings.actions, 0.0
        course = self._course = self._course or Course(self._batches(base))
        with attached(base, read_plan(base, self.request.adapter, plan), scale=plan.scale) as on_base:
            if not on_base.trainable:
                raise ModelError("the plan trains no weight and the model has no head: nothing to do")
            bench.meter.release()
            bench.meter.reset()
            if self._evaluation_s is None:
                started = bench.clock()
                stop_at = started + EVALUATION_PART * (self.stop_at - started)
                metrics = say_metrics(bench, base, self.request, stop_at)
                evaluated_s = bench.clock() - started
                self._evaluation_s = evaluated_s / metrics.examples
            # of steps at other bits, or of a base that is not this one, it would say nothing of these
            reply = self._train(base, on_base, course, max(1e-9, self._evaluation_s) if as_planned else None)
            beside = on_base.factors
        if as_planned and not reply.out_of_memory:
            usual_s = evaluated_s + reply.steps * reply.measurement.step_s * _micro_batches(plan, reply)
            others = {"other_s": max(0.0, bench.clock() - began - usual_s)}
            reply = reply.model_copy(update={"measurement": reply.measurement.model_copy(update=others)})
        return bench.refresher.after(base, beside, self.request, reply, self.stop_at)

    def _train(self, base: Base, on_base: Attached, course: Course, evaluation_s: float | None) -> TrainedReply:
        bench, plan, settings = self.bench, self.request.plan, self.settings
        watch = Watch(
            clock=bench.clock,
            stop_at=self.stop_at - write_reserve_s(on_base.trainable_parameters),
            meter=bench.meter,
            said=lambda done, loss: bench.progress("training", done, plan.examples, loss),
        )
        trained = train(base, on_base, course, settings=settings, seed=plan.seed, watch=watch)
        shrunk = bool(settings.actions)
        if trained.examples < plan.examples:
            settings.actions.append(f"out of time after {trained.examples} of {plan.examples} examples")
        figures = measurement(
            base,
            on_base,
            trained,
            batch_size=plan.batch_size,
            meter=bench.meter,
            evaluation_example_s=evaluation_s,
        )
        try:
            write_update(self.request.update, on_base)
        except OSError as error:
            raise TrainerError(f"the update cannot be written ({error.strerror}): free space on its disk") from error
        return TrainedReply(
            examples=trained.examples,
            steps=trained.steps,
            train_loss=trained.loss,
            measurement=figures,
            compute_s=0.0,
            actions=tuple(settings.actions[:_MOST_ACTIONS]),
            out_of_memory=shrunk,
        )

    def _batches(self, base: Base) -> Iterator[list[Encoded]]:
        plan = self.request.plan
        encoder = Encoder(base.tokenizer, base.labels, plan.sequence_length)
        train_on = self.bench.dataset.train
        return iter(batches(train_on, encoder, batch_size=plan.batch_size, wanted=plan.examples, seed=plan.seed))


def say_metrics(bench: Bench, base: Base, request: TrainRequest | EvaluateRequest, stop_at: float) -> Metrics:
    """Evaluate what is attached to `base` on the held-out examples, until `stop_at` by the clock, and say it."""
    plan, terms = request.plan, bench.terms
    examples = sample(bench.dataset.held_out, terms.evaluation_examples, terms.seed)
    encoder = Encoder(base.tokenizer, base.labels, plan.sequence_length)
    groups = list(batches(examples, encoder, batch_size=plan.batch_size, wanted=len(examples), seed=terms.seed))
    metrics = evaluate(
        base,
        groups,
        sequence_length=plan.sequence_length,
        meter=bench.meter,
        may_go_on=lambda: bench.clock() < stop_at,
        said=lambda done: bench.progress("evaluating", done, len(examples)),
    )
    bench.say(EvaluatedReply(metrics=metrics))
    return metrics


def _label_counts(bench: Bench, labels: Sequence[str]) -> tuple[int, ...]:
    """Training examples of each label, if the job wants them kept out of the loss; empty otherwise."""
    if not bench.terms.balance_labels:
        return ()
    counts = Counter(e.label for e in bench.dataset.train if isinstance(e, ClassificationExample))
    return tuple(counts[label] for label in labels)


def _micro_batches(plan: Plan, reply: TrainedReply) -> float:
    """Measured parts of a step per step of the plan: more than one where memory ran out."""
    return max(1.0, plan.batch_size / reply.measurement.batch_size)
