"""What the planner is asked: one job, and one problem per device.

Owns the frozen inputs and their checks. Never decides anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedpipe_profiles.costs.memory import MemoryCoefficients, MemoryRow
from fedpipe_profiles.costs.step import StepSetting, Task
from fedpipe_profiles.device import Bits, DeviceProfile
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import StepMeasurement, TransferMeasurement
from fedpipe_profiles.planning.frontier import Floats, Frontier, Integers


class PlanningError(ValueError):
    """The planner was asked something that has no answer; the message says which input to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProblem:
    """One device, as far as a plan depends on it."""

    profile: DeviceProfile
    measurements: tuple[StepMeasurement, ...]
    """Steps that it really took, oldest first; may be empty."""
    train_examples: int
    held_out_examples: int
    mean_tokens: float
    """Padded tokens per example, mean over its own data."""
    memory_cap_bytes: int | None = None
    """A predicted peak must stay below this; set after the device reported an out-of-memory error."""
    up_budget_bytes: int | None = None
    """The most that one update may have, where the link is paid for or shared."""
    transfers: tuple[TransferMeasurement, ...] = ()
    """What its rounds' transfers really took, oldest first."""
    loaded_bits: Bits | None = None
    """Bit width of the base that its trainer still holds, if any: loading that one costs no time."""

    def __post_init__(self) -> None:
        if self.train_examples < 1 or self.mean_tokens <= 0:
            raise PlanningError(
                f"agent {self.profile.agent} has {self.train_examples} training examples of "
                f"{self.mean_tokens} tokens: leave agents without data out of the round"
            )


@dataclass(frozen=True)
class Increments:
    """Every single step up the rank ladder that a device may take, `(K,)` each.

    `previous` is the index of the step below on the same weight, or -1; `gains` are shares of the total contribution.
    """

    names: tuple[str, ...]
    weight: Integers
    previous: Integers
    ranks: Floats
    parameters: Floats
    gains: Floats

    @cached_property
    def below(self) -> Floats:
        """The rank from which each step begins, `(K,)`."""
        below = np.zeros(len(self.ranks))
        for index, previous in enumerate(self.previous.tolist()):
            if previous >= 0:
                below[index] = below[previous] + self.ranks[previous]
        return below

    @cached_property
    def frontier(self) -> Frontier:
        """The same increments, ordered once for all devices."""
        return Frontier(self.previous, self.ranks, self.parameters, self.gains)

    @cached_property
    def first(self) -> tuple[float, float]:
        """Parameters and ranks of the smallest step that a device can begin with."""
        begin = np.flatnonzero(self.previous < 0)
        smallest = begin[np.argmin(self.parameters[begin])]
        return float(self.parameters[smallest]), float(self.ranks[smallest])


@dataclass(frozen=True, kw_only=True)
class JobProblem:
    """The job's side of planning.

    `curves` names the weights that the global adapter covers: `curves[weight][k - 1]` is the contribution of rank k,
    averaged over the agents.

    Raises:
        PlanningError: with all problems of the job at once.
    """

    shape: ModelShape
    curves: Mapping[str, tuple[float, ...]]
    rank_ladder: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    global_rank: int
    sequence_length: int
    task: Task
    num_labels: int = 0
    examples_per_round: int
    evaluation_examples: int
    learning_rate: float
    scale: float
    seed: int
    needs_download: bool = True
    least_share: float = 0.0
    """Of the examples wanted of a device, at least this share is trained wherever that is possible; 0 to 1."""

    def __post_init__(self) -> None:
        known = {weight.name for weight in self.shape.weights}
        unknown = sorted(self.curves.keys() - known)
        smallest = min(self.rank_ladder, default=0)
        used = [rank for rank in self.rank_ladder if rank <= self.global_rank]
        widest = max((min(w.d_in, w.d_out) for w in self.shape.weights if w.name in self.curves), default=0)
        problems = {
            f"no rank of the ladder {list(self.rank_ladder)} is from 1 to the global rank "
            f"{self.global_rank}: add one": not 1 <= smallest <= self.global_rank,
            f"batch sizes {list(self.batch_sizes)}: give at least one, each at least 1": min(
                self.batch_sizes, default=0
            )
            < 1,
            f"examples per round is {self.examples_per_round}: at least 1 is needed": (self.examples_per_round < 1),
            f"the ladder {list(self.rank_ladder)} begins above {widest}, the smaller width of the model's widest "
            f"weight, and none can have a larger rank: lower it": bool(widest) and min(used, default=0) > widest,
            f"least share is {self.least_share}: give a number from 0 to 1": not 0 <= self.least_share <= 1,
            f"the model has no weight {', '.join(unknown[:3])}: score the contribution with this model": bool(unknown),
            "no weight has any contribution: every gradient was zero, check data and labels": not any(
                value > 0 for curve in self.curves.values() for value in curve
            ),
        }
        if any(problems.values()):
            raise PlanningError("; ".join(text for text, wrong in problems.items() if wrong))

    @cached_property
    def increments(self) -> Increments:
        """The ladder steps of all weights, in the order of the curves; steps that gain nothing are left out."""
        ladder = sorted({rank for rank in self.rank_ladder if rank <= self.global_rank})
        total = sum(_at(curve, self.global_rank) for curve in self.curves.values())
        rows: list[tuple[int, int, float, float, float]] = []
        for index, (name, curve) in enumerate(self.curves.items()):
            shape = self.shape.weight(name)
            below, previous = 0, -1
            for rank in ladder:
                gain = _at(curve, rank) - _at(curve, below)
                if gain <= 0:
                    continue
                added = rank - below
                rows.append((index, previous, added, added * (shape.d_in + shape.d_out), gain / total))
                below, previous = rank, len(rows) - 1
        if not rows:
            raise PlanningError(
                f"no rank of the ladder {ladder} gains anything on any weight, larger ones do: add a larger rank to "
                "adapter.rank_ladder, or score the contribution again"
            )
        weight, before, ranks, parameters, gains = zip(*rows, strict=True)
        return Increments(
            tuple(self.curves),
            np.array(weight, dtype=np.int64),
            np.array(before, dtype=np.int64),
            np.array(ranks, dtype=np.float64),
            np.array(parameters, dtype=np.float64),
            np.array(gains, dtype=np.float64),
        )

    @cached_property
    def unmeasured_rows(self) -> dict[tuple[StepSetting, MemoryCoefficients], tuple[MemoryRow, ...]]:
        """Memory rows already computed for devices that have not measured a step."""
        return {}

    @cached_property
    def adapter_parameters(self) -> int:
        """Parameters of the whole global adapter, without the parameters trained whole."""
        widths = {weight.name: weight.d_in + weight.d_out for weight in self.shape.weights}
        return self.global_rank * sum(widths[name] for name in self.curves)

    @property
    def down_bytes(self) -> int:
        """Bytes of the broadcast: the whole global adapter and the head, in fp32."""
        if not self.needs_download:
            return 0
        return 4 * (self.adapter_parameters + self.shape.head_parameters)


def _at(curve: tuple[float, ...], rank: int) -> float:
    """The curve's value at a rank; a curve ends where it stops rising."""
    return 0.0 if rank == 0 or not curve else curve[min(rank, len(curve)) - 1]
