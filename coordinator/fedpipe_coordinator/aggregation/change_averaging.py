"""The rule of aggregation: the agents' changes, averaged by examples, back at the global rank.

Owns what happens to one weight or one head parameter, as pure functions. Files are `aggregate.py`'s
work.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fedpipe_coordinator.aggregation.components import orthonormal_rows
from fedpipe_coordinator.aggregation.low_rank import LowRankSvd, svd_of_product

Place = tuple[str, bool]
"""Which of a round's updates: its agent, and whether it comes from an earlier round."""


class AggregationError(ValueError):
    """Changes that cannot be averaged: of other shapes, without examples, or not finite."""


@dataclass(frozen=True, slots=True)
class Factors:
    """The change `b @ a` of one weight, its constant scale left out; b: (d_out, R), a: (R, d_in)."""

    b: NDArray[Any]
    a: NDArray[Any]


@dataclass(frozen=True, slots=True)
class WeightChange:
    """What one agent made of components `indices`; b: (d_out, r), a: (r, d_in).

    `base` is what it was trained from, of the same shapes, where that is not the global's own components: an update of
    an earlier round. `weight` multiplies its examples, `clip` its change.
    """

    agent: str
    examples: int
    indices: tuple[int, ...]
    b: NDArray[Any]
    a: NDArray[Any]
    base: Factors | None = None
    weight: float = 1.0
    clip: float = 1.0


@dataclass(frozen=True, slots=True)
class HeadChange:
    """A parameter that one agent trained whole; `base`, `weight` and `clip` as in `WeightChange`."""

    agent: str
    examples: int
    values: NDArray[Any]
    base: NDArray[Any] | None = None
    weight: float = 1.0
    clip: float = 1.0


@dataclass(frozen=True, slots=True)
class Aggregated:
    """New global factors of one weight.

    `tail` is what truncation to R lost, relative to `norm`, both in Frobenius norm of `b @ a`;
    `singular_values`, (at most R,), are those of the new product, zeros left out.
    """

    factors: Factors
    tail: float
    norm: float
    singular_values: NDArray[np.float64]


class Aggregator(Protocol):
    """A rule that makes one weight's new global factors of the agents' changes."""

    def __call__(
        self,
        global_: Factors,
        changes: Sequence[WeightChange],
        *,
        row_norm: float,
        reseed: np.random.Generator,
    ) -> Aggregated:
        """Aggregate one weight; must not depend on the order of `changes`."""
        ...


class HeadAggregator(Protocol):
    """A rule that makes the new values of a parameter that is trained whole."""

    def __call__(self, global_: NDArray[Any], changes: Sequence[HeadChange], /) -> NDArray[np.float32]:
        """Aggregate one parameter; must not depend on the order of `changes`."""
        ...


def aggregate_weight(
    global_: Factors,
    changes: Sequence[WeightChange],
    *,
    row_norm: float,
    reseed: np.random.Generator,
    dtype: DTypeLike = np.float32,
) -> Aggregated:
    """Average the changes of one weight and keep the R largest singular values.

    dW+ = B_g A_g + sum_k w_k clip_k (B_k A_k - B_g[:, I_k] A_g[I_k]), w_k = weight_k * examples_k / their
    sum over the agents that trained this weight. The subtracted terms join the global's own
    columns, so the stack is R + sum(r_k) wide; a change with a base of its own brings that as r_k
    further columns, for it is measured against what it was trained from. The result is
    `a = row_norm * V^T`, `b = U S / row_norm`; components without a singular value get a new unit
    row, orthogonal to the kept ones, and b = 0.

    Args:
        global_: The global factors before the round.
        changes: One per agent that trained the weight, in any order; none leaves it as it is.
        row_norm: Norm of every row of the new `a`.
        reseed: Where new rows come from.
        dtype: Of the new factors.

    Raises:
        AggregationError: if shapes do not fit, indices are no components, an agent comes twice
            from one base, examples are negative or all zero, or a value is not finite.
    """
    ordered = sorted(changes, key=place)
    check_changes(global_, ordered)
    bases = [change.base for change in ordered if change.base is not None]
    rank = len(global_.a)
    middle = _coefficients(rank, ordered)
    # What every agent trained has no share of its own left: not even carried along.
    own = np.flatnonzero(middle[:rank])
    left = global_ if len(own) == rank else Factors(global_.b[:, own], global_.a[own])
    parts = [left, *(Factors(change.b, change.a) for change in ordered), *bases]
    b = np.concatenate([part.b for part in parts], axis=1, dtype=np.float64)
    a = np.concatenate([part.a for part in parts], axis=0, dtype=np.float64)
    svd = svd_of_product(b, np.concatenate([middle[own], middle[rank:]]), a, rank)
    tail = svd.tail / svd.norm if svd.norm else 0.0
    if not ordered:
        return Aggregated(global_, 0.0, svd.norm, svd.values)
    return Aggregated(new_factors(svd, rank, row_norm, reseed, dtype), tail, svd.norm, svd.values)


