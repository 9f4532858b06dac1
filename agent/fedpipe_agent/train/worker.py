"""The work behind each request, on one base model that stays loaded between rounds.

Owns the order of things within a request and within its budget. Reading requests and writing replies is `serve.py`'s.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, cast

import torch

from fedpipe_agent.train.adapters import Attached, attached, read_plan, write_update
from fedpipe_agent.train.base import Base, load_base, load_tokenizer, locate, quiet_libraries
from fedpipe_agent.train.data import Encoded, Encoder, batches, mean_padded_tokens, sample
from fedpipe_agent.train.errors import MemoryExceededError, ModelError, OutOfTimeError, TrainerError
from fedpipe_agent.train.evaluate import evaluate
from fedpipe_agent.train.fingerprint import check_fingerprint
from fedpipe_agent.train.ladder import down_the_bits, fewer_and_fewer
from fedpipe_agent.train.loop import Course, Watch, measurement, train, warm_up_steps, write_reserve_s
from fedpipe_agent.train.memory import is_out_of_memory, open_meter
from fedpipe_agent.train.refresher import Refresher
from fedpipe_agent.train.score import Work, bits_in_order, score
from fedpipe_agent.train.shape import check_length, read_config, read_shape, skeleton
from fedpipe_agent.train.step import StepSettings
from fedpipe_agent.trainer_protocol import (
    EvaluatedReply,
    EvaluateRequest,
    Opened,
    OpenRequest,
    ProgressReply,
    Reply,
    ScoredReply,
    ScoreRequest,
    Surveyed,
    SurveyRequest,
    TrainedReply,
    TrainRequest,
)
from fedpipe_data.examples import ClassificationExample, load_dataset
from fedpipe_profiles.device import Bits
from fedpipe_profiles.plan import Plan
from fedpipe_wire.message_values import Metrics

EVALUATION_PART = 0.5
"""Share of the time left after loading that the evaluation may take."""

_SURVEYED_EXAMPLES = 1000
_PROGRESS_EVERY_S = 0.5
_MOST_ACTIONS = 60
"""As many as a report may have."""


@dataclass(slots=True)
class _Round:
    """One round's training, on whatever bases: what is done on one that was too large goes on on the next."""

    settings: StepSettings
    stop_at: float
    course: Course | None = None
    evaluation_s: float | None = None


