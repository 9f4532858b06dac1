"""The laws of aggregation, against dense matrices in float64."""

import hashlib
import itertools
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from fedpipe_coordinator.aggregation.aggregate import (
    Aggregated,
    AggregationError,
    AggregationReport,
    Factors,
    HeadChange,
    UpdateFile,
    WeightChange,
    aggregate_files,
    aggregate_head,
    aggregate_weight,
)
from fedpipe_coordinator.aggregation.components import draw_components
from fedpipe_coordinator.aggregation.global_adapter import initial_adapter
from fedpipe_coordinator.aggregation.parallel import in_order
from fedpipe_profiles.model import ModelShape, ParameterShape, WeightShape
from fedpipe_wire.tensors import TensorError, TensorFile, write_tensors

EXACT = 1e-10
slow_enough = settings(deadline=None, max_examples=60)


def dense(global_: Factors, changes: Sequence[WeightChange]) -> np.ndarray:
    """The rule as design.md states it, on matrices that nobody could hold in earnest."""
    b, a = global_.b.astype(np.float64), global_.a.astype(np.float64)
    total = sum(change.weight * change.examples for change in changes)
    result = b @ a
    for change in changes:
        before = b[:, list(change.indices)] @ a[list(change.indices)]
        if change.base is not None:
            before = change.base.b.astype(np.float64) @ change.base.a.astype(np.float64)
        after = change.b.astype(np.float64) @ change.a.astype(np.float64)
        result = result + change.weight * change.examples / total * (after - before)
    return result


def product(result: Aggregated) -> np.ndarray:
    return result.factors.b.astype(np.float64) @ result.factors.a.astype(np.float64)


def scale_of(global_: Factors, changes: Sequence[WeightChange]) -> float:
    """Size of what was added up: the result itself may cancel to nothing."""
    parts = [(global_.b, global_.a), *((change.b, change.a) for change in changes)]
    parts += [(change.base.b, change.base.a) for change in changes if change.base is not None]
    return max(float(np.linalg.norm(b.astype(np.float64) @ a)) for b, a in parts)


