"""The deadline of a round: given, or the one with the most progress per second over the fleet.

A short deadline wastes the rounds' fixed costs and leaves slow devices out; a long one lets fast devices wait. Progress
is first order: the mean of what each device's choice is worth, weighted by the examples that a round asks it for.

How many examples a device has, and how fast it is, is its own word. What is beyond a round's examples weighs nothing,
and the deadline stays between what the median device needs for its smallest round and a multiple of what that one needs
for its full round: while fewer than half lie, both are bounded by honest figures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import NamedTuple

import numpy as np

from fedpipe_profiles.planning.options import TIME_SLACK, Prepared
from fedpipe_profiles.planning.problem import Increments
from fedpipe_profiles.planning.search import best_choice

IDLE_DEADLINE_S = 60.0
"""Deadline of a round in which no device can carry anything, at any deadline."""

LONGEST_DEADLINE_S = 1e8
"""Three years: a device that needs longer gets no plan."""

REACH = 4
"""An automatic deadline is at most so many times as long as the median device's full round."""

_GRID = 10


class CurvePoint(NamedTuple):
    """A deadline and the progress of a round that has it: 1 if every device did all it could be asked for."""

    deadline_s: float
    progress: float

    @property
    def progress_per_s(self) -> float:
        """What the choice of the deadline maximises."""
        return self.progress / self.deadline_s


@dataclass(frozen=True, slots=True)
class Member:
    """A device of the fleet, and how many there are that are just like it."""

    prepared: Prepared
    count: int

    @property
    def weight(self) -> float:
        """Its weight in the sum: the examples that a round can have of it, not those that it says it has."""
        return float(self.count * self.prepared.wanted)


def progress(increments: Increments, fleet: Sequence[Member], deadline_s: float) -> float:
    """Weighted mean of the devices' objectives at a deadline, by the greedy."""
    total = sum(member.weight for member in fleet)
    reached = 0.0
    for member in fleet:
        prepared = member.prepared
        choice = best_choice(
            increments,
            prepared.options,
            prepared.budget(deadline_s),
            prepared.wanted,
            solves=0,
        )
        reached += member.weight * (choice.objective if choice else 0.0)
    return reached / total


def choose_deadline(increments: Increments, fleet: Sequence[Member]) -> tuple[float, tuple[CurvePoint, ...]]:
    """The deadline with the most progress per second, and the curve it was chosen from.

    The candidates are a geometric grid from the fastest smallest round to the slowest full one, and the times at which
    single devices are done, because there the curve bends; within what the median device bears out. The lower of two
    medians counts: of two devices, the slower one does not make the other wait.

    Returns:
        Deadline in seconds, and the curve by rising deadline; `IDLE_DEADLINE_S` and no curve if no device can train.
    """
    shortest: list[float] = []
    full: list[float] = []
    for member in fleet:
        prepared = member.prepared
        budget = prepared.budget(LONGEST_DEADLINE_S)
        smallest = prepared.smallest_round_s(increments.first)
        choice = best_choice(increments, prepared.options, budget, prepared.wanted, solves=0)
        if smallest is None or choice is None:
            continue  # not even in the longest time
        shortest += [_usable(smallest)] * member.count
        full += [_usable(choice.option.round_s(choice.steps, choice.parameters))] * member.count
    if not full:
        return IDLE_DEADLINE_S, ()
    low = median_low(shortest)
    high = max(low, min(max(full), REACH * median_low(full)))
    bends = np.quantile(full, np.linspace(0, 1, min(_GRID, len(full))), method="nearest").clip(low, high)
    deadlines = sorted({*np.geomspace(low, high, _GRID).tolist(), *bends.tolist()})
    curve = tuple(CurvePoint(d, progress(increments, fleet, d)) for d in deadlines)
    best = max(curve, key=lambda point: (point.progress_per_s, -point.deadline_s))
    return best.deadline_s, curve


def _usable(seconds: float) -> float:
    """The deadline of which `seconds` are usable, rounded up to a millisecond."""
    return math.ceil(seconds / (1 - TIME_SLACK) * 1000 + 1) / 1000
