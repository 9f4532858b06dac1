"""Coordinate-wise median and trimmed mean of the agents' changes, in coordinates small enough to hold.

Owns these two rules as pure functions of the interfaces `Aggregator` and `HeadAggregator`. Every change of a weight
lies in the span of the stacked factors: with an orthonormal basis Q_B of all their columns and Q_A of all their rows it
is Q_B C_k Q_A^T, C_k a small core. The rule is applied to each entry of the cores; nothing of the weight's own size is
made.

Median and trimmed mean by coordinates: Yin, Chen, Ramchandran, Bartlett 2018, *Byzantine-Robust Distributed Learning:
Towards Optimal Statistical Rates*, arXiv 1803.01498. Breakdown points: the median's, fewer than half of those that
trained the weight; the trimmed mean's, the `trim` values that are cut off at each end, while 2 trim < n. Below them,
every coordinate of the result lies between the least and the greatest of the honest ones'. Each agent has one vote,
whatever its examples: what it brings late is averaged with what it brings in time.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fedpipe_coordinator.aggregation.change_averaging import (
    Aggregated,
    AggregationError,
    Aggregator,
    Factors,
    HeadAggregator,
    HeadChange,
    WeightChange,
    aggregate_weight,
    check_changes,
    head_difference,
    masses,
    new_factors,
    place,
)
from fedpipe_coordinator.aggregation.low_rank import Matrix, column_basis, svd_of_core

Combine = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""One value per coordinate of the votes', (votes, ...) to (...)."""
BLOCK_BYTES = 32 * 1024 * 1024
"""Of the votes' coordinates, as many are held at once."""


