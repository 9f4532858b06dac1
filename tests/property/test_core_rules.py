"""The laws of the coordinate-wise rules: spans, ranges, breakdown, order, and what they do alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from round_problems import change, dense, moved, product, start

from fedpipe_coordinator.aggregation import core_rules
from fedpipe_coordinator.aggregation.change_averaging import (
    Aggregated,
    AggregationError,
    Factors,
    HeadChange,
    WeightChange,
    aggregate_weight,
)
from fedpipe_coordinator.aggregation.core_rules import (
    Combine,
    _Stack,
    median_of_votes,
    on_cores,
    on_heads,
    trimmed_mean,
)

COMBINES = {"median": median_of_votes, "trimmed-mean": trimmed_mean(2)}
quick = settings(deadline=None, max_examples=40)


def aggregate(
    combine: Combine, global_: Factors, changes: Sequence[WeightChange], dtype: Any = np.float64
) -> Aggregated:
    rule: Any = on_cores(combine)
    result: Aggregated = rule(global_, changes, row_norm=0.7, reseed=np.random.default_rng(0), dtype=dtype)
    return result


def cores(global_: Factors, changes: Sequence[WeightChange], of: Sequence[WeightChange]) -> tuple[np.ndarray, Any, Any]:
    """Dense changes in the coordinates of the common basis, and the two bases."""
    stack = _Stack(global_, sorted(changes, key=lambda each: each.agent))
    left, right = stack.b @ stack.left.back, stack.a.T @ stack.right.back
    return np.stack([left.T @ change(global_, each) @ right for each in of]), left, right


@st.composite
def rounds(draw: st.DrawFn, least: int = 1, most: int = 6) -> tuple[Factors, list[WeightChange]]:
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.integers(2, 9)), draw(st.integers(2, 9))
    rank = draw(st.integers(1, 4))
    global_ = start(random, size, rank)
    if draw(st.booleans()):
        global_ = Factors(np.zeros_like(global_.b), global_.a)
    changes = []
    for number in range(draw(st.integers(least, most))):
        chosen = sorted(int(i) for i in random.choice(rank, random.integers(1, rank + 1), replace=False))
        changes.append(moved(global_, f"agent-{number}", random, 10.0 ** -draw(st.integers(0, 4)), chosen))
    return global_, changes


@quick
@given(rounds(), st.sampled_from(sorted(COMBINES)))
def test_equals_the_rule_on_dense_changes_in_the_common_basis(
    problem: tuple[Factors, list[WeightChange]], name: str
) -> None:
    global_, changes = problem
    result = aggregate(COMBINES[name], global_, changes)
    votes, left, right = cores(global_, changes, changes)
    np.testing.assert_allclose(left.T @ left, np.eye(left.shape[1]), atol=1e-7)
    for each, vote in zip(changes, votes, strict=True):  # nothing of a change lies outside of the basis
        np.testing.assert_allclose(left @ vote @ right.T, change(global_, each), atol=1e-9)
    ordered = np.sort(votes, axis=0)
    cut = (len(votes) - 1) // 2 if name == "median" else min(2, (len(votes) - 1) // 2)
    wanted = dense(global_) + left @ ordered[cut : len(votes) - cut].mean(axis=0) @ right.T
    tail = np.linalg.norm(np.linalg.svd(wanted, compute_uv=False)[len(global_.a) :])
    assert abs(result.tail * result.norm - tail) <= 1e-8
    assert np.linalg.norm(wanted - product(result)) <= tail + 1e-8


@quick
@given(rounds(), st.sampled_from(sorted(COMBINES)), st.randoms(use_true_random=False))
def test_bits_do_not_depend_on_arrival(problem: tuple[Factors, list[WeightChange]], name: str, random: Any) -> None:
    global_, changes = problem
    one = aggregate(COMBINES[name], global_, changes, np.float32)
    two = aggregate(COMBINES[name], global_, random.sample(changes, len(changes)), np.float32)
    assert (one.factors.b.tobytes(), one.factors.a.tobytes()) == (two.factors.b.tobytes(), two.factors.a.tobytes())


@quick
@given(st.integers(0, 2**32), st.integers(1, 4), st.sampled_from((1.0, 1e3, 1e12)), st.sampled_from(sorted(COMBINES)))
def test_fewer_hostile_than_the_breakdown_point_leave_every_coordinate_among_the_honest(
    seed: int, hostile: int, size: float, name: str
) -> None:
    random = np.random.default_rng(seed)
    hostile = min(hostile, 2) if name == "trimmed-mean" else hostile
    honest_count = hostile + 1 if name == "median" else 3
    global_ = start(random)
    honest = [moved(global_, f"honest-{n}", random) for n in range(honest_count)]
    others = [moved(global_, f"a-{n}", random, size) for n in range(hostile)]
    changes = [*others, *honest]
    votes, left, _ = cores(global_, changes, honest)
    stack = _Stack(global_, sorted(changes, key=lambda each: each.agent))
    moved_by = core_rules._combined(stack.votes(), COMBINES[name])
    assert left.shape[1] == len(moved_by)
    slack = 1e-9 * max(1.0, float(np.abs(votes).max()))
    assert (moved_by >= votes.min(axis=0) - slack).all()
    assert (moved_by <= votes.max(axis=0) + slack).all()


@pytest.mark.parametrize("name", sorted(COMBINES))
def test_one_hostile_agent_more_breaks_the_rule(name: str) -> None:
    """The breakdown point is where it is said to be: half of the votes, or three beyond a trim of two, are believed."""
    random = np.random.default_rng(5)
    global_ = start(random)
    honest = [moved(global_, f"honest-{n}", random) for n in range(3)]
    far = moved(global_, "a", random, 1e6)
    hostile = [replace(far, agent=f"a-{n}") for n in range(3)]
    below = aggregate(COMBINES[name], global_, [*honest, *hostile[:2]])
    above = aggregate(COMBINES[name], global_, [*honest, *hostile])
    assert below.norm < 50
    assert above.norm > 1e5


@pytest.mark.parametrize("name", sorted(COMBINES))
@pytest.mark.parametrize("hostile", [1, 2])
def test_what_all_honest_agents_agree_on_is_the_result_to_the_last_digits(name: str, hostile: int) -> None:
    random = np.random.default_rng(7)
    global_ = start(random)
    one = moved(global_, "honest-0", random)
    honest = [replace(one, agent=f"honest-{n}") for n in range(3)]
    others = [moved(global_, f"a-{n}", random, 1e5) for n in range(hostile)]
    alone = aggregate_weight(global_, [one], row_norm=0.7, reseed=np.random.default_rng(0), dtype=np.float64)
    result = aggregate(COMBINES[name], global_, [*others, *honest])
    np.testing.assert_allclose(product(result), product(alone), atol=1e-10)


@quick
@given(rounds(least=1, most=2), st.sampled_from(sorted(COMBINES)))
def test_one_agent_and_two_are_their_mean(problem: tuple[Factors, list[WeightChange]], name: str) -> None:
    global_, changes = problem
    mean = aggregate_weight(global_, changes, row_norm=0.7, reseed=np.random.default_rng(0), dtype=np.float64)
    result = aggregate(COMBINES[name], global_, changes)
    assert abs(result.norm - mean.norm) <= 1e-9 * (1 + mean.norm)
    if mean.tail * mean.norm <= 1e-9:
        np.testing.assert_allclose(product(result), product(mean), atol=1e-8)


@pytest.mark.parametrize("name", sorted(COMBINES))
def test_nobody_and_nothing_are_no_change(name: str) -> None:
    random = np.random.default_rng(3)
    global_ = start(random)
    assert aggregate(COMBINES[name], global_, []).factors is global_
    still = [moved(global_, f"a-{n}", random, 0.0) for n in range(3)]
    np.testing.assert_allclose(product(aggregate(COMBINES[name], global_, still)), dense(global_), atol=1e-12)
    empty = Factors(np.zeros_like(global_.b), np.zeros_like(global_.a))
    none = [moved(empty, f"a-{n}", random, 0.0) for n in range(3)]
    result = aggregate(COMBINES[name], empty, none)
    assert not result.factors.b.any()
    np.testing.assert_allclose(np.linalg.norm(result.factors.a, axis=1), 0.7, rtol=1e-9)


def test_an_agent_has_one_vote_whatever_it_brings_and_whenever() -> None:
    """Two hostile updates of one agent, one of them late, against two honest agents: one vote of three."""
    random = np.random.default_rng(4)
    global_, former = start(random), start(random)
    one = moved(global_, "honest-0", random)
    honest = [one, replace(one, agent="honest-1")]
    hostile = moved(global_, "a", random, 1e4)
    late = replace(moved(former, "a", random, 1e4), base=former, weight=0.5)
    result = aggregate(median_of_votes, global_, [hostile, late, *honest])
    alone = aggregate_weight(global_, [one], row_norm=0.7, reseed=np.random.default_rng(0), dtype=np.float64)
    np.testing.assert_allclose(product(result), product(alone), atol=1e-8)


def test_a_late_change_is_measured_against_what_it_was_trained_from() -> None:
    random = np.random.default_rng(4)
    global_, former = start(random), start(random)
    late = replace(moved(former, "b", random), base=former, weight=0.5)
    result = aggregate(median_of_votes, global_, [late])
    tail = result.tail * result.norm
    assert np.linalg.norm(dense(global_) + change(global_, late) - product(result)) <= tail + 1e-9


def test_a_clipped_change_votes_for_the_clipped_part_of_it() -> None:
    random = np.random.default_rng(4)
    global_ = start(random)
    clipped = replace(moved(global_, "b", random), clip=0.25)
    result = aggregate(median_of_votes, global_, [clipped])
    tail = result.tail * result.norm
    assert np.linalg.norm(dense(global_) + 0.25 * change(global_, clipped) - product(result)) <= tail + 1e-9


def test_blocks_change_nothing_but_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(6)
    global_ = start(random)
    changes = [moved(global_, f"a-{n}", random) for n in range(4)]
    head = np.zeros((3, 5), np.float32)
    heads = [HeadChange(f"a-{n}", 1, random.standard_normal((3, 5)).astype(np.float32)) for n in range(4)]
    whole = product(aggregate(median_of_votes, global_, changes)), on_heads(median_of_votes)(head, heads)
    monkeypatch.setattr(core_rules, "BLOCK_BYTES", 300)
    np.testing.assert_allclose(product(aggregate(median_of_votes, global_, changes)), whole[0], atol=1e-12)
    np.testing.assert_array_equal(on_heads(median_of_votes)(head, heads), whole[1])


# --- heads ------------------------------------------------------------------------------------------------------


def _heads(values: Sequence[float]) -> list[HeadChange]:
    return [HeadChange(f"a-{n}", 10 + n, np.array([value], np.float32)) for n, value in enumerate(values)]


def test_heads_follow_the_rules_by_hand() -> None:
    before = np.array([10.0], np.float32)
    assert on_heads(median_of_votes)(before, _heads([11, 12, 1000])).tolist() == [12.0]
    assert on_heads(median_of_votes)(before, _heads([11, 12, 14, 1000])).tolist() == [13.0]
    assert on_heads(trimmed_mean(1))(before, _heads([-1000, 11, 13, 1000])).tolist() == [12.0]
    assert on_heads(trimmed_mean(2))(before, _heads([-1000, 11, 1000])).tolist() == [11.0]


def test_a_late_head_and_one_in_time_are_one_vote() -> None:
    """Moved by 2 in time and by 8 late with half the weight: 4; the others moved by 1 and 5."""
    before, base = np.array([10.0], np.float32), np.array([0.0], np.float32)
    changes = [
        HeadChange("a", 4, np.array([12.0], np.float32)),
        HeadChange("a", 4, np.array([8.0], np.float32), base, 0.5),
        HeadChange("b", 1, np.array([11.0], np.float32)),
        HeadChange("c", 1, np.array([15.0], np.float32)),
    ]
    assert on_heads(median_of_votes)(before, changes).tolist() == [14.0]
    assert on_heads(median_of_votes)(before, [replace(each, clip=0.5) for each in changes]).tolist() == [12.0]


def test_a_head_of_another_shape_is_an_error() -> None:
    with pytest.raises(AggregationError, match=r"a-0: expected \(2,\), got \(1,\)"):
        on_heads(median_of_votes)(np.zeros(2, np.float32), _heads([1]))
