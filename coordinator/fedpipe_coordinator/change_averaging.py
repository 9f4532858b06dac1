"""The rule of aggregation: the agents' changes, averaged by examples, back at the global rank.

Owns what happens to one weight or one head parameter, as pure functions. Files are `aggregate.py`'s
work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fedpipe_coordinator.components import orthonormal_rows
from fedpipe_coordinator.low_rank import svd_of_product


class AggregationError(ValueError):
    """Changes that cannot be averaged: of other shapes, without examples, or not finite."""


@dataclass(frozen=True, slots=True)
class Factors:
    """The change `b @ a` of one weight, its constant scale left out; b: (d_out, R), a: (R, d_in)."""

    b: NDArray[Any]
    a: NDArray[Any]


@dataclass(frozen=True, slots=True)
class WeightChange:
    """What one agent made of components `indices`; b: (d_out, r), a: (r, d_in)."""

    agent: str
    examples: int
    indices: tuple[int, ...]
    b: NDArray[Any]
    a: NDArray[Any]


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


def aggregate_weight(
    global_: Factors,
    changes: Sequence[WeightChange],
    *,
    row_norm: float,
    reseed: np.random.Generator,
    dtype: DTypeLike = np.float32,
) -> Aggregated:
    """Average the changes of one weight and keep the R largest singular values.

    dW+ = B_g A_g + sum_k w_k (B_k A_k - B_g[:, I_k] A_g[I_k]), w_k = examples_k / their sum over
    the agents that trained this weight. The subtracted terms join the global's own columns, so the
    stack is R + sum(r_k) wide. The result is `a = row_norm * V^T`, `b = U S / row_norm`;
    components without a singular value get a new unit row, orthogonal to the kept ones, and b = 0.

    Args:
        global_: The global factors before the round.
        changes: One per agent that trained the weight, in any order; none leaves it as it is.
        row_norm: Norm of every row of the new `a`.
        reseed: Where new rows come from.
        dtype: Of the new factors.

    Raises:
        AggregationError: if shapes do not fit, indices are no components, an agent comes twice,
            examples are negative or all zero, or a value is not finite.
    """
    ordered = sorted(changes, key=lambda change: change.agent)
    _check(global_, ordered)
    b = np.concatenate([global_.b, *(change.b for change in ordered)], axis=1, dtype=np.float64)
    a = np.concatenate([global_.a, *(change.a for change in ordered)], axis=0, dtype=np.float64)
    rank = len(global_.a)
    svd = svd_of_product(b, _coefficients(rank, ordered), a, rank)
    tail = svd.tail / svd.norm if svd.norm else 0.0
    if not ordered:
        return Aggregated(global_, 0.0, svd.norm, svd.values)
    missing = rank - len(svd.values)
    fresh = orthonormal_rows(missing, a.shape[1], reseed, svd.right)
    new_a = row_norm * np.concatenate([svd.right, fresh])
    new_b = np.zeros((len(b), rank))
    new_b[:, : len(svd.values)] = svd.left * (svd.values / row_norm)
    return Aggregated(Factors(new_b.astype(dtype), new_a.astype(dtype)), tail, svd.norm, svd.values)


def aggregate_head(global_: NDArray[Any], changes: Sequence[tuple[str, int, NDArray[Any]]]) -> NDArray[np.float32]:
    """Average one parameter that is trained whole: W + sum_k w_k (W_k - W), in float64.

    Args:
        global_: The parameter before the round, of any shape.
        changes: (agent, examples, parameter after local training), in any order.

    Raises:
        AggregationError: as `aggregate_weight`.
    """
    total = total_examples([(agent, examples) for agent, examples, _ in changes])
    result = global_.astype(np.float64)
    for agent, examples, values in sorted(changes, key=lambda change: change[0]):
        if values.shape != global_.shape:
            raise AggregationError(f"{agent}: expected {global_.shape}, got {values.shape}")
        result += (examples / total) * (values.astype(np.float64) - global_)
    if not np.isfinite(result).all():
        raise AggregationError("a head parameter is not finite: refuse such an update")
    return result.astype(np.float32)


def _check(global_: Factors, changes: Sequence[WeightChange]) -> None:
    """Refuse what cannot be stacked."""
    (d_out, rank), (rows, d_in) = global_.b.shape, global_.a.shape
    if rank != rows:
        raise AggregationError(f"global b has {rank} columns, a has {rows} rows: expected the same")
    if changes:
        total_examples([(change.agent, change.examples) for change in changes])
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
        if not (np.isfinite(change.b).all() and np.isfinite(change.a).all()):
            raise AggregationError(f"{change.agent}: factors are not finite: refuse its update")


def total_examples(parts: Sequence[tuple[str, int]]) -> int:
    """Sum of (agent, examples) over agents, each of which comes once.

    Raises:
        AggregationError: if there is no example, a negative number, or an agent twice.
    """
    agents = [agent for agent, _ in parts]
    if len(set(agents)) != len(agents):
        raise AggregationError(f"an agent comes twice among {sorted(agents)}: expected once each")
    negative = [(agent, examples) for agent, examples in parts if examples < 0]
    total = sum(examples for _, examples in parts)
    if negative or total == 0:
        raise AggregationError(
            f"{len(parts)} updates with {total} examples in all, negative: {negative}: "
            "expected at least one update and one example"
        )
    return total


def _coefficients(rank: int, changes: Sequence[WeightChange]) -> NDArray[np.float64]:
    """Weight of every stacked component, (R + sum of r_k,): the global's own come first.

    The numerators are whole numbers, so that a component which everybody trained gets exactly 0.
    """
    total = sum(change.examples for change in changes) or 1
    own = np.full(rank, total, dtype=np.int64)
    for change in changes:
        own[list(change.indices)] -= change.examples
    shares = [np.full(len(change.indices), change.examples) for change in changes]
    return np.concatenate([own, *shares]) / total
