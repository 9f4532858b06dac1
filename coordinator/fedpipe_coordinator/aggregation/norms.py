"""How far updates moved: the norms of their changes and, where asked, their inner products, from factors alone.

Owns the measuring. What is refused or clipped for it is decided elsewhere (`closing_gate.py`, `robust.py`).
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from fedpipe_coordinator.aggregation.change_averaging import (
    Factors,
    HeadChange,
    Place,
    WeightChange,
    check_changes,
    head_difference,
    place,
)
from fedpipe_coordinator.aggregation.low_rank import Matrix
from fedpipe_coordinator.aggregation.parallel import in_order, thread_count
from fedpipe_coordinator.aggregation.round_files import RoundFiles, UpdateFile, naming
from fedpipe_profiles.model import ModelShape

_ROUNDING = 4 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class Measured:
    """How far every update of a round moved.

    Attributes:
        norms: Per weight and head parameter, the Frobenius norm of each update's change; who did not train it has none.
        whole: Per update, the norm over all of them together.
        places: The updates in their order.
        products: Inner products of whole changes, (updates, updates); None where they were not asked for.
    """

    norms: Mapping[str, Mapping[Place, float]]
    whole: Mapping[Place, float]
    places: tuple[Place, ...]
    products: NDArray[np.float64] | None = None


def measure(
    global_path: Path,
    updates: Sequence[UpdateFile],
    *,
    shape: ModelShape,
    scale: float = 1.0,
    products: bool = False,
    threads: int | None = None,
) -> Measured:
    """Measure the changes of all updates; the same arguments give the same bits, whatever their order.

    Args:
        global_path: The global adapter before the round.
        updates: What was stored.
        shape: Of the model.
        scale: The constant s of s * B @ A: it makes the changes of weights and of heads comparable.
        products: Also take inner products.
        threads: As `thread_count` has it.

    Raises:
        AggregationError: if updates cannot be read together, as `aggregate_files`.
        TensorError: if a file does not hold what its components say.
        OSError: if a file cannot be read.
    """
    ordered = sorted(updates, key=lambda update: update.place)
    places = tuple(update.place for update in ordered)
    norms: dict[str, dict[Place, float]] = {}
    inner = np.zeros((len(places), len(places))) if products else None
    count = thread_count(threads)
    with ExitStack() as stack:
        stack.enter_context(threadpool_limits(limits=1, user_api="blas"))
        files = stack.enter_context(RoundFiles(global_path, ordered, shape))
        pool = stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="measure"))

        def weigh(weight: str) -> _Weighed:
            before, changes = files.weight(weight)
            with naming(weight):
                check_changes(before, changes)
                return _weigh([_Moved.of(before, change) for change in changes], scale, products=products)

        for weight, found in in_order(weigh, files.weights, pool, count):
            norms[weight] = found.norms
            _add(inner, found, places)
        for name in files.heads:
            with naming(name):
                found = _weigh_head(*files.head(name), products=products)
            norms[name] = found.norms
            _add(inner, found, places)
    whole = {each: math.hypot(*(of.get(each, 0.0) for of in norms.values())) for each in places}
    return Measured(norms, whole, places, inner)


@dataclass(frozen=True, slots=True)
class _Weighed:
    """One tensor's norms, and the inner products of those changes in the same order."""

    norms: dict[Place, float]
    products: NDArray[np.float64] | None


def _add(inner: NDArray[np.float64] | None, found: _Weighed, places: Sequence[Place]) -> None:
    if inner is not None and found.products is not None and found.norms:
        at = [places.index(each) for each in found.norms]
        inner[np.ix_(at, at)] += found.products


@dataclass(frozen=True, slots=True)
class _Moved:
    """An update's change of a weight as a product `left @ right` of what really differs.

    B A - B_0 A_0 = (B - B_0) A + B_0 (A - A_0): the differences of float32 values are exact in float64, so a small
    change of large factors keeps its digits, and no change is exactly 0. left: (d_out, 2 r), right: (2 r, d_in).
    """

    place: Place
    left: Matrix
    right: Matrix

    @classmethod
    def of(cls, before: Factors, change: WeightChange) -> "_Moved":
        chosen, rank = list(change.indices), len(change.indices)
        base = change.base or Factors(before.b[:, chosen], before.a[chosen])
        left, right = np.empty((len(base.b), 2 * rank)), np.empty((2 * rank, base.a.shape[1]))
        left[:, rank:], right[:rank] = base.b, change.a
        np.subtract(change.b, left[:, rank:], out=left[:, :rank])
        np.subtract(right[:rank], base.a, out=right[rank:])
        return cls(place(change), left, right)


def _weigh(moved: Sequence[_Moved], scale: float, *, products: bool) -> _Weighed:
    norms = {each.place: scale * _norm(each) for each in moved}
    if not products or not moved:
        return _Weighed(norms, None)
    left = np.concatenate([each.left for each in moved], axis=1)
    right = np.concatenate([each.right for each in moved])
    starts = np.cumsum([0, *(len(each.right) for each in moved[:-1])])
    blocks = (left.T @ left) * (right @ right.T)
    return _Weighed(norms, scale**2 * np.add.reduceat(np.add.reduceat(blocks, starts, axis=0), starts, axis=1))


def _norm(moved: _Moved) -> float:
    """Frobenius norm of `left @ right` by Gram matrices in float64, O((d_out + d_in) r^2): at least the true one.

    ||L R||^2 = sum of (L^T L) * (R R^T). Components that cancel each other leave rounding in place of a norm, up to
    about eps * d * (sum_i |l_i| |r_i|)^2; it is added, so that nobody can hide behind it how far an update moves.
    """
    gram_left, gram_right = moved.left.T @ moved.left, moved.right @ moved.right.T
    sizes = np.sqrt(np.diagonal(gram_left)) @ np.sqrt(np.diagonal(gram_right))
    longest = max(len(moved.left), moved.right.shape[1])
    return math.sqrt(max(0.0, float((gram_left * gram_right).sum())) + _ROUNDING * longest * float(sizes) ** 2)


def _weigh_head(before: NDArray[np.float32], changes: Sequence[HeadChange], *, products: bool) -> _Weighed:
    ordered = sorted(changes, key=place)
    norms = {place(change): float(np.linalg.norm(head_difference(before, change))) for change in ordered}
    if not products or not ordered:
        return _Weighed(norms, None)
    rows = np.stack([head_difference(before, change).ravel() for change in ordered])
    return _Weighed(norms, rows @ rows.T)