def median_of_votes(votes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The coordinate-wise median, (votes, ...) to (...); of an even number, the mean of the two in the middle."""
    middle: NDArray[np.float64] = np.median(votes, axis=0)
    return middle


def trimmed_mean(trim: int) -> Combine:
    """The coordinate-wise mean without the `trim` least and greatest; of fewer votes, without all but one or two."""

    def combine(votes: NDArray[np.float64]) -> NDArray[np.float64]:
        cut = min(trim, (len(votes) - 1) // 2)
        mean: NDArray[np.float64] = np.sort(votes, axis=0)[cut : len(votes) - cut].mean(axis=0)
        return mean

    return combine


def on_cores(combine: Combine) -> Aggregator:
    """The rule for weights that applies `combine` to the entries of the votes' cores."""

    def rule(
        global_: Factors,
        changes: Sequence[WeightChange],
        *,
        row_norm: float,
        reseed: np.random.Generator,
        dtype: DTypeLike = np.float32,
    ) -> Aggregated:
        """As `aggregate_weight`, with another rule in place of the mean."""
        ordered = sorted(changes, key=place)
        check_changes(global_, ordered)
        if not ordered:
            return aggregate_weight(global_, (), row_norm=row_norm, reseed=reseed, dtype=dtype)
        stack = _Stack(global_, ordered)
        core = stack.before() + _combined(stack.votes(), combine)
        svd = svd_of_core(stack.b, stack.left, core, stack.right, stack.a, len(global_.a))
        factors = new_factors(svd, len(global_.a), row_norm, reseed, dtype)
        return Aggregated(factors, svd.tail / svd.norm if svd.norm else 0.0, svd.norm, svd.values)

    return rule


def on_heads(combine: Combine) -> HeadAggregator:
    """The rule for parameters that are trained whole, entry by entry."""

    def rule(global_: NDArray[Any], changes: Sequence[HeadChange], /) -> NDArray[np.float32]:
        """As `aggregate_head`, with another rule in place of the mean."""
        ordered = sorted(changes, key=place)
        masses(ordered)
        result = global_.astype(np.float64).reshape(-1)
        groups = [list(parts) for _, parts in groupby(ordered, key=lambda change: change.agent)]
        step = max(1, BLOCK_BYTES // (8 * max(1, len(groups))))
        for begin in range(0, result.size if groups else 0, step):
            part = slice(begin, begin + step)
            moved = [_mean([_part(each, part) for each in parts], global_.reshape(-1)[part]) for parts in groups]
            result[part] += combine(np.stack(moved))
        if not np.isfinite(result).all():
            raise AggregationError("a head parameter is not finite: refuse such an update")
        return result.reshape(global_.shape).astype(np.float32)

    return rule


def _part(change: HeadChange, part: slice) -> HeadChange:
    """Some of a parameter's values, in a row."""
    base = None if change.base is None else change.base.reshape(-1)[part]
    return replace(change, values=change.values.reshape(-1)[part], base=base)


def _mean(parts: Sequence[HeadChange], global_: NDArray[Any]) -> NDArray[np.float64]:
    """One agent's vote: what it changed, in time and late."""
    moved = [share * head_difference(global_, part) for share, part in zip(_shares(parts), parts, strict=True)]
    total: NDArray[np.float64] = np.sum(moved, axis=0)
    return total


def _shares(parts: Sequence[WeightChange | HeadChange]) -> list[float]:
    """What each of an agent's changes counts in its vote, clipped."""
    shares = masses(parts)
    return [share / sum(shares) * part.clip for share, part in zip(shares, parts, strict=True)]


def _combined(votes: Sequence[tuple[Matrix, Matrix]], combine: Combine) -> Matrix:
    """The rule's core, (k, l), of the votes' cores, each given as its factors (k, p) and (p, l)."""
    rows, columns = len(votes[0][0]), votes[0][1].shape[1]
    core = np.empty((rows, columns))
    step = max(1, BLOCK_BYTES // (8 * len(votes) * max(1, rows)))
    for begin in range(0, columns, step):
        part = slice(begin, begin + step)
        core[:, part] = combine(np.stack([left @ right[:, part] for left, right in votes]))
    return core


class _Stack:
    """All factors of a weight side by side, an orthonormal basis of each side, and everybody's coordinates.

    Columns of `b` (d_out, n) and rows of `a` (n, d_in): the global's, then each change's differences to its base, then
    the bases that are not the global's.
    """

    def __init__(self, global_: Factors, changes: Sequence[WeightChange]) -> None:
        self._changes, self._rank = changes, len(global_.a)
        bases = [change.base for change in changes if change.base is not None]
        starts = [c.base or Factors(global_.b[:, list(c.indices)], global_.a[list(c.indices)]) for c in changes]
        moved = [
            Factors(change.b.astype(np.float64) - start.b, change.a.astype(np.float64) - start.a)
            for change, start in zip(changes, starts, strict=True)
        ]
        parts = [global_, *moved, *bases]
        self.b: Matrix = np.concatenate([part.b for part in parts], axis=1, dtype=np.float64)
        self.a: Matrix = np.concatenate([part.a for part in parts], axis=0, dtype=np.float64)
        self.left, self.right = column_basis(self.b), column_basis(self.a.T)

    def before(self) -> Matrix:
        """The global's core."""
        core: Matrix = self.left.coordinates[:, : self._rank] @ self.right.coordinates[:, : self._rank].T
        return core

    def votes(self) -> list[tuple[Matrix, Matrix]]:
        """Every agent's change as two factors of its core, (k, p) and (p, l).

        B A - B_0 A_0 = (B - B_0) A + B_0 (A - A_0), in coordinates.
        """
        x, y = self.left.coordinates, self.right.coordinates
        at = self._rank
        late = at + sum(len(change.indices) for change in self._changes)
        sides: list[tuple[Matrix, Matrix]] = []
        for change in self._changes:
            count = len(change.indices)
            own, before = np.arange(at, at + count), np.array(change.indices)
            at += count
            if change.base is not None:
                before, late = np.arange(late, late + count), late + count
            left = np.concatenate([x[:, own], x[:, before]], axis=1)
            sides.append((left, np.concatenate([y[:, own] + y[:, before], y[:, own]], axis=1).T))
        found = []
        for _, group in groupby(range(len(sides)), key=lambda number: self._changes[number].agent):
            numbers = list(group)
            shares = _shares([self._changes[number] for number in numbers])
            lefts = [share * sides[number][0] for share, number in zip(shares, numbers, strict=True)]
            found.append((np.concatenate(lefts, axis=1), np.concatenate([sides[number][1] for number in numbers])))
        return found
