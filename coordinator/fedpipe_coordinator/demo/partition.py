"""Dividing one set of examples over unlike silos: of unequal sizes, and each with labels of its own.

Pure: indices in, indices out. The method is that of Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data
Distribution for Federated Visual Classification" (arXiv:1909.06335), with unequal sizes added.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Partition = list[list[int]]
"""Per silo, the sorted indices of its examples; every index is in exactly one silo."""

SMOOTHING: Final = 1e-9
"""Share of a label that a silo does not have, when it must take one: it then takes what is left in equal parts."""


class PartitionError(ValueError):
    """The examples cannot be divided as asked."""


def dirichlet_partition(
    labels: Sequence[str],
    silos: int,
    alpha: float,
    sizes: Sequence[float],
    seed: int,
    *,
    minimum: int = 1,
) -> Partition:
    """Divide labelled examples so that the silos differ in their labels and in their sizes.

    Every silo draws its label distribution q ~ Dirichlet(alpha * K * p), with p the pooled distribution of the K
    labels: for even labels that is alpha for every label. Small alpha gives each silo few labels, large alpha the
    pooled mix. Then all silos draw at the same time from the labels' pools; where a pool is short, chance decides who
    gets of it, and the others draw again from what is left.

    Args:
        labels: One per example.
        silos: How many silos.
        alpha: Concentration, above zero.
        sizes: The silos' sizes relative to each other, one above zero for each.
        seed: Decides everything that is left to chance.
        minimum: Examples that every silo gets at least, whatever its size.

    Returns:
        The silos' indices; sizes are as asked to within one example, wherever that is not under `minimum`.

    Raises:
        PartitionError: if a number is out of range or there are fewer examples than `silos * minimum`.
    """
    counts = allot(len(labels), silos, sizes, minimum)
    if not 0 < alpha < float("inf"):
        raise PartitionError(f"expected a finite alpha above 0, got {alpha}")
    rng = np.random.default_rng(seed)
    pools = _pools(labels, rng)
    share = np.array([len(pool) for pool in pools.values()]) / len(labels)
    mix = rng.dirichlet(alpha * len(pools) * share, size=silos)
    return _fill(list(pools.values()), counts, mix, rng)


def matching_partition(
    labels: Sequence[str],
    like: Sequence[Mapping[str, int]],
    seed: int,
    *,
    minimum: int = 1,
) -> Partition:
    """Divide labelled examples in the silos' own proportions, such as a held-out part after the training part.

    Args:
        labels: One per example.
        like: Per silo, how many examples of each label it has already.
        seed: Decides everything that is left to chance.
        minimum: Examples that every silo gets at least.

    Returns:
        The silos' indices, in sizes proportional to what each has.

    Raises:
        PartitionError: as `dirichlet_partition`.
    """
    counts = allot(len(labels), len(like), [sum(silo.values()) for silo in like], minimum)
    rng = np.random.default_rng(seed)
    pools = _pools(labels, rng)
    mix = np.array([[silo.get(label, 0) for label in pools] for silo in like], dtype=np.float64)
    return _fill(list(pools.values()), counts, mix, rng)


def random_partition(count: int, silos: int, sizes: Sequence[float], seed: int, *, minimum: int = 1) -> Partition:
    """Divide `count` unlabelled examples by chance, in sizes proportional to `sizes`.

    Raises:
        PartitionError: as `dirichlet_partition`.
    """
    counts = allot(count, silos, sizes, minimum)
    order = np.random.default_rng(seed).permutation(count)
    parts = np.split(order, np.cumsum(counts)[:-1])
    return [sorted(part.tolist()) for part in parts]


def allot(count: int, silos: int, sizes: Sequence[float], minimum: int = 1) -> list[int]:
    """Whole numbers proportional to `sizes` that sum to `count`, none below `minimum` (largest remainders).

    Raises:
        PartitionError: if there are no silos, not one finite size above zero for each, or too few examples.
    """
    if silos < 1 or len(sizes) != silos:
        raise PartitionError(f"expected one size for each of at least one silo, got {len(sizes)} for {silos}")
    if not all(0 < size < float("inf") for size in sizes):
        raise PartitionError(f"expected finite sizes above 0, got {list(sizes)}")
    if minimum < 0 or count < silos * minimum:
        raise PartitionError(
            f"{count} examples cannot give {silos} silos at least {minimum} each: take fewer silos, or more examples"
        )
    weights = np.array(sizes, dtype=np.float64) / max(sizes)
    counts = np.full(silos, minimum, dtype=np.int64)
    # Those whose share is under the minimum get it, and the others share the rest; that may bring more under it.
    free = np.ones(silos, dtype=np.bool_)
    while free.any():
        exact = np.where(free, weights, 0.0) / weights[free].sum() * (count - minimum * int((~free).sum()))
        if not (small := free & (exact < minimum)).any():
            counts[free] = np.floor(exact[free])
            order = np.argsort(np.where(free, counts - exact, np.inf), kind="stable")
            counts[order[: count - int(counts.sum())]] += 1
            break
        free &= ~small
    return [int(number) for number in counts]


def _pools(labels: Sequence[str], rng: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Each label's indices, shuffled; labels in sorted order."""
    found: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        found.setdefault(label, []).append(index)
    return {label: rng.permutation(np.array(found[label])) for label in sorted(found)}


def _fill(
    pools: Sequence[NDArray[np.int64]],
    counts: Sequence[int],
    mix: NDArray[np.float64],
    rng: np.random.Generator,
) -> Partition:
    """Give every silo its count.

    Args:
        pools: Each label's indices, `(K,)` arrays.
        counts: Per silo, how many examples it gets; they sum to all there are.
        mix: Which labels each silo wants, `(silos, K)`, rows of any sum.
        rng: The source of chance.
    """
    wanted = mix / np.maximum(mix.sum(axis=1, keepdims=True), np.finfo(float).tiny) + SMOOTHING
    left = np.array([len(pool) for pool in pools])
    need = np.array(counts)
    given = np.zeros((len(counts), len(pools)), dtype=np.int64)
    # Each pass fills all silos or empties at least one more pool, so there are at most K + 1.
    while need.any():
        odds = np.where(left > 0, wanted, 0.0)
        demand = rng.multinomial(need, odds / odds.sum(axis=1, keepdims=True))
        for label in np.flatnonzero(demand.sum(axis=0) > left).tolist():
            demand[:, label] = rng.multivariate_hypergeometric(demand[:, label], left[label])
        given += demand
        left -= demand.sum(axis=0)
        need -= demand.sum(axis=1)
    parts: Partition = [[] for _ in counts]
    for pool, shares in zip(pools, given.T, strict=True):
        for silo, chosen in enumerate(np.split(pool, np.cumsum(shares)[:-1])):
            parts[silo].extend(chosen.tolist())
    return [sorted(part) for part in parts]
