"""Clipping, multi-krum, and which defence a job gets: by hand, and on real files against dense references."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from round_problems import HEAD, SHAPE, SIZES, dense_change, read, write_global, write_update

from fedpipe_coordinator.aggregation.aggregate import aggregate_files
from fedpipe_coordinator.aggregation.clipping import clip_factors
from fedpipe_coordinator.aggregation.krum import needed, select
from fedpipe_coordinator.aggregation.medians import typical
from fedpipe_coordinator.aggregation.norms import Measured, measure
from fedpipe_coordinator.aggregation.robust import Treatment, treat
from fedpipe_coordinator.aggregation.round_files import UpdateFile
from fedpipe_coordinator.config import AggregationSection
from fedpipe_wire.tensors import a_name, b_name, head_name, write_tensors

FILE = Path("unread")


def files(*agents: str, steps: int = 1, rank: int = 4) -> list[UpdateFile]:
    return [UpdateFile(agent, 10, FILE, {"w": tuple(range(rank))}, steps=steps) for agent in agents]


def measured(updates: Sequence[UpdateFile], *norms: float, products: np.ndarray | None = None) -> Measured:
    """As if the updates had these norms, all of them in the one weight."""
    by_place = {update.place: norm for update, norm in zip(updates, norms, strict=True)}
    ordered = tuple(sorted(by_place))
    return Measured({"w": by_place}, by_place, ordered, products)


def clips(updates: Sequence[UpdateFile], *norms: float, clip: float = 2.0) -> list[float]:
    found = clip_factors(measured(updates, *norms), updates, clip)
    return [found[update.place] for update in updates]


# --- medians and clipping ---------------------------------------------------------------------------------------


def test_nobody_moves_farther_than_twice_the_median() -> None:
    assert clips(files("a", "b", "c"), 1.0, 1.5, 100.0) == [1.0, 1.0, 0.03]
    assert clips(files("a", "b", "c", "d"), 1.0, 2.0, 4.0, 12.0) == [1.0, 1.0, 1.0, 0.5]
    assert clips(files("a", "b", "c"), 1.0, 1.5, 3.0) == [1.0, 1.0, 1.0]


def test_nobody_is_clipped_where_it_is_off_or_too_few_are_there() -> None:
    assert clips(files("a", "b", "c"), 1.0, 1.5, 100.0, clip=0.0) == [1.0] * 3
    assert clips(files("a", "b"), 1.0, 100.0) == [1.0] * 2
    assert clips(files("a"), 1e30) == [1.0]


def test_more_zeros_than_half_are_no_measure() -> None:
    """Else nobody could move any more; and where only two moved, nobody knows whose move is the large one."""
    assert clips(files(*"abcdefg"), 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 8.0) == [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5]
    assert clips(files(*"abcde"), 0.0, 0.0, 0.0, 1.0, 100.0) == [1.0] * 5
    assert clips(files(*"abc"), 0.0, 0.0, 0.0) == [1.0] * 3


def test_who_was_planned_more_steps_or_ranks_may_move_farther() -> None:
    """Norms per step and root of rank: d may go 4 * 2 times as far as the others, and goes 10 times."""
    updates = [*files("a", "b", "c"), *files("d", steps=4, rank=16)]
    assert clips(updates, 1.0, 1.0, 1.0, 10.0, clip=1.0) == [1.0, 1.0, 1.0, 0.8]


def test_a_small_plan_whose_head_moves_as_any_head_does_is_not_clipped() -> None:
    """A head does not shrink with the rank: of six weights by 4 beside two of 24 by 16, the norm is the smallest."""
    small = UpdateFile("small", 10, FILE, {f"w{n}": tuple(range(4)) for n in range(6)}, steps=1)
    large = [UpdateFile(name, 10, FILE, {f"w{n}": tuple(range(16)) for n in range(24)}, steps=1) for name in "ab"]
    assert clips([small, *large], 3.5, 3.7, 3.6, clip=1.5) == [1.0, 1.0, 1.0]
    assert clips([small, *large], 350.0, 3.7, 3.6, clip=1.5)[0] < 0.02


@given(
    st.lists(st.floats(0.1, 10), min_size=2, max_size=5),
    st.lists(st.floats(0, 1e30), min_size=1, max_size=4),
    st.lists(st.sampled_from([1, 4, 16]), min_size=9, max_size=9),
)
def test_a_minority_moves_no_farther_than_honest_size(
    honest: list[float], hostile: list[float], ranks: list[int]
) -> None:
    hostile = hostile[: len(honest) - 1]
    norms = [*honest, *hostile]
    updates = [files(f"agent-{n}", rank=rank)[0] for n, rank in zip(range(len(norms)), ranks, strict=False)]
    moved = [norm * factor for norm, factor in zip(norms, clips(updates, *norms), strict=True)]
    per_root = max(norm / rank**0.5 for norm, rank in zip(honest, ranks, strict=False))
    for far, rank in zip(moved, ranks, strict=False):
        assert far <= 2.0 * max(*honest, per_root * rank**0.5) * (1 + 1e-9)


def test_a_late_update_is_clipped_and_is_nobodys_measure() -> None:
    updates = [*files("a", "b", "c"), *(replace(each, base=FILE) for each in files("a", "b", "c"))]
    assert clips(updates, 1.0, 1.0, 1.0, 50.0, 50.0, 50.0) == [1.0, 1.0, 1.0, 0.04, 0.04, 0.04]


@given(st.lists(st.floats(0, 1e30), min_size=3, max_size=9), st.data())
def test_the_median_lies_among_the_honest_while_they_are_the_most(sizes: list[float], data: st.DataObject) -> None:
    hostile = data.draw(st.lists(st.floats(0, 1e60), max_size=len(sizes) - 1))
    middle = typical([*hostile, *sizes], 3)
    if middle is not None and sum(size > 0 for size in sizes) > len(sizes + hostile) / 2:
        assert min(sizes) <= middle <= max(sizes)


# --- multi-krum -------------------------------------------------------------------------------------------------


def _gram(*points: float) -> np.ndarray:
    return np.outer(points, points)


def test_krum_by_hand() -> None:
    """Points on a line; n = 5, f = 1: scores by the two closest, and the two best are taken."""
    # 0: 1+4, 1: 1+1, 2: 1+1, 3.5: 2.25+6.25, 100: far
    assert select(_gram(0.0, 1.0, 2.0, 3.5, 100.0), 1) == [1, 2]
    assert select(_gram(100.0, 2.0, 3.5, 1.0, 0.0), 1) == [1, 3]


def test_of_equals_the_first_are_taken() -> None:
    assert select(_gram(1.0, 1.0, 1.0, 1.0, 1.0), 1) == [0, 1]


@pytest.mark.parametrize("attackers", [1, 2, 3])
def test_krum_needs_two_and_two_for_each_attacker_and_three_besides(attackers: int) -> None:
    with pytest.raises(ValueError, match=f"needs {needed(attackers)} votes, got {2 * attackers + 2}"):
        select(np.eye(2 * attackers + 2), attackers)
    assert len(select(np.eye(2 * attackers + 3), attackers)) == attackers + 1


@given(st.integers(0, 2**32), st.integers(1, 4), st.floats(1, 1e20))
def test_krum_takes_nobody_of_so_many_far_attackers_even_if_they_collude(seed: int, attackers: int, far: float) -> None:
    random = np.random.default_rng(seed)
    honest = random.standard_normal((attackers + 3, 8))
    # all attackers at one place are at distance 0 of each other: f - 1 neighbours, and n - f - 2 are counted
    hostile = np.repeat(100 * far * random.standard_normal((1, 8)) + 50 * far, attackers, axis=0)
    points = np.concatenate([hostile, honest])
    assert min(select(points @ points.T, attackers)) >= attackers


def test_a_majority_that_colludes_is_believed() -> None:
    honest = np.random.default_rng(1).standard_normal((2, 8))
    points = np.concatenate([np.full((3, 8), 1e3), honest])
    assert select(points @ points.T, 1) == [0, 1]


# --- the choice -------------------------------------------------------------------------------------------------


def settings_of(**more: Any) -> AggregationSection:
    return AggregationSection(**more)


def test_calm_updates_are_averaged_as_they_are() -> None:
    updates = files("b", "a", "c")
    found = treat(updates, settings_of(), measured(updates, 1.0, 1.0, 1.0))
    assert found.updates == tuple(files("a", "b", "c"))
    assert (found.name, found.withstands, found.text()) == ("mean", 0, "")


def test_what_was_done_is_told_in_words_and_data() -> None:
    updates = [*files("a", "b", "c"), *(replace(each, base=FILE) for each in files("a"))]
    found = treat(updates, settings_of(), measured(updates, 1.0, 1.0, 200.0, 8.0))
    assert found.text() == "clipped: a (late) to 0.25, c to 0.01"
    assert found.record()["clipped"] == {"a (late)": 0.25, "c": 0.01}
    assert found.record()["norms"] == {"a": 1.0, "a (late)": 8.0, "b": 1.0, "c": 200.0}
    assert [update.clip for update in found.updates] == [1.0, 0.25, 1.0, 0.01]


@pytest.mark.parametrize(
    ("settings", "agents", "applied", "withstands", "remark"),
    [
        ({"rule": "median"}, 5, "median", 2, ""),
        ({"rule": "median"}, 1, "median", 0, ""),
        ({"rule": "trimmed-mean", "attackers": 2}, 5, "trimmed-mean", 2, ""),
        ({"rule": "trimmed-mean", "attackers": 2}, 4, "trimmed-mean", 1, "4 agents are too few to cut 2 off"),
        ({"rule": "multi-krum", "attackers": 1}, 5, "multi-krum", 1, ""),
        ({"rule": "multi-krum", "attackers": 1}, 4, "median", 1, "4 agents are too few for multi-krum against 1"),
    ],
)
def test_too_few_agents_get_a_documented_rule_instead(
    settings: dict[str, Any], agents: int, applied: str, withstands: int, remark: str
) -> None:
    updates = files(*"abcdef"[:agents])
    seen = measured(updates, *[1.0] * agents, products=np.eye(agents))
    found = treat(updates, settings_of(**settings), seen)
    assert (found.name, found.withstands) == (applied, withstands)
    assert found.remark.startswith(remark)
    assert bool(found.remark) == bool(remark)
    assert found.record()["rule"] == applied


def test_krum_leaves_out_whole_agents_with_what_they_bring_late() -> None:
    updates = [*files(*"abcde"), *(replace(each, base=FILE) for each in files("a", "b"))]
    points = np.array([1.0, 0.0, 1.1, 1e3, 1.2, 1.3, 1.4])  # a, a late, b, b late, c, d, e
    seen = replace(measured(updates, *[1.0] * 7), products=np.outer(points, points))
    found = treat(updates, settings_of(rule="multi-krum", clip=0.0), seen)
    assert "b" in found.left_out
    assert {update.place for update in found.updates}.isdisjoint({("b", False), ("b", True)})
    assert found.text().startswith("left out by multi-krum: ")


def test_what_an_agent_brings_late_and_in_time_is_one_vote_of_their_mean() -> None:
    """Both at 1, so its vote is at 1, beside b; their sum would be at 2, far from all."""
    updates = [*files(*"abcde"), *(replace(each, base=FILE) for each in files("a"))]
    points = np.array([1.0, 1.0, 1.01, 1.5, 0.3, 100.0])  # a, a late, b, c, d, e
    seen = replace(measured(updates, *[1.0] * 6), products=np.outer(points, points))
    assert treat(updates, settings_of(rule="multi-krum", clip=0.0), seen).left_out == ("c", "d", "e")


# --- files ------------------------------------------------------------------------------------------------------


def apply(folder: Path, start: Path, updates: Sequence[UpdateFile], **settings: Any) -> tuple[Treatment, Path]:
    section = settings_of(**settings)
    seen = measure(start, updates, shape=SHAPE, products=section.rule == "multi-krum")
    found = treat(updates, section, seen)
    out = folder / "out"
    aggregate_files(
        start, found.updates, out, shape=SHAPE, row_norm=1.0, seed=5, round_=1,
        rule=found.rule, head_rule=found.head_rule,
    )  # fmt: skip
    return found, out


def shift(start: Path, after: Path) -> dict[str, np.ndarray]:
    """How far an aggregation moved every tensor."""
    one, two = read(start), read(after)
    found = {head_name(HEAD): two[head_name(HEAD)].astype(np.float64) - one[head_name(HEAD)]}
    for weight in SIZES:
        before, now = ([each[b_name(weight)].astype(np.float64), each[a_name(weight)]] for each in (one, two))
        found[weight] = now[0] @ now[1] - before[0] @ before[1]
    return found


def norm(moved: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.linalg.norm(each) ** 2 for each in moved.values())))


def test_without_attackers_the_defaults_give_the_very_bytes_of_the_plain_mean(tmp_path: Path) -> None:
    start = write_global(tmp_path, np.random.default_rng(1))
    updates = [write_update(tmp_path, start, f"silo-{n}", n) for n in range(4)]
    found, out = apply(tmp_path, start, updates)
    assert not found.clipped
    aggregate_files(start, updates, tmp_path / "plain", shape=SHAPE, row_norm=1.0, seed=5, round_=1)
    assert out.read_bytes() == (tmp_path / "plain").read_bytes()


def test_a_hundredfold_attacker_has_no_more_influence_than_its_bound(tmp_path: Path) -> None:
    start = write_global(tmp_path, np.random.default_rng(1))
    honest = [write_update(tmp_path, start, f"silo-{n}", n) for n in range(4)]
    hostile = write_update(tmp_path, start, "wild", 9, times=100.0)
    found, out = apply(tmp_path, start, [*honest, hostile])
    assert list(found.clipped) == [("wild", False)]
    norms = sorted(norm(dense_change(start, each)) for each in [*honest, hostile])
    bound = 2.0 * norms[2]
    moved = shift(start, out)
    without = {name: sum(0.2 * dense_change(start, each)[name] for each in honest) for name in moved}
    assert norm({name: moved[name] - without[name] for name in moved}) == pytest.approx(0.2 * bound, rel=1e-4)


def test_cancelling_giants_are_clipped_to_nothing_and_leave_no_rounding(tmp_path: Path) -> None:
    """Two components of 1e30 that cancel but for rounding: a norm that is believed would let 1e14 through."""
    start = write_global(tmp_path, np.random.default_rng(1))
    updates = [write_update(tmp_path, start, f"silo-{n}", n) for n in range(4)]
    hostile = write_update(tmp_path, start, "wild", 9, times=0.0)
    tensors = read(hostile.path)
    tensors[a_name("q")][1] = tensors[a_name("q")][0]
    giant = 1e30 * np.random.default_rng(3).standard_normal(len(tensors[b_name("q")]))
    tensors[b_name("q")][:, 0], tensors[b_name("q")][:, 1] = giant, -giant
    write_tensors(hostile.path, tensors)
    _, out = apply(tmp_path, start, [*updates, hostile])
    assert norm(shift(start, out)) < 10 * norm(dense_change(start, updates[0]))


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed-mean", "multi-krum"])
@pytest.mark.parametrize("value", [3e38, -1e38, 1e-45])
def test_no_finite_value_ends_a_round(tmp_path: Path, rule: str, value: float) -> None:
    start = write_global(tmp_path, np.random.default_rng(1))
    updates = [write_update(tmp_path, start, f"silo-{n}", n) for n in range(5)]
    hostile = write_update(tmp_path, start, "wild", 9)
    write_tensors(hostile.path, {name: np.full_like(each, value) for name, each in read(hostile.path).items()})
    with np.errstate(over="raise", invalid="raise"):
        _, out = apply(tmp_path, start, [*updates, hostile], rule=rule)
    assert all(np.isfinite(each).all() for each in read(out).values())
    assert norm(shift(start, out)) < 10 * norm(dense_change(start, updates[0]))


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed-mean", "multi-krum"])
def test_every_rule_gives_the_same_bytes_in_any_order(tmp_path: Path, rule: str) -> None:
    start = write_global(tmp_path, np.random.default_rng(1))
    updates = [
        write_update(tmp_path, start, f"silo-{n}", n, times=1.0 + 9 * (n == 2), rank=2 + n % 3) for n in range(6)
    ]
    (tmp_path / "late").mkdir()
    former = write_global(tmp_path, np.random.default_rng(2), "former")
    late = replace(write_update(tmp_path / "late", former, "silo-1", 9), base=former, weight=0.5)
    updates = [*updates, late]
    first = apply(tmp_path, start, updates, rule=rule)
    one = first[1].read_bytes()
    second = apply(tmp_path, start, updates[::-1], rule=rule)
    assert second[1].read_bytes() == one
    assert second[0].record() == first[0].record()


def test_krum_averages_those_it_takes_by_their_examples(tmp_path: Path) -> None:
    start = write_global(tmp_path, np.random.default_rng(1))
    updates = [write_update(tmp_path, start, f"silo-{n}", n) for n in range(4)]
    hostile = write_update(tmp_path, start, "wild", 9, times=30.0)
    found, out = apply(tmp_path, start, [*updates, hostile], rule="multi-krum", clip=0.0)
    chosen = list(found.updates)
    assert len(chosen) == 2
    assert "wild" in found.left_out
    plain = tmp_path / "plain"
    aggregate_files(start, chosen, plain, shape=SHAPE, row_norm=1.0, seed=5, round_=1)
    assert out.read_bytes() == plain.read_bytes()
