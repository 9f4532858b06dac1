"""What a run's trainer does after a round that is to measure the contribution again.

Owns the run's account from round to round; it is gone with the process, and so is what it saved up. How a refresh is
made, and what it may take, is `refresh.py`'s.
"""

from collections.abc import Callable, Mapping, Sequence

from fedpipe_agent.train.adapters import Factors
from fedpipe_agent.train.base import Base
from fedpipe_agent.train.data import Encoded, Encoder, Example, batches
from fedpipe_agent.train.memory import Meter
from fedpipe_agent.train.refresh import FIRST_FIXED_S, Account, Batches, Refresh, not_measured, refresh
from fedpipe_agent.trainer_protocol import TrainedReply, TrainRequest
from fedpipe_profiles.plan import Plan
from fedpipe_wire.message_values import JobTerms


class Refresher:
    """One run's.

    Args:
        terms: Of the job.
        examples: To score on, as to train on.
        clock: Monotonic seconds.
        meter: Of the device's memory.
    """

    def __init__(self, terms: JobTerms, examples: Sequence[Example], clock: Callable[[], float], meter: Meter) -> None:
        self._terms, self._examples = terms, examples
        self._clock, self._meter = clock, meter
        self._account: Account | None = None

    def after(
        self,
        base: Base,
        beside: Mapping[str, Mapping[str, Factors]],
        request: TrainRequest,
        reply: TrainedReply,
        stop_at: float,
    ) -> TrainedReply:
        """The reply with the contribution measured again, where the request asks for it and its share allows it.

        Args:
            base: Without adapters.
            beside: Those just trained, and their side path.
            request: What was trained.
            reply: What came of it; its update is written.
            stop_at: By the clock, when the round must be done.
        """
        figures = reply.measurement
        example_s = figures.step_s / figures.batch_size
        account = self._account or Account(FIRST_FIXED_S * len(base.weights))
        self._account = account.after_training(reply.examples, reply.examples * example_s)
        if request.score_batches == 0:
            return reply
        # what fitted with checkpointing may not fit without, and scoring has none
        largest = 1 if figures.gradient_checkpointing else figures.batch_size
        how = self._how(base, request.plan, largest, stop_at)
        try:
            found = refresh(base, beside, self._account, how, asked=request.score_batches, example_s=example_s)
        except Exception as error:  # noqa: BLE001 - the update is written: no fault of a refresh may lose it
            return reply.model_copy(update={"actions": (*reply.actions, not_measured(error))})
        self._account = found.account
        actions = (*reply.actions, found.said) if found.said else reply.actions
        return reply.model_copy(
            update={"contribution": found.contribution, "score_s": found.seconds, "actions": actions}
        )

    def _how(self, base: Base, plan: Plan, largest: int, stop_at: float) -> Refresh:
        encoder = Encoder(base.tokenizer, base.labels, plan.sequence_length)

        def groups(chosen: Batches) -> list[list[Encoded]]:
            wanted = chosen.count * chosen.size
            return list(batches(self._examples, encoder, batch_size=chosen.size, wanted=wanted, seed=plan.seed))

        return Refresh(
            method=self._terms.contribution,
            max_rank=self._terms.max_rank,
            seed=plan.seed,
            sequence_length=plan.sequence_length,
            scale=plan.scale,
            largest_batch=largest,
            groups=groups,
            clock=self._clock,
            stop_at=stop_at,
            meter=self._meter,
        )
