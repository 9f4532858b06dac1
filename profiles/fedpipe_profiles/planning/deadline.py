"""The deadline of a round: given, or the one with the most progress per second over the fleet.

A short deadline wastes the rounds' fixed costs and leaves slow devices out; a long one lets fast devices wait. Progress
is first order: the mean of what each device's choice is worth, weighted by the examples that a round asks it for.

How many examples a device has, and how fast it is, is its own word. What is beyond a round's examples weighs nothing,
and the deadline stays between what the median device needs for its smallest round and a multiple of what that one needs
for its full round: while fewer than half lie, both are bounded by honest figures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low

import numpy as np

from fedpipe_profiles.planning.evaluating import TIME_SLACK
from fedpipe_profiles.planning.options import Prepared
from fedpipe_profiles.planning.problem import Increments
from fedpipe_profiles.planning.table import Look, look

IDLE_DEADLINE_S = 60.0
"""Deadline of a round in which no device can carry anything, at any deadline."""

LONGEST_DEADLINE_S = 1e8
"""Three years: a device that needs longer gets no plan."""

REACH = 4
"""An automatic deadline is at most so many times as long as the median device's full round."""

_GRID = 10
_CLOSER = 8


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A deadline and the progress of a round that has it: 1 if every device did all it could be asked for.

    `under_training` has every agent's share of the wanted examples that the deadline leaves out, from 0 to 1: 1 is an
    agent without a plan.
    """

    deadline_s: float
    progress: float
    under_training: Mapping[str, float] = field(default_factory=dict)

    @property
    def progress_per_s(self) -> float:
        """What the choice of the deadline maximises."""
        return self.progress / self.deadline_s


@dataclass(frozen=True, slots=True)
class Member:
    """A device of the fleet, and the names of all that are just like it."""

    prepared: Prepared
    names: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.names)

    @property
    def weight(self) -> float:
        """Its weight in the sum: the examples that a round can have of it, not those that it says it has."""
        return float(self.count * self.prepared.wanted)

    def looks(self, increments: Increments, deadlines: Sequence[float]) -> list[Look | None]:
        """What a quick look finds for each deadline."""
        prepared = self.prepared
        return look(
            increments.frontier,
            prepared.table,
            prepared.budget(LONGEST_DEADLINE_S),
            [prepared.budget(deadline_s).time_s for deadline_s in deadlines],
            prepared.wanted,
            prepared.least,
        )


def curve_point(fleet: Sequence[Member], deadline_s: float, reached: Sequence[tuple[float, float]]) -> CurvePoint:
    """The point of a deadline at which the members reach these objectives, with so many examples of each."""
    total = sum(member.weight for member in fleet)
    progress = sum(member.weight * objective for member, (objective, _) in zip(fleet, reached, strict=True))
    left_out = {
        name: 1.0 - examples / member.prepared.wanted
        for member, (_, examples) in zip(fleet, reached, strict=True)
        for name in member.names
    }
    return CurvePoint(deadline_s, progress / total, left_out)


def _points(increments: Increments, fleet: Sequence[Member], deadlines: Sequence[float]) -> list[CurvePoint]:
    seen = [
        [(look.objective, look.examples) if look else (0.0, 0.0) for look in m.looks(increments, deadlines)]
        for m in fleet
    ]
    return [
        curve_point(fleet, deadline_s, [looks[place] for looks in seen]) for place, deadline_s in enumerate(deadlines)
    ]


def choose_deadline(increments: Increments, fleet: Sequence[Member]) -> tuple[float, tuple[CurvePoint, ...]]:
    """The deadline with the most progress per second, and the curve it was chosen from.

    The candidates are a geometric grid from the fastest smallest round to the slowest full one, and the times at which
    single devices are done, because there the curve bends; within what the median device bears out; then some more
    around the best. The lower of two medians counts: of two devices, the slower one does not make the other wait.
    Deadlines too short for a device to train its least share are left out, if a longer one of these would do for it.

    Returns:
        Deadline in seconds, and the curve by rising deadline; `IDLE_DEADLINE_S` and no curve if no device can train.
    """
    shortest: list[float] = []
    full: list[float] = []
    floors: list[float] = []
    for member in fleet:
        prepared = member.prepared
        smallest = prepared.smallest_round_s(increments.first)
        longest = member.looks(increments, (LONGEST_DEADLINE_S,))[0]
        if smallest is None or longest is None:
            continue  # not even in the longest time
        option = prepared.options[longest.option]
        parameters = float(increments.frontier.by_size.parameters[longest.count])
        shortest += [_usable(smallest)] * member.count
        full += [_usable(option.needed_s(longest.steps, parameters))] * member.count
        least = prepared.smallest_round_s(increments.first, prepared.least) if prepared.least else None
        if least is not None:
            floors.append(_usable(least))
    if not full:
        return IDLE_DEADLINE_S, ()
    low = median_low(shortest)
    high = max(low, min(max(full), REACH * median_low(full)))
    bends = np.quantile(full, np.linspace(0, 1, min(_GRID, len(full))), method="nearest").clip(low, high)
    needed = sorted(floor for floor in floors if low < floor <= high)
    admissible = needed[-1] if needed else low
    deadlines = sorted({*np.geomspace(low, high, _GRID).tolist(), *bends.tolist(), *needed[-1:]})
    curve = _points(increments, fleet, deadlines)
    best = _best(curve, admissible)
    place = deadlines.index(best.deadline_s)
    around = deadlines[max(0, place - 1)], deadlines[min(len(deadlines) - 1, place + 1)]
    closer = sorted({*np.geomspace(*around, _CLOSER).tolist()} - {*deadlines})
    curve += _points(increments, fleet, closer)
    curve.sort(key=lambda point: point.deadline_s)
    return _best(curve, admissible).deadline_s, tuple(curve)


def _best(curve: Sequence[CurvePoint], admissible: float) -> CurvePoint:
    enough = [point for point in curve if point.deadline_s >= admissible]
    return max(enough, key=lambda point: (point.progress_per_s, -point.deadline_s))


def _usable(seconds: float) -> float:
    """The deadline of which `seconds` are usable, rounded up to a millisecond."""
    return math.ceil(seconds / (1 - TIME_SLACK) * 1000 + 1) / 1000
