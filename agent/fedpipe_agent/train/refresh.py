"""Measuring the contribution again after training, for at most a small share of what training took.

Owns the account of that share and the refresh itself. A refresh is never worth a round: where it does not fit into the
account, the deadline or the memory, it is left out, and the reply says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import ValidationError

from fedpipe_agent.train.adapters import Factors
from fedpipe_agent.train.base import Base
from fedpipe_agent.train.contribution_methods import METHODS, measure_contribution
from fedpipe_agent.train.data import Encoded
from fedpipe_agent.train.errors import MemoryExceededError, ModelError
from fedpipe_agent.train.memory import Meter, is_out_of_memory
from fedpipe_profiles.contribution import Contribution, ContributionMethod

SHARE = 0.03
"""Of the seconds, and of the examples, that were trained since the run was opened.

A scored example goes forward and backward once through the whole model, as a trained one does, without the optimizer.
"""

FIRST_FIXED_S = 0.02
"""What a weight's probe is taken to cost beside the batches, in seconds, until a refresh has measured it: cautious."""

_NOT = "contribution not measured again: "


@dataclass(frozen=True, slots=True)
class Batches:
    """How many batches of how many examples a refresh scores."""

    count: int
    size: int


@dataclass(frozen=True, slots=True)
class Account:
    """What a run has trained and scored on this device so far; scoring at the run's start is not part of it.

    `fixed_s` is what a refresh takes beside its batches.
    """

    fixed_s: float
    trained_examples: int = 0
    trained_s: float = 0.0
    scored_examples: int = 0
    scored_s: float = 0.0

    def after_training(self, examples: int, seconds: float) -> "Account":
        """The account with a round's training added."""
        return replace(
            self, trained_examples=self.trained_examples + examples, trained_s=self.trained_s + max(0.0, seconds)
        )

    def after_scoring(self, examples: int, seconds: float, fixed_s: float) -> "Account":
        """The account with a refresh added; what it took too much, later ones may not take."""
        return replace(
            self,
            scored_examples=self.scored_examples + examples,
            scored_s=self.scored_s + max(0.0, seconds),
            fixed_s=max(0.0, fixed_s),
        )

    @property
    def seconds(self) -> float:
        """What a refresh may take now."""
        return max(0.0, SHARE * self.trained_s - self.scored_s)

    def examples(self, example_s: float) -> int:
        """What a refresh may score now, every pass over an example counted.

        By examples trained, so that devices that trained alike score alike; by seconds only where those allow less.
        """
        by_time = (self.seconds - self.fixed_s) / max(example_s, 1e-9)
        return max(0, min(int(SHARE * self.trained_examples) - self.scored_examples, int(min(by_time, 1e9))))

    def batches(self, method: ContributionMethod, asked: int, largest: int, example_s: float) -> Batches | None:
        """The batches of a refresh, or None where none can be had.

        Args:
            method: Which may need some passes at least.
            asked: Batches at most.
            largest: Examples of a batch at most.
            example_s: What one takes.
        """
        least = METHODS[method].least_passes
        passes = max(asked, least)
        room = self.examples(example_s)
        size = max(1, min(largest, room // passes))
        return Batches(min(asked, room // size), size) if asked > 0 and room >= least * size else None


@dataclass(frozen=True, slots=True)
class Refresh:
    """What a refresh is made with. `groups` gives the batches; `stop_at` is by `clock`, in monotonic seconds."""

    method: ContributionMethod
    max_rank: int
    seed: int
    sequence_length: int
    scale: float
    largest_batch: int
    groups: Callable[[Batches], Sequence[Sequence[Encoded]]]
    clock: Callable[[], float]
    stop_at: float
    meter: Meter


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What came of it: `said` is why there are no curves."""

    account: Account
    contribution: Contribution | None = None
    seconds: float = 0.0
    said: str = ""


def refresh(
    base: Base,
    beside: Mapping[str, Mapping[str, Factors]],
    account: Account,
    how: Refresh,
    *,
    asked: int,
    example_s: float,
) -> Refreshed:
    """Measure the contribution at the model that `base` and the adapters `beside` make, as far as the account goes.

    Args:
        base: Without adapters.
        beside: The adapters just trained, and their side path.
        account: This device's so far.
        how: Method, data and limits.
        asked: Batches that are wanted at most.
        example_s: Seconds that an example of the training just done took.
    """
    chosen = account.batches(how.method, asked, how.largest_batch, example_s)
    if chosen is None:
        return Refreshed(account, said=f"{_NOT}it would take more than {SHARE:.0%} of the training")
    least_s = account.fixed_s + METHODS[how.method].passes(chosen.count) * chosen.size * example_s
    if how.clock() + least_s > how.stop_at:
        return Refreshed(account, said=f"{_NOT}the round's deadline is near")
    return _measured(base, beside, account, how, chosen)


def not_measured(error: Exception) -> str:
    """What is said of a refresh that failed; of an unforeseen error its kind only, for its text may hold data."""
    if isinstance(error, MemoryExceededError) or is_out_of_memory(error):
        return f"{_NOT}out of memory"
    if isinstance(error, ValidationError | torch.linalg.LinAlgError):  # type: ignore[attr-defined]  # not in its __all__
        return f"{_NOT}its gradients are no finite figures, or too large ones"
    return f"{_NOT}{error if isinstance(error, ModelError) else f'unexpected {type(error).__name__}'}"


def _measured(
    base: Base, beside: Mapping[str, Mapping[str, Factors]], account: Account, how: Refresh, chosen: Batches
) -> Refreshed:
    started = how.clock()
    stop_at = min(started + account.seconds, how.stop_at)
    ticks: list[float] = []
    found, said = None, ""
    try:
        found = measure_contribution(
            base,
            how.method,
            how.groups(chosen),
            max_rank=how.max_rank,
            seed=how.seed,
            sequence_length=how.sequence_length,
            beside=beside,
            scale=how.scale,
            may_go_on=lambda: how.clock() < stop_at,
            said=lambda _: ticks.append(how.clock()),
        )
    except Exception as error:  # noqa: BLE001 - the update is written: no fault of a refresh may lose it
        said = not_measured(error)
    # outside of the handlers, so that nothing refers to the failed graph
    how.meter.release()
    seconds = how.clock() - started
    batch_s = (ticks[-1] - ticks[0]) / (len(ticks) - 1) if len(ticks) > 1 else 0.0
    after = account.after_scoring(chosen.size * max(1, len(ticks)), seconds, seconds - len(ticks) * batch_s)
    return Refreshed(after, found, seconds, said)
