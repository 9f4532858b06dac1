"""What a job's rank increments gain at best within a budget, sorted once per job and kept for every device.

All limits of a plan are linear in two sums only, the parameters and the ranks that are trained. So a limit is a
direction in that plane and a budget, and whatever is sorted along a direction serves all devices. Knows no device.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_KEPT = 128
"""Directions kept in memory: a model of 224 weights and 5 ranks takes 45 KB for each."""

_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Direction:
    """The increments in falling order of gain per cost `a * parameters + c * ranks`.

    `order` is `(K,)`, the sums over its first k entries are `(K + 1,)` each. `most` sums the gains of the concave hull
    of every ladder, so that between its points it bounds what can be gained (Dantzig's bound; the order within a ladder
    is kept by the hull); `gained` sums the gains themselves.
    """

    a: float
    c: float
    order: Integers
    spent: Floats
    parameters: Floats
    ranks: Floats
    most: Floats
    gained: Floats

    def bound(self, budget: float) -> float:
        """What no choice within this budget gains more than; minus infinity where the budget is negative."""
        return float(np.interp(budget, self.spent, self.most)) if budget >= 0 else -np.inf

    def cut(self, budget: float) -> tuple[float, float]:
        """Parameters and ranks of the best choice that may hold a part of one increment."""
        reached = float(np.interp(budget, self.spent, self.parameters))
        return reached, float(np.interp(budget, self.spent, self.ranks))

    def price(self, budget: float) -> float:
        """What one more unit of cost gains, at the increment that the budget cuts."""
        last = len(self.order) - 1
        place = min(int(np.searchsorted(self.spent, budget, side="right")) - 1, last)
        if budget >= self.spent[-1]:
            return 0.0
        return float((self.most[place + 1] - self.most[place]) / (self.spent[place + 1] - self.spent[place]))


@dataclass(frozen=True, slots=True)
class Samples:
    """Some prefixes of the increments by gain per parameter, `(G,)`: how many, and their sums."""

    counts: Integers
    parameters: Floats
    ranks: Floats
    gained: Floats


@dataclass(frozen=True)
class Frontier:
    """A job's increments, `(K,)` each; see `problem.Increments`."""

    previous: Integers
    ranks: Floats
    parameters: Floats
    gains: Floats
    _kept: dict[float, Direction] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def hull(self) -> Floats:
        """Gains of the concave hull of every ladder: never below the ladder's own, and equal where that is concave."""
        hull = self.gains.copy()
        for first, after in self._ladders():
            blocks: list[tuple[float, float, int]] = []  # gain, ranks, increments: rising slopes are merged
            for item in range(first, after):
                block = (float(self.gains[item]), float(self.ranks[item]), 1)
                while blocks and blocks[-1][0] * block[1] < block[0] * blocks[-1][1]:
                    before = blocks.pop()
                    block = (before[0] + block[0], before[1] + block[1], before[2] + block[2])
                blocks.append(block)
            item = first
            for gain, ranks, count in blocks:
                if count > 1:
                    hull[item : item + count] = gain / ranks * self.ranks[item : item + count]
                item += count
        return hull

    def _ladders(self) -> list[tuple[int, int]]:
        begins = np.flatnonzero(self.previous < 0).tolist()
        return list(zip(begins, [*begins[1:], len(self.previous)], strict=True))

    @cached_property
    def widest(self) -> float:
        """The most parameters that one rank of a weight has."""
        return float((self.parameters / self.ranks).max())

    @cached_property
    def by_size(self) -> Direction:
        """The order by gain per parameter, which time and link ask for."""
        return self.sort(1.0, 0.0)

    @cached_property
    def samples(self) -> Samples:
        """All prefixes by size, or some with sizes spread evenly in ratio; the whole is always one."""
        by_size, count = self.by_size, len(self.gains)
        if count <= _SAMPLES:
            counts = np.arange(1, count + 1)
        else:
            sizes = np.geomspace(by_size.spent[1], by_size.spent[-1], _SAMPLES)
            counts = np.unique(np.append(np.searchsorted(by_size.spent, sizes).clip(1, count), count))
        counts = counts.astype(np.int64)
        return Samples(counts, by_size.parameters[counts], by_size.ranks[counts], by_size.gained[counts])

    def direction(self, a: float, c: float) -> Direction:
        """As `sort`, kept for the next device: most devices of a job share theirs."""
        key = a / (a + c)
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            found = self._kept[key] = self.sort(key, c / (a + c))
        return found

    def sort(self, a: float, c: float) -> Direction:
        """Sort by gain per cost `a * parameters + c * ranks`; neither is negative, and not both are zero."""
        cost = a * self.parameters + c * self.ranks
        density = self.hull / cost
        later = self.previous >= 0
        # equal slopes may differ in their last bit, and a step must not come before the one below it
        while (early := later & (density > density[self.previous])).any():
            density = np.where(early, density[self.previous], density)
        order = np.argsort(-density, kind="stable")
        return Direction(
            a,
            c,
            order,
            _sums(cost[order]),
            _sums(self.parameters[order]),
            _sums(self.ranks[order]),
            _sums(self.hull[order]),
            _sums(self.gains[order]),
        )


def _sums(values: Floats) -> Floats:
    sums = np.empty(len(values) + 1)
    sums[0] = 0.0
    np.cumsum(values, out=sums[1:])
    return sums
