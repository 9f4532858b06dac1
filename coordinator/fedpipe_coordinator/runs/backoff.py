"""What follows from memory that ran out: a cap on the predicted peak, which rises again step by step.

Pure. Each failure doubles the rounds until the next step up, so a device that lies about its memory, or that the model
is wrong about, fails ever more rarely, and one that was disturbed for a while comes back.
"""

from fractions import Fraction

from pydantic import Field, NonNegativeInt

from fedpipe_profiles.device import Bits
from fedpipe_profiles.plan import Plan
from fedpipe_profiles.values import Value
from fedpipe_wire.agent_messages import Trained

DROP = Fraction(4, 5)
"""The cap after a failure, as a share of the peak that was predicted for the plan that failed."""
RISE = Fraction(28, 25)
"""One step up: two of them lead back to just above what failed."""
CLEAR = Fraction(5, 4)
"""A cap this far above what failed is no cap any more."""
FIRST_PATIENCE = 2
MOST_PATIENCE = 64
FORGETTING = 8
"""After so many times its patience without a cap or a failure, a device's failures are forgotten."""


class Backoff(Value):
    """A device's failures by memory; the empty one is of a device that never failed."""

    failed_bytes: NonNegativeInt = Field(default=0, description="the predicted peak of the plan that failed last")
    most_bits: Bits | None = Field(default=None, description="no more bits than these, until the cap has risen a step")
    setting: tuple[Bits, int, bool] | None = Field(
        default=None, description="bits, batch and checkpointing that failed last, until the cap has risen a step"
    )
    patience: NonNegativeInt = Field(default=0, description="good rounds from one step up to the next")
    calm: NonNegativeInt = Field(default=0, description="good rounds since the last step, or since the cap is gone")
    fresh: bool = Field(default=False, description="the failure was not planned for yet")


def fell_short(plan: Plan, trained: Trained) -> bool:
    """Whether a trainer that finished had to take smaller steps than its plan, or fewer bits."""
    return trained.out_of_memory or trained.measurement.bits < plan.bits


def ran_out(before: Backoff, cap: int | None, plan: Plan, trained: Trained | None = None) -> tuple[Backoff, int]:
    """The backoff and the cap after `plan` did not fit; `trained` is what fitted in its stead, if anything did."""
    failed = plan.predicted.peak_bytes
    lowered = int(DROP * failed)
    most_bits = before.most_bits
    if trained is not None:
        lowered = max(lowered, min(trained.measurement.peak_bytes, failed - 1))
        if trained.measurement.bits < plan.bits:
            most_bits = trained.measurement.bits
    lowered = max(1, lowered if cap is None else min(lowered, cap))
    patience = min(MOST_PATIENCE, 2 * before.patience) if before.patience else FIRST_PATIENCE
    setting = plan.bits, plan.batch_size, plan.gradient_checkpointing
    after = Backoff(failed_bytes=failed, most_bits=most_bits, setting=setting, patience=patience, fresh=True)
    return after, lowered


def as_large(backoff: Backoff, plan: Plan) -> bool:
    """Whether a plan needs as much for its base and its examples as the one that failed, whatever its ranks.

    That plan needed more than was predicted, and nothing says that its ranks were why.
    """
    if backoff.setting is None:
        return False
    bits, batch_size, checkpointing = backoff.setting
    return plan.bits >= bits and plan.batch_size >= batch_size and plan.gradient_checkpointing <= checkpointing


def eased(before: Backoff, cap: int | None, *, good: bool) -> tuple[Backoff, int | None]:
    """Both at the planning of a round; `good`: the device trained in the round before, or was left idle."""
    if before.fresh:
        return before.model_copy(update={"fresh": False}), cap
    if not good or (cap is None and not before.patience):
        return before, cap
    calm, patience = before.calm + 1, max(FIRST_PATIENCE, before.patience)
    if cap is None:
        return (Backoff() if calm >= FORGETTING * patience else before.model_copy(update={"calm": calm})), None
    if calm < patience:
        return before.model_copy(update={"calm": calm}), cap
    raised = int(RISE * cap) + 1
    # a cap of an older store does not tell what failed: that was a quarter above it at the most
    failed = before.failed_bytes or int(cap / DROP)
    left = Backoff(failed_bytes=failed, patience=patience)
    return left, None if raised > CLEAR * failed else raised
