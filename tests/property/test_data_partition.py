"""Laws of dividing examples over silos: exact cover, asked sizes, determinism, and skew that falls with alpha."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe_coordinator.demo.partition import (
    Partition,
    PartitionError,
    allot,
    dirichlet_partition,
    matching_partition,
    random_partition,
)

SIZES = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)
LABELS = st.lists(st.sampled_from("abcdefg"), max_size=120)
ALPHAS = st.floats(1e-3, 1e4)
SEEDS = st.integers(0, 2**32)


def check_cover(partition: Partition, count: int) -> None:
    assert sorted(index for part in partition for index in part) == list(range(count))
    assert all(part == sorted(part) for part in partition)


@given(labels=LABELS, sizes=SIZES, alpha=ALPHAS, seed=SEEDS, minimum=st.integers(0, 3))
@settings(deadline=None)
def test_every_example_is_in_one_silo_and_sizes_are_as_asked(
    labels: list[str], sizes: list[float], alpha: float, seed: int, minimum: int
) -> None:
    if len(labels) < len(sizes) * minimum or not labels:
        if labels or minimum:
            with pytest.raises(PartitionError, match="take fewer silos, or more examples"):
                dirichlet_partition(labels, len(sizes), alpha, sizes, seed, minimum=minimum)
        return

    partition = dirichlet_partition(labels, len(sizes), alpha, sizes, seed, minimum=minimum)

    check_cover(partition, len(labels))
    lengths = [len(part) for part in partition]
    asked = [size / sum(sizes) * len(labels) for size in sizes]
    assert min(lengths) >= minimum
    if min(asked) >= minimum:
        assert all(abs(length - size) < 1 + 1e-6 for length, size in zip(lengths, asked, strict=True))
    assert partition == dirichlet_partition(labels, len(sizes), alpha, sizes, seed, minimum=minimum)


@given(count=st.integers(6, 300), sizes=SIZES, seed=SEEDS)
@settings(deadline=None)
def test_unlabelled_examples_are_covered_too(count: int, sizes: list[float], seed: int) -> None:
    partition = random_partition(count, len(sizes), sizes, seed)

    check_cover(partition, count)
    assert [len(part) for part in partition] == allot(count, len(sizes), sizes)
    assert partition == random_partition(count, len(sizes), sizes, seed)


@given(sizes=SIZES, count=st.integers(6, 1000), minimum=st.integers(0, 1))
@settings(deadline=None)
def test_a_larger_size_never_gets_less(sizes: list[float], count: int, minimum: int) -> None:
    counts = allot(count, len(sizes), sizes, minimum)

    assert sum(counts) == count
    order = sorted(range(len(sizes)), key=lambda silo: sizes[silo])
    for less, more in pairwise(order):
        assert counts[less] <= counts[more] + (1 if sizes[less] == sizes[more] else 0)


@given(labels=st.lists(st.sampled_from("abcd"), min_size=4, max_size=80), seed=SEEDS, data=st.data())
@settings(deadline=None)
def test_a_held_out_part_is_covered_whatever_the_silos_have(labels: list[str], seed: int, data: st.DataObject) -> None:
    like = data.draw(
        st.lists(st.dictionaries(st.sampled_from("abcxyz"), st.integers(1, 50), min_size=1), min_size=1, max_size=4)
    )

    partition = matching_partition(labels, like, seed)

    check_cover(partition, len(labels))
    assert all(partition)


def skew(partition: Partition, labels: list[str]) -> float:
    """Mean total variation distance between a silo's labels and all labels, 0 to 1."""
    names = sorted(set(labels))
    pooled = Counter(labels)
    distances = []
    for part in partition:
        own = Counter(labels[index] for index in part)
        distances.append(sum(abs(own[name] / len(part) - pooled[name] / len(labels)) for name in names) / 2)
    return float(np.mean(distances))


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [4, 3, 2, 1]])
def test_skew_falls_with_alpha(sizes: list[float]) -> None:
    labels = [f"label {index % 8}" for index in range(4000)]

    means = [
        np.mean([skew(dirichlet_partition(labels, 4, alpha, sizes, seed), labels) for seed in range(10)])
        for alpha in (0.05, 0.5, 5.0, 500.0)
    ]

    assert means == sorted(means, reverse=True)
    assert means[0] > 0.5
    assert means[-1] < 0.05


def test_rare_labels_stay_rare_at_large_alpha() -> None:
    labels = ["rare"] * 100 + ["common"] * 3900

    partition = dirichlet_partition(labels, 4, 1000.0, [1, 1, 1, 1], seed=0)

    shares = [sum(labels[index] == "rare" for index in part) / len(part) for part in partition]
    assert all(0.01 < share < 0.04 for share in shares)


def test_a_held_out_part_has_its_silos_labels() -> None:
    train = [f"label {index % 8}" for index in range(4000)]
    held_out = [f"label {index % 8}" for index in range(800)]
    mine = dirichlet_partition(train, 4, 0.3, [4, 3, 2, 1], seed=5)
    like = [Counter(train[index] for index in part) for part in mine]

    matched = matching_partition(held_out, like, seed=5)

    assert [len(part) for part in matched] == [320, 240, 160, 80]
    for part, counts in zip(matched, like, strict=True):
        own = Counter(held_out[index] for index in part)
        distance = sum(abs(own[k] / len(part) - counts[k] / counts.total()) for k in set(train)) / 2
        assert distance < 0.12


def test_different_seeds_divide_differently() -> None:
    labels = ["a", "b"] * 50

    assert dirichlet_partition(labels, 2, 1.0, [1, 1], 1) != dirichlet_partition(labels, 2, 1.0, [1, 1], 2)
    assert random_partition(100, 2, [1, 1], 1) != random_partition(100, 2, [1, 1], 2)


BAD = [
    (0, [], 1.0, "at least one silo, got 0 for 0"),
    (3, [1.0, 2.0], 1.0, "got 2 for 3"),
    (2, [1.0, 0.0], 1.0, "sizes above 0"),
    (2, [1.0, float("nan")], 1.0, "sizes above 0"),
    (2, [1.0, 1.0], 0.0, "alpha above 0, got 0.0"),
    (2, [1.0, 1.0], float("nan"), "alpha above 0, got nan"),
    (5, [1.0] * 5, 1.0, "4 examples cannot give 5 silos at least 1 each"),
]


@pytest.mark.parametrize(("silos", "sizes", "alpha", "says"), BAD)
def test_what_cannot_be_divided(silos: int, sizes: list[float], alpha: float, says: str) -> None:
    with pytest.raises(PartitionError, match=says):
        dirichlet_partition(["a", "b", "a", "b"], silos, alpha, sizes, 0)