class Worker:
    """One run's work.

    Args:
        request: What to work on.
        say: Takes every reply.
        clock: Monotonic seconds.

    Raises:
        TrainerError: if the model or the device cannot be used, or if the limit is too small.
        DataError: if the dataset cannot be used.
    """

    def __init__(
        self, request: OpenRequest, say: Callable[[Reply], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        quiet_libraries()
        torch.set_num_threads(request.threads)
        if request.device == "cuda" and not torch.cuda.is_available():
            raise TrainerError(
                "no CUDA device is usable here: check the driver with nvidia-smi, then restart the agent"
            )
        self._terms = request.terms
        self._device = request.device
        self._supported = tuple(cast("Bits", bits) for bits in request.supported_bits)
        self._say, self._clock = say, clock
        self._trusted = request.trust_remote_code
        self._folder = locate(request.model, trusted=self._trusted)
        check_fingerprint(self._folder, request.terms.model_sha256)  # before any code of its own is run
        self._dataset = load_dataset(request.dataset, request.terms.task)
        # the architecture's code and the tokenizer are context too, and a model that cannot be used is told at once
        config = read_config(self._folder, self._terms.task, self._dataset.labels, trusted=self._trusted)
        skeleton(config, self._terms.task, trusted=self._trusted)
        check_length(self._folder, self._terms.sequence_length, trusted=self._trusted)
        self._tokenizer()
        self.meter = open_meter(request.device, request.memory_limit_bytes)
        self._base: Base | None = None
        self._refresher = Refresher(request.terms, self._dataset.train, self._clock, self.meter)
        self._said_at = float("-inf")
        say(Opened(context_bytes=self.meter.context_bytes, versions=_versions()))

    def survey(self, _request: SurveyRequest) -> None:
        """Say shape, labels and counts."""
        shape = read_shape(self._folder, self._terms.task, self._dataset.labels, trusted=self._trusted)
        encoder = Encoder(self._tokenizer(), self._dataset.labels, self._terms.sequence_length)
        some = sample(self._dataset.train, _SURVEYED_EXAMPLES, self._terms.seed)
        groups = list(
            batches(some, encoder, batch_size=max(self._terms.batch_sizes), wanted=len(some), seed=self._terms.seed)
        )
        self._say(
            Surveyed(
                shape=shape,
                labels=self._dataset.labels,
                train_examples=len(self._dataset.train),
                held_out_examples=len(self._dataset.held_out),
                mean_tokens=mean_padded_tokens(groups, self._terms.sequence_length),
            )
        )

    def score(self, request: ScoreRequest) -> None:
        """Say the contribution of every weight, and measured steps."""
        received = self._clock()
        shape = read_shape(self._folder, self._terms.task, request.labels, trusted=self._trusted)
        work = Work(
            terms=self._terms,
            shape=shape,
            train=self._dataset.train,
            held_out=self._dataset.held_out,
            encoder=Encoder(self._tokenizer(), request.labels, self._terms.sequence_length),
            load=lambda bits: self._load(bits, request.labels),
            meter=self.meter,
            clock=self._clock,
            said=lambda done, of: self._progress("scoring", done, of),
        )
        order = bits_in_order(shape, self._terms, self._supported, self._device, self.meter.available_bytes)
        left = request.budget_s - (self._clock() - received)
        found = score(work, order, wanted_batches=request.batches, budget_s=left)
        self._say(ScoredReply(contribution=found.contribution, measurements=found.measurements))

    def evaluate(self, request: EvaluateRequest) -> None:
        """Say the metrics of the adapter."""
        self._relimit(request)

        def attempt(bits: Bits) -> None:
            base = self._load(bits, request.labels)
            with attached(base, read_plan(base, request.adapter, request.plan), scale=request.plan.scale):
                self._evaluate(base, request, stop_at=float("inf"))

        down_the_bits(self._rungs(request), attempt, self.forget, [])

    def train(self, request: TrainRequest) -> None:
        """Say the metrics of the adapter, train, write the update, and say what was done."""
        received = self._clock()
        self._relimit(request)
        attempt = _Round(self._settings(request), received + request.budget_s)
        tried = attempt.settings.actions
        try:
            reply = down_the_bits(
                self._rungs(request), lambda bits: self._train_at(bits, request, attempt), self.forget, tried
            )
        except OutOfTimeError as error:
            if not tried:
                raise
            # another plan of this size would end the same way: it is for memory that no time was left
            raise MemoryExceededError(f"{'; '.join(tried)}; {error}", self.meter.peak_bytes()) from None
        self._say(reply.model_copy(update={"compute_s": self._clock() - received}))

    def _train_at(self, bits: Bits, request: TrainRequest, attempt: "_Round") -> TrainedReply:
        base = self._load(bits, request.labels)
        loaded, beforehand, evaluated_s = self._clock(), len(attempt.settings.actions), 0.0
        if attempt.course is None:
            attempt.course = Course(self._batches(base, request))
        with attached(base, read_plan(base, request.adapter, request.plan), scale=request.plan.scale) as on_base:
            if not on_base.trainable:
                raise ModelError("the plan trains no weight and the model has no head: nothing to do")
            self.meter.release()
            self.meter.reset()
            if attempt.evaluation_s is None:
                started = self._clock()
                metrics = self._evaluate(base, request, started + EVALUATION_PART * (attempt.stop_at - started))
                evaluated_s = self._clock() - started
                attempt.evaluation_s = evaluated_s / metrics.examples
            reply = self._train(base, on_base, request, attempt)
            beside = on_base.factors
        if not beforehand and not reply.out_of_memory:
            took_s = self._clock() - loaded
            usual_s = evaluated_s + reply.steps * reply.measurement.step_s * _micro_batches(request.plan, reply)
            others = {"other_s": max(0.0, took_s - usual_s)}
            reply = reply.model_copy(update={"measurement": reply.measurement.model_copy(update=others)})
        return self._refresher.after(base, beside, request, reply, attempt.stop_at)

    def _train(self, base: Base, on_base: Attached, request: TrainRequest, attempt: "_Round") -> TrainedReply:
        plan, settings, course = request.plan, attempt.settings, attempt.course
        assert course is not None
        assert attempt.evaluation_s is not None
        before = len(settings.actions)
        watch = Watch(
            clock=self._clock,
            stop_at=attempt.stop_at - write_reserve_s(on_base.trainable_parameters),
            meter=self.meter,
            said=lambda done, loss: self._progress("training", done, plan.examples, loss),
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
            meter=self.meter,
            # of steps at other bits, or of a base that is not this one, it would say nothing of these
            evaluation_example_s=max(1e-9, attempt.evaluation_s) if before == 0 else None,
        )
        try:
            write_update(request.update, on_base)
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

    def _settings(self, request: TrainRequest) -> StepSettings:
        plan = request.plan
        return StepSettings(
            sequence_length=plan.sequence_length,
            learning_rate=plan.learning_rate,
            warm_up_steps=warm_up_steps(-(-plan.examples // plan.batch_size)),
            micro_batch=plan.batch_size,
            checkpointing=plan.gradient_checkpointing,
            label_counts=self._label_counts(request.labels),
        )

    def _batches(self, base: Base, request: TrainRequest) -> Iterator[list[Encoded]]:
        plan = request.plan
        encoder = self._encoder(base, plan.sequence_length)
        return iter(
            batches(self._dataset.train, encoder, batch_size=plan.batch_size, wanted=plan.examples, seed=plan.seed)
        )

    def _rungs(self, request: TrainRequest | EvaluateRequest) -> tuple[Bits, ...]:
        """The bits to try: the plan's, and fewer ones where it does not fit."""
        return fewer_and_fewer(request.plan.bits, self._supported)

    def _relimit(self, request: TrainRequest | EvaluateRequest) -> None:
        if request.memory_limit_bytes is not None:
            self.meter.relimit(request.memory_limit_bytes)

    def _evaluate(self, base: Base, request: TrainRequest | EvaluateRequest, stop_at: float) -> Metrics:
        plan = request.plan
        examples = sample(self._dataset.held_out, self._terms.evaluation_examples, self._terms.seed)
        encoder = self._encoder(base, plan.sequence_length)
        groups = list(
            batches(examples, encoder, batch_size=plan.batch_size, wanted=len(examples), seed=self._terms.seed)
        )
        metrics = evaluate(
            base,
            groups,
            sequence_length=plan.sequence_length,
            meter=self.meter,
            may_go_on=lambda: self._clock() < stop_at,
            said=lambda done: self._progress("evaluating", done, len(examples)),
        )
        self._say(EvaluatedReply(metrics=metrics))
        return metrics

    def _label_counts(self, labels: Sequence[str]) -> tuple[int, ...]:
        """Training examples of each label, if the job wants them kept out of the loss; empty otherwise."""
        if not self._terms.balance_labels:
            return ()
        counts = Counter(e.label for e in self._dataset.train if isinstance(e, ClassificationExample))
        return tuple(counts[label] for label in labels)

    def _encoder(self, base: Base, sequence_length: int) -> Encoder:
        return Encoder(base.tokenizer, base.labels, sequence_length)

    def _load(self, bits: Bits, labels: Sequence[str]) -> Base:
        """The base at `bits`: the one in memory where it fits the request, else a new one in its place."""
        if self._base is not None and (self._base.bits, self._base.labels) == (bits, tuple(labels)):
            return self._base
        self.forget()
        self._progress("loading", 0, 0)
        self._base = load_base(
            self._folder,
            self._terms.task,
            labels,
            bits=bits,
            device=self._device,
            seed=self._terms.seed,
            meter=self.meter,
            trusted=self._trusted,
        )
        return self._base

    def _tokenizer(self) -> Any:
        return load_tokenizer(self._folder, trusted=self._trusted)

    def forget(self) -> None:
        """Drop the base, and give its memory back."""
        self._base = None
        self.meter.release()

    def after_error(self, error: BaseException) -> None:
        """Leave nothing behind of a failed request but what is known to be sound."""
        if isinstance(error, MemoryExceededError) or not isinstance(error, TrainerError):
            self.forget()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether the error says that memory ran out."""
        return is_out_of_memory(error)

    def peak_bytes(self) -> int:
        """The most memory that was held since the request's work began."""
        return self.meter.peak_bytes()

    def _progress(self, stage: str, done: int, of: int, loss: float | None = None) -> None:
        now = self._clock()
        if now - self._said_at >= _PROGRESS_EVERY_S:
            self._said_at = now
            self._say(ProgressReply.model_validate({"stage": stage, "done": done, "of": of, "loss": loss}))


def _micro_batches(plan: Plan, reply: TrainedReply) -> float:
    """Measured parts of a step per step of the plan: more than one where memory ran out."""
    return max(1.0, plan.batch_size / reply.measurement.batch_size)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