def new_factors(svd: LowRankSvd, rank: int, row_norm: float, reseed: np.random.Generator, dtype: DTypeLike) -> Factors:
    """`a = row_norm * V^T`, `b = U S / row_norm`; where singular values are lacking, new unit rows and b = 0."""
    kept = len(svd.values)
    fresh = orthonormal_rows(rank - kept, svd.right.shape[1], reseed, svd.right)
    new_a = row_norm * np.concatenate([svd.right, fresh])
    new_b = np.zeros((len(svd.left), rank))
    new_b[:, :kept] = svd.left * (svd.values / row_norm)
    return Factors(new_b.astype(dtype), new_a.astype(dtype))


def aggregate_head(global_: NDArray[Any], changes: Sequence[HeadChange]) -> NDArray[np.float32]:
    """Average one parameter that is trained whole: W + sum_k w_k clip_k (W_k - base_k), in float64.

    Args:
        global_: The parameter before the round, of any shape; the base of changes without one.
        changes: Those of the agents, in any order.

    Raises:
        AggregationError: as `aggregate_weight`.
    """
    ordered = sorted(changes, key=place)
    shares = masses(ordered)
    total = sum(shares)
    result = global_.astype(np.float64)
    for change, share in zip(ordered, shares, strict=True):
        result += (share / total) * change.clip * head_difference(global_, change)
    if not np.isfinite(result).all():
        raise AggregationError("a head parameter is not finite: refuse such an update")
    return result.astype(np.float32)


def head_difference(global_: NDArray[Any], change: HeadChange) -> NDArray[np.float64]:
    """How far an agent moved a parameter that is trained whole.

    Raises:
        AggregationError: if shapes do not fit.
    """
    base = global_ if change.base is None else change.base
    if (change.values.shape, base.shape) != (global_.shape, global_.shape):
        raise AggregationError(f"{change.agent}: expected {global_.shape}, got {change.values.shape}")
    difference: NDArray[np.float64] = change.values.astype(np.float64) - base
    return difference


def place(change: WeightChange | HeadChange) -> Place:
    """The order in which changes are added up, whatever their order of arrival."""
    return change.agent, change.base is not None


def check_changes(global_: Factors, changes: Sequence[WeightChange]) -> None:
    """Refuse what cannot be stacked.

    Raises:
        AggregationError: as `aggregate_weight`.
    """
    (d_out, rank), (rows, d_in) = global_.b.shape, global_.a.shape
    if rank != rows:
        raise AggregationError(f"global b has {rank} columns, a has {rows} rows: expected the same")
    if changes:
        masses(changes)
    for change in changes:
        count = len(change.indices)
        expected = ((d_out, count), (count, d_in))
        if (change.b.shape, change.a.shape) != expected:
            got = (change.b.shape, change.a.shape)
            raise AggregationError(f"{change.agent}: expected factors {expected}, got {got}")
        if len(set(change.indices)) != count or not set(change.indices) <= set(range(rank)):
            raise AggregationError(
                f"{change.agent}: components {change.indices} are not distinct numbers from 0 to {rank - 1}"
            )
        base = change.base
        if base is not None and (base.b.shape, base.a.shape) != expected:
            raise AggregationError(f"{change.agent}: expected a base of {expected}, got {(base.b.shape, base.a.shape)}")
        if not (np.isfinite(change.b).all() and np.isfinite(change.a).all()):
            raise AggregationError(f"{change.agent}: factors are not finite: refuse its update")


class Counted(Protocol):
    """What counts by its examples."""

    @property
    def agent(self) -> str:
        """Whose it is."""
        ...

    @property
    def examples(self) -> int:
        """How many it was trained on."""
        ...

    @property
    def weight(self) -> float:
        """What they are multiplied by."""
        ...

    @property
    def base(self) -> object | None:
        """What it was trained from; None: from the global adapter as it is."""
        ...


def masses(parts: Sequence[Counted]) -> list[int]:
    """`examples * weight` of each part, as whole numbers in proportion: sums and differences of them are exact.

    Raises:
        AggregationError: if nothing weighs anything, a number is negative, or an agent comes twice from one base.
    """
    places = [(part.agent, part.base is not None) for part in parts]
    if len(set(places)) != len(places):
        raise AggregationError(f"an agent comes twice among {sorted(agent for agent, _ in places)}: expected once each")
    negative = [(part.agent, part.examples) for part in parts if part.examples < 0 or part.weight < 0]
    exact = [Fraction(part.examples) * Fraction(part.weight) for part in parts]
    if negative or sum(exact) == 0:
        raise AggregationError(
            f"{len(parts)} updates with {sum(part.examples for part in parts)} examples in all, negative: {negative}: "
            "expected at least one update and one example"
        )
    common = math.lcm(*(share.denominator for share in exact))
    return [int(share * common) for share in exact]


def _coefficients(rank: int, changes: Sequence[WeightChange]) -> NDArray[np.float64]:
    """Weight of every stacked component, (R + sum of r_k + those of bases,): the global's own come first.

    The numerators are exact, so that a component which everybody trained, and none was clipped, gets exactly 0.
    """
    shares = masses(changes) if changes else []
    total = sum(shares) or 1
    own, after, before = [Fraction(total)] * rank, list[Fraction](), list[Fraction]()
    for change, share in zip(changes, shares, strict=True):
        part = share * Fraction(change.clip)
        after += [part] * len(change.indices)
        if change.base is not None:
            before += [-part] * len(change.indices)
            continue
        for index in change.indices:
            own[index] -= part
    return np.array([float(number / total) for number in (*own, *after, *before)])
