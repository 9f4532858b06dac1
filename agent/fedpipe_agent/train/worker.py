"""The work behind each request, on one base model that stays loaded between rounds.

Owns the order of things within a request and within its budget. Reading requests and writing replies is `serve.py`'s.
"""

import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, cast

import torch

from fedpipe_agent.train.adapters import attached, read_plan
from fedpipe_agent.train.base import Base, load_base, load_tokenizer, locate, quiet_libraries
from fedpipe_agent.train.data import Encoder, batches, mean_padded_tokens, sample
from fedpipe_agent.train.errors import MemoryExceededError, OutOfTimeError, TrainerError
from fedpipe_agent.train.fingerprint import check_fingerprint
from fedpipe_agent.train.ladder import down_the_bits, fewer_and_fewer
from fedpipe_agent.train.memory import is_out_of_memory, open_meter
from fedpipe_agent.train.refresher import Refresher
from fedpipe_agent.train.round import Bench, Round, say_metrics
from fedpipe_agent.train.score import Work, bits_in_order, score
from fedpipe_agent.train.shape import check_length, read_config, read_shape, skeleton
from fedpipe_agent.trainer_protocol import (
    EvaluateRequest,
    Opened,
    OpenRequest,
    ProgressReply,
    Reply,
    ScoredReply,
    ScoreRequest,
    Surveyed,
    SurveyRequest,
    TrainRequest,
)
from fedpipe_data.examples import load_dataset
from fedpipe_profiles.device import Bits

_SURVEYED_EXAMPLES = 1000
_PROGRESS_EVERY_S = 0.5


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
        self._bench = Bench(
            terms=request.terms,
            dataset=self._dataset,
            meter=self.meter,
            refresher=Refresher(request.terms, self._dataset.train, self._clock, self.meter),
            clock=self._clock,
            say=say,
            progress=self._progress,
        )
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
                say_metrics(self._bench, base, request, stop_at=float("inf"))

        down_the_bits(self._rungs(request), attempt, self.forget, [])

    def train(self, request: TrainRequest) -> None:
        """Say the metrics of the adapter, train, write the update, and say what was done."""
        received = self._clock()
        self._relimit(request)
        round_ = Round(self._bench, request, received + request.budget_s)
        tried = round_.settings.actions
        try:
            reply = down_the_bits(
                self._rungs(request), lambda bits: round_.on(self._load(bits, request.labels)), self.forget, tried
            )
        except OutOfTimeError as error:
            if not tried:
                raise
            # another plan of this size would end the same way: it is for memory that no time was left
            raise MemoryExceededError(f"{'; '.join(tried)}; {error}", self.meter.peak_bytes()) from None
        self._say(reply.model_copy(update={"compute_s": self._clock() - received}))

    def _rungs(self, request: TrainRequest | EvaluateRequest) -> tuple[Bits, ...]:
        """The bits to try: the plan's, and fewer ones where it does not fit."""
        return fewer_and_fewer(request.plan.bits, self._supported)

    def _relimit(self, request: TrainRequest | EvaluateRequest) -> None:
        if request.memory_limit_bytes is not None:
            self.meter.relimit(request.memory_limit_bytes)

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


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