def aggregate(global_: Factors, changes: Sequence[WeightChange], dtype: Any = np.float64) -> Aggregated:
    return aggregate_weight(global_, changes, row_norm=0.7, reseed=np.random.default_rng(0), dtype=dtype)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Factors, list[WeightChange]]:
    """Random factors: of any conditioning and rank, wider than the matrix or not, near or far."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    d_out, d_in = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rank = draw(st.integers(1, 12))
    decades = draw(st.sampled_from([0, 0, 4, 9, 14]))
    step = draw(st.sampled_from([1.0, 1e-2, 1e-6]))

    def matrix(rows: int, columns: int) -> np.ndarray:
        values = random.standard_normal((rows, columns))
        return values * 10.0 ** -random.uniform(0, decades, columns)

    global_ = Factors(matrix(d_out, rank), matrix(d_in, rank).T)
    if draw(st.booleans()):
        global_ = Factors(np.zeros_like(global_.b), global_.a)
    changes = []
    for number in range(draw(st.integers(1, 5))):
        indices = tuple(sorted(random.choice(rank, random.integers(1, rank + 1), replace=False)))
        b = global_.b[:, indices] + step * matrix(d_out, len(indices))
        a = global_.a[list(indices)] + step * matrix(d_in, len(indices)).T
        if draw(st.integers(0, 4)) == 0:
            b[:, -1] = b[:, 0]
        if draw(st.integers(0, 4)) == 0:
            a[-1] = 0
        indices = tuple(int(index) for index in indices)
        changes.append(WeightChange(f"agent-{number}", draw(st.integers(1, 1000)), indices, b, a))
    return global_, changes


@slow_enough
@given(problems())
def test_equals_the_dense_rule(problem: tuple[Factors, list[WeightChange]]) -> None:
    global_, changes = problem
    result = aggregate(global_, changes)
    wanted = dense(global_, changes)
    size = scale_of(global_, changes)
    u, s, vt = np.linalg.svd(wanted, full_matrices=False)
    rank = len(global_.a)
    kept = len(result.singular_values)
    np.testing.assert_allclose(result.singular_values, s[:kept], rtol=0, atol=EXACT * size)
    assert not (s[kept:rank] > EXACT * size).any()
    tail = np.linalg.norm(s[rank:])
    assert abs(result.tail * result.norm - tail) <= EXACT * size
    # What is left over must be the smallest possible, whichever of equal directions were kept.
    assert np.linalg.norm(wanted - product(result)) <= tail + EXACT * size
    if s[rank - 1 : rank].sum() - s[rank : rank + 1].sum() > 1e-3 * size:
        best = u[:, :rank] * s[:rank] @ vt[:rank]
        assert np.linalg.norm(best - product(result)) <= EXACT * size


@slow_enough
@given(problems())
def test_factors_are_balanced_on_orthogonal_rows(
    problem: tuple[Factors, list[WeightChange]],
) -> None:
    result = aggregate(*problem)
    a, b = result.factors.a, result.factors.b
    kept = len(result.singular_values)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 0.7, rtol=1e-9)
    assert not b[:, kept:].any()
    first = a[: min(len(a), a.shape[1])]
    strong = result.singular_values > 1e-6 * result.norm if kept else np.empty(0, bool)
    chosen = np.flatnonzero(np.concatenate([strong, np.ones(max(0, len(first) - kept), bool)]))
    np.testing.assert_allclose(first[chosen] @ first[chosen].T, 0.49 * np.eye(len(chosen)), atol=1e-7)


@slow_enough
@given(problems(), st.randoms(use_true_random=False))
def test_bits_do_not_depend_on_arrival(problem: tuple[Factors, list[WeightChange]], random: Any) -> None:
    global_, changes = problem
    shuffled = list(changes)
    random.shuffle(shuffled)
    one, two = aggregate(global_, changes, np.float32), aggregate(global_, shuffled, np.float32)
    assert one.factors.b.dtype == np.float32
    assert one.factors.b.tobytes() == two.factors.b.tobytes()
    assert one.factors.a.tobytes() == two.factors.a.tobytes()
    assert one.tail == two.tail


@slow_enough
@given(problems())
def test_float32_result_is_as_good_as_float32_can_be(
    problem: tuple[Factors, list[WeightChange]],
) -> None:
    exact, rounded = aggregate(*problem), aggregate(*problem, np.float32)
    error = np.linalg.norm(product(exact) - product(rounded))
    assert error <= 4 * np.finfo(np.float32).eps * np.linalg.norm(product(exact)) + 1e-40


@slow_enough
@given(problems(), st.integers(0, 4))
def test_splitting_an_agent_changes_nothing(problem: tuple[Factors, list[WeightChange]], which: int) -> None:
    global_, changes = problem
    doubled = [replace(change, examples=2 * change.examples) for change in changes]
    victim = changes[which % len(changes)]
    halves = [replace(victim, agent=name) for name in ("half-a", "half-b")]
    split = [change for change in doubled if change.agent != victim.agent] + halves
    one, two = aggregate(global_, doubled), aggregate(global_, split)
    size = scale_of(global_, changes)
    assert abs(one.norm - two.norm) <= EXACT * size
    assert abs(one.tail * one.norm - two.tail * two.norm) <= EXACT * size
    if one.tail * one.norm <= EXACT * size:
        assert np.linalg.norm(product(one) - product(two)) <= 4 * EXACT * size


@slow_enough
@given(problems(), st.integers(1, 10**9))
def test_one_agent_with_all_components_gets_its_own_adapter_back(
    problem: tuple[Factors, list[WeightChange]], examples: int
) -> None:
    global_, changes = problem
    full = [change for change in changes if len(change.indices) == len(global_.a)]
    assume(full)
    only = replace(full[0], examples=examples)
    result = aggregate(global_, [only])
    own = only.b @ only.a
    assert np.linalg.norm(product(result) - own) <= EXACT * np.linalg.norm(own) + 1e-300
    assert result.tail * result.norm <= EXACT * np.linalg.norm(own)


@slow_enough
@given(problems())
def test_scaling_all_examples_changes_nothing(
    problem: tuple[Factors, list[WeightChange]],
) -> None:
    global_, changes = problem
    thousandfold = [replace(change, examples=1024 * change.examples) for change in changes]
    one, two = aggregate(global_, changes), aggregate(global_, thousandfold)
    assert one.factors.b.tobytes() == two.factors.b.tobytes()


def small_problem() -> tuple[Factors, WeightChange]:
    random = np.random.default_rng(3)
    global_ = Factors(random.standard_normal((6, 4)), random.standard_normal((4, 5)))
    change = WeightChange("a", 10, (1, 3), np.ones((6, 2)), np.ones((2, 5)))
    return global_, change


def test_untrained_components_of_a_small_device_survive() -> None:
    # Component 0 is trained by one of two equal agents, component 1 by nobody.
    global_ = Factors(np.array([[2.0, 0.0], [0.0, 3.0]]), np.eye(2))
    changes = [
        WeightChange("trains", 5, (0,), np.array([[4.0], [0.0]]), np.array([[1.0, 0.0]])),
        WeightChange("sits", 5, (), np.empty((2, 0)), np.empty((0, 2))),
    ]
    np.testing.assert_allclose(product(aggregate(global_, changes)), np.diag([3.0, 3.0]), atol=1e-12)


def test_no_change_leaves_the_weight_as_it_is() -> None:
    global_, _ = small_problem()
    result = aggregate(global_, [])
    assert result.factors is global_
    assert result.tail == 0
    assert abs(result.norm - np.linalg.norm(global_.b @ global_.a)) < 1e-12


def test_changes_that_cancel_leave_fresh_directions_and_no_product() -> None:
    global_ = Factors(np.zeros((6, 3)), np.eye(3, 5))
    b, a = np.ones((6, 1)), np.ones((1, 5))
    result = aggregate(global_, [WeightChange("plus", 1, (0,), b, a), WeightChange("minus", 1, (0,), -b, a)])
    assert not result.factors.b.any()
    np.testing.assert_allclose(result.factors.a @ result.factors.a.T, 0.49 * np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"examples": 0}, "0 examples"),
        ({"examples": -3}, r"\('a', -3\)"),
        ({"b": np.ones((6, 3))}, r"expected factors \(\(6, 2\), \(2, 5\)\), got \(\(6, 3\)"),
        ({"a": np.ones((2, 4))}, r"got \(\(6, 2\), \(2, 4\)\)"),
        ({"indices": (1, 4)}, "0 to 3"),
        ({"indices": (-1, 3)}, "0 to 3"),
        ({"indices": (3, 3)}, "distinct"),
        ({"indices": (0, 1, 2)}, r"expected factors \(\(6, 3\)"),
        ({"b": np.full((6, 2), np.nan)}, "a: factors are not finite"),
        ({"a": np.full((2, 5), np.inf)}, "a: factors are not finite"),
    ],
)
def test_faulty_change_is_an_error(fault: dict[str, Any], says: str) -> None:
    global_, change = small_problem()
    with pytest.raises(AggregationError, match=says):
        aggregate(global_, [replace(change, **fault)])


def test_one_agent_twice_is_an_error() -> None:
    global_, change = small_problem()
    with pytest.raises(AggregationError, match="comes twice"):
        aggregate(global_, [change, change])


def test_head_is_the_mean_weighted_by_examples() -> None:
    start = np.array([10.0, 0.0], np.float32)
    changes = [
        HeadChange("b", 3, np.array([14.0, 1.0], np.float32)),
        HeadChange("a", 1, np.array([10.0, 5.0], np.float32)),
    ]
    assert aggregate_head(start, changes).tolist() == [13.0, 2.0]
    assert aggregate_head(start, changes[::-1]).tolist() == [13.0, 2.0]
    with pytest.raises(AggregationError, match="0 examples"):
        aggregate_head(start, [])
    with pytest.raises(AggregationError, match=r"expected \(2,\), got \(3,\)"):
        aggregate_head(start, [HeadChange("a", 1, np.zeros(3, np.float32))])
    with pytest.raises(AggregationError, match="not finite"):
        aggregate_head(start, [HeadChange("a", 1, np.array([np.nan, 0], np.float32))])


# --- updates that come a round late ---------------------------------------------------------------


@st.composite
def late_problems(draw: st.DrawFn) -> tuple[Factors, list[WeightChange]]:
    """A round as in `problems`, and changes that were trained from the global factors of the round before."""
    global_, changes = draw(problems())
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    (d_out, rank), d_in = global_.b.shape, global_.a.shape[1]
    weight = draw(st.sampled_from([0.1, 0.5, 1.0]))
    for number in range(draw(st.integers(1, 3))):
        count = int(random.integers(1, rank + 1))
        indices = tuple(sorted(int(index) for index in random.choice(rank, count, replace=False)))
        base = Factors(random.standard_normal((d_out, count)), random.standard_normal((count, d_in)))
        b = base.b + 0.1 * random.standard_normal(base.b.shape)
        # the same agent may also deliver in time
        changes.append(WeightChange(f"agent-{number}", draw(st.integers(1, 99)), indices, b, base.a, base, weight))
    return global_, changes


@slow_enough
@given(late_problems(), st.randoms(use_true_random=False))
def test_a_late_change_is_measured_against_what_it_was_trained_from(
    problem: tuple[Factors, list[WeightChange]], random: Any
) -> None:
    global_, changes = problem
    result = aggregate(global_, changes)
    wanted = dense(global_, changes)
    size = scale_of(global_, changes)
    tail = np.linalg.norm(np.linalg.svd(wanted, compute_uv=False)[len(global_.a) :])
    assert abs(result.tail * result.norm - tail) <= EXACT * size
    assert np.linalg.norm(wanted - product(result)) <= tail + EXACT * size
    shuffled = random.sample(changes, len(changes))
    assert aggregate(global_, shuffled).factors.b.tobytes() == result.factors.b.tobytes()


@slow_enough
@given(problems())
def test_a_late_change_of_full_weight_from_the_same_adapter_is_an_ordinary_one(
    problem: tuple[Factors, list[WeightChange]],
) -> None:
    global_, changes = problem
    late = [
        replace(change, base=Factors(global_.b[:, list(change.indices)], global_.a[list(change.indices)]))
        for change in changes
    ]
    one, two = aggregate(global_, changes), aggregate(global_, late)
    size = scale_of(global_, changes)
    assert abs(one.tail * one.norm - two.tail * two.norm) <= EXACT * size
    if one.tail * one.norm <= EXACT * size:
        assert np.linalg.norm(product(one) - product(two)) <= 4 * EXACT * size


def test_a_late_change_of_no_weight_and_a_misshapen_base_are_errors() -> None:
    global_, change = small_problem()
    with pytest.raises(AggregationError, match="expected at least one update"):
        aggregate(global_, [replace(change, weight=0.0)])
    base = Factors(np.ones((6, 1)), np.ones((1, 5)))
    with pytest.raises(AggregationError, match=r"expected a base of \(\(6, 2\), \(2, 5\)\), got \(\(6, 1\)"):
        aggregate(global_, [replace(change, base=base)])


def test_a_late_head_is_measured_against_its_own_base() -> None:
    start, base = np.array([10.0], np.float32), np.array([4.0], np.float32)
    changes = [
        HeadChange("a", 2, np.array([13.0], np.float32)),
        HeadChange("a", 4, np.array([10.0], np.float32), base, 0.5),
    ]
    # both count as two examples: 10, and half of 3, and half of 6
    assert aggregate_head(start, changes).tolist() == [14.5]


# --- files --------------------------------------------------------------------------------------

RANK = 6
SHAPE = ModelShape(
    model_type="tiny", layers=1, hidden_size=12, intermediate_size=20, heads=2, vocabulary_size=10,
    weights=(
        WeightShape(name="q", d_out=12, d_in=12), WeightShape(name="up", d_out=20, d_in=12),
        WeightShape(name="down", d_out=12, d_in=20), WeightShape(name="idle", d_out=12, d_in=12),
    ),
    other_parameters=0, head=(ParameterShape(name="score.weight", shape=(3, 12)),), fingerprint="0" * 64,
)  # fmt: skip


def make_round(folder: Path, agents: int = 3) -> tuple[Path, list[UpdateFile]]:
    """A global adapter and an update per agent; nobody trains the weight `idle`."""
    start = folder / "global.safetensors"
    initial_adapter(start, SHAPE, [weight.name for weight in SHAPE.weights], RANK, seed=5, row_norm=1.0)
    updates = []
    for number in range(agents):
        agent = f"silo-{number}"
        random = np.random.default_rng(number)
        tensors = {"head:score.weight": random.standard_normal((3, 12), np.float32)}
        components: dict[str, tuple[int, ...]] = {}
        for weight in SHAPE.weights:
            count = 0 if weight.name == "idle" else 2 + number
            components[weight.name] = draw_components(5, 1, agent, weight.name, RANK, count)
            if count:
                tensors[f"{weight.name}.lora_A"] = random.standard_normal((count, weight.d_in), np.float32)
                tensors[f"{weight.name}.lora_B"] = random.standard_normal((weight.d_out, count), np.float32)
        path = folder / f"{agent}.safetensors"
        write_tensors(path, tensors)
        updates.append(UpdateFile(agent, 10 * (number + 1), path, components))
    return start, updates


def load(path: Path) -> dict[str, np.ndarray]:
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.header}


def test_files_follow_the_rule_and_report_the_tail(tmp_path: Path) -> None:
    start, updates = make_round(tmp_path)
    out = tmp_path / "out"
    report = aggregate_files(start, updates, out, shape=SHAPE, row_norm=1.0, seed=5, round_=1)
    before, after = load(start), load(out)
    lost = whole = 0.0
    for name in ("q", "up", "down"):
        changes = [
            WeightChange(
                update.agent, update.examples, update.components[name],
                load(update.path)[f"{name}.lora_B"], load(update.path)[f"{name}.lora_A"],
            )
            for update in updates
        ]  # fmt: skip
        wanted = dense(Factors(before[f"{name}.lora_B"], before[f"{name}.lora_A"]), changes)
        s = np.linalg.svd(wanted, compute_uv=False)
        tail = np.linalg.norm(s[RANK:])
        got = after[f"{name}.lora_B"].astype(np.float64) @ after[f"{name}.lora_A"]
        assert np.linalg.norm(got - wanted) == pytest.approx(tail, rel=1e-5)
        assert report.tails[name] == pytest.approx(tail / np.linalg.norm(wanted), rel=1e-9)
        lost, whole = lost + float(tail) ** 2, whole + float(np.linalg.norm(wanted)) ** 2
    assert report.tail == pytest.approx(np.sqrt(lost / whole), rel=1e-9)
    assert (report.weights, report.agents, report.examples) == (4, 3, 60)
    np.testing.assert_array_equal(after["idle.lora_A"], before["idle.lora_A"])
    heads = [load(update.path)["head:score.weight"] for update in updates]
    np.testing.assert_allclose(after["head:score.weight"], np.average(heads, axis=0, weights=[10, 20, 30]), atol=1e-6)


def test_files_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    start, updates = make_round(tmp_path, agents=4)
    for name, order in (("one", updates), ("two", updates[::-1]), ("three", updates[2:] + updates[:2])):
        aggregate_files(start, order, tmp_path / name, shape=SHAPE, row_norm=1.0, seed=5, round_=1)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "three").read_bytes()


def test_files_give_the_same_bytes_with_any_number_of_threads(tmp_path: Path) -> None:
    start, updates = make_round(tmp_path, agents=4)

    def run(name: str, **more: Any) -> AggregationReport:
        return aggregate_files(start, updates, tmp_path / name, shape=SHAPE, row_norm=1.0, seed=5, round_=1, **more)

    reports = [run("one", threads=1), run("four", threads=4), run("own")]
    files = [(tmp_path / name).read_bytes() for name in ("one", "four", "own")]
    assert files[0] == files[1] == files[2]
    assert list(load(tmp_path / "four")) == list(load(start))
    assert reports[0] == reports[1] == reports[2]
    assert reports[1].sha256 == hashlib.sha256(files[1]).hexdigest()


def test_weights_are_worked_on_beside_each_other(tmp_path: Path) -> None:
    start, updates = make_round(tmp_path)
    second, begun = threading.Event(), itertools.count(1)

    def rule(global_: Factors, changes: Sequence[WeightChange], **settings: Any) -> Aggregated:
        if next(begun) == 1:
            assert second.wait(10), "the second weight waits for the first"
        else:
            second.set()
        return aggregate_weight(global_, changes, **settings)

    out = tmp_path / "out"
    aggregate_files(start, updates, out, shape=SHAPE, row_norm=1.0, seed=5, round_=1, rule=rule, threads=2)


@given(st.integers(0, 8), st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_results_come_in_order_and_none_is_begun_early(count: int, threads: int) -> None:
    """Whoever is next in line waits for the one behind it, so all but the last are done late."""
    begun = [threading.Event() for _ in range(count)]
    taken = most = 0

    def work(name: str) -> Any:
        nonlocal most
        number = int(name)
        begun[number].set()
        most = max(most, number + 1 - taken)
        assert threads == 1 or number + 1 == count or begun[number + 1].wait(10)
        return name

    with ThreadPoolExecutor(threads) as pool:
        for name, result in in_order(work, map(str, range(count)), pool, threads):
            assert name == cast("object", result) == str(taken)
            taken += 1
    assert taken == count
    assert most <= min(count, threads)


def test_a_component_that_all_trained_is_as_good_as_gone() -> None:
    """Its old value has no share left, however large: not even the rounding of the rest shows it."""
    random = np.random.default_rng(3)
    global_ = Factors(random.standard_normal((9, 4)), random.standard_normal((4, 7)))
    loud = Factors(global_.b.copy(), global_.a.copy())
    loud.b[:, 1] *= 1e9
    changes = [
        WeightChange(f"silo-{k}", 5 + k, indices, random.standard_normal((9, len(indices))),
                     random.standard_normal((len(indices), 7)))
        for k, indices in enumerate([(0, 1), (1, 2, 3)])
    ]  # fmt: skip
    one, other = aggregate(global_, changes), aggregate(loud, changes)
    np.testing.assert_array_equal(one.factors.b, other.factors.b)
    np.testing.assert_array_equal(one.factors.a, other.factors.a)


def test_a_late_file_follows_the_rule_from_its_own_base(tmp_path: Path) -> None:
    """Silo 1 brings a late update besides its own; the base of it is another global adapter."""
    start, updates = make_round(tmp_path)
    base = tmp_path / "base.safetensors"
    initial_adapter(base, SHAPE, [weight.name for weight in SHAPE.weights], RANK, seed=6, row_norm=1.0)
    (tmp_path / "before").mkdir()
    late = replace(make_round(tmp_path / "before", agents=2)[1][1], weight=0.5, base=base)
    out = tmp_path / "out"
    report = aggregate_files(start, [*updates, late], out, shape=SHAPE, row_norm=1.0, seed=5, round_=2)
    before, former, after = load(start), load(base), load(out)
    for name in ("q", "up", "down"):
        changes = []
        for update in (*updates, late):
            own, indices = load(update.path), update.components[name]
            b, a = own[f"{name}.lora_B"], own[f"{name}.lora_A"]
            change = WeightChange(update.agent, update.examples, indices, b, a, weight=update.weight)
            if update is late:
                parts = former[f"{name}.lora_B"][:, list(indices)], former[f"{name}.lora_A"][list(indices)]
                change = replace(change, base=Factors(*parts))
            changes.append(change)
        wanted = dense(Factors(before[f"{name}.lora_B"], before[f"{name}.lora_A"]), changes)
        tail = np.linalg.norm(np.linalg.svd(wanted, compute_uv=False)[RANK:])
        got = after[f"{name}.lora_B"].astype(np.float64) @ after[f"{name}.lora_A"]
        assert np.linalg.norm(got - wanted) == pytest.approx(tail, rel=1e-5)
    heads = [load(update.path)["head:score.weight"].astype(np.float64) for update in (*updates, late)]
    bases = [before["head:score.weight"]] * 3 + [former["head:score.weight"]]
    shares = [10 / 70, 20 / 70, 30 / 70, 0.5 * 20 / 70]
    moved = sum(share * (head - own) for share, head, own in zip(shares, heads, bases, strict=True))
    np.testing.assert_allclose(after["head:score.weight"], before["head:score.weight"] + moved, atol=1e-6)
    assert (report.agents, report.examples) == (4, 80)


def test_blas_has_one_thread_during_aggregation_only(tmp_path: Path) -> None:
    start, updates = make_round(tmp_path)
    seen = set()

    def blas_threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    def rule(global_: Factors, changes: Sequence[WeightChange], **settings: Any) -> Aggregated:
        seen.update(blas_threads())
        return aggregate_weight(global_, changes, **settings)

    with threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads()
        aggregate_files(start, updates, tmp_path / "out", shape=SHAPE, row_norm=1.0, seed=5, round_=1, rule=rule)
        assert blas_threads() == before
    assert seen == {1}


def test_faulty_files_are_errors_and_leave_nothing(tmp_path: Path) -> None:
    start, updates = make_round(tmp_path)
    out = tmp_path / "out"

    def run(changed: Sequence[UpdateFile]) -> None:
        aggregate_files(start, changed, out, shape=SHAPE, row_norm=1.0, seed=5, round_=1)

    with pytest.raises(AggregationError, match="0 updates"):
        run([])
    with pytest.raises(AggregationError, match="comes twice"):
        run([updates[0], updates[0]])
    with pytest.raises(TensorError, match=r"silo-0: .*q\.lora_A: expected F32 \[3, 12\], got"):
        run([replace(updates[0], components={**updates[0].components, "q": (0, 1, 2)})])
    with pytest.raises(AggregationError, match=r"silo-0 trained \['other'\]"):
        run([replace(updates[0], components={**updates[0].components, "other": (0,)})])
    with pytest.raises(AggregationError, match="q: silo-0: components"):
        run([replace(updates[0], components={**updates[0].components, "q": (0, 6)})])
    tensors = load(updates[1].path)
    tensors["down.lora_B"][3, 1] = np.nan
    write_tensors(updates[1].path, tensors)
    with pytest.raises(AggregationError, match="down: silo-1: factors are not finite"):
        run(updates)
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


# --- components ---------------------------------------------------------------------------------


@given(st.integers(0, 2**63), st.integers(1, 1000), st.integers(1, 64), st.data())
def test_drawn_components_are_distinct_sorted_and_nested(
    seed: int, round_: int, global_rank: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, global_rank))
    drawn = draw_components(seed, round_, "silo", "q", global_rank, rank)
    assert list(drawn) == sorted(set(drawn))
    assert len(drawn) == rank
    assert set(drawn) <= set(range(global_rank))
    smaller = draw_components(seed, round_, "silo", "q", global_rank, rank // 2)
    assert set(smaller) <= set(drawn)


def test_draw_is_the_same_on_every_platform() -> None:
    assert draw_components(0, 1, "silo-a", "layer.0.q", 16, 4) == (0, 2, 3, 4)


def test_every_component_is_trained_evenly_over_rounds() -> None:
    rounds, rank, of = 2000, 4, 32
    counts = Counter(index for round_ in range(rounds) for index in draw_components(7, round_, "a", "q", of, rank))
    p = rank / of
    spread = np.sqrt(rounds * p * (1 - p))
    assert set(counts) == set(range(of))
    assert max(abs(count - rounds * p) for count in counts.values()) < 5 * spread


def test_agents_weights_rounds_and_seeds_draw_apart() -> None:
    base = (7, 1, "a", "q")
    others = [(8, 1, "a", "q"), (7, 2, "a", "q"), (7, 1, "b", "q"), (7, 1, "a", "k")]
    own = set(draw_components(*base, 1000, 500))
    for other in others:
        shared = len(own & set(draw_components(*other, 1000, 500)))
        # hypergeometric: mean 250, standard deviation 7.9
        assert abs(shared - 250) < 48


@pytest.mark.parametrize("rank", [-1, 5])
def test_drawing_more_than_there_are_is_an_error(rank: int) -> None:
    with pytest.raises(ValueError, match=f"cannot draw {rank} of 4"):
        draw_components(0, 1, "a", "q", 4, rank)
