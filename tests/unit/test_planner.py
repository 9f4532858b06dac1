"""The planner on an all-MiniLM-L6-v2, and against exhaustive search on a model that is small enough for it."""

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planning_by_hand import evaluation_s
from planning_fleet import (
    first_components,
    minilm_device,
    minilm_job,
    minilm_steps,
    profile,
    tiny_device,
    tiny_job,
)

from fedpipe_profiles.costs.memory import DEFAULT_COEFFICIENTS, DEFAULT_CONTEXT_BYTES, SAFETY_MARGIN, predict_memory
from fedpipe_profiles.costs.step import StepConfig
from fedpipe_profiles.costs.timing import DEFAULT_TIMING, device_rates, predict_step_s
from fedpipe_profiles.device import MIB
from fedpipe_profiles.plan import NoPlan, Plan
from fedpipe_profiles.planning.dynamic import best_of_one_row
from fedpipe_profiles.planning.evaluating import TIME_SLACK
from fedpipe_profiles.planning.milp import Knapsack, greedy, solve
from fedpipe_profiles.planning.options import FIDELITY, prepare
from fedpipe_profiles.planning.planner import plan_device, plan_round
from fedpipe_profiles.planning.problem import DeviceProblem, JobProblem, PlanningError
from fedpipe_profiles.planning.search import best_choice

CONTEXT = DEFAULT_CONTEXT_BYTES["cpu"]


def _plan(device: DeviceProblem, deadline_s: float = 60.0) -> Plan | NoPlan:
    return plan_device(minilm_job(), device, round_=1, deadline_s=deadline_s, draw=first_components)


def _planned(device: DeviceProblem, deadline_s: float = 60.0) -> Plan:
    plan = _plan(device, deadline_s)
    assert isinstance(plan, Plan)
    return plan


# --- the knapsack -----------------------------------------------------------------------------------------------


def _random_knapsack(seed: int) -> Knapsack:
    random = np.random.default_rng(seed)
    previous = np.array([-1, 0, 1, -1, 3, 4, -1, 6, 7, -1, 9])
    costs = random.uniform(0.1, 1.0, size=(3, 11))
    return Knapsack(random.uniform(size=11), costs, costs.sum(axis=1) * random.uniform(0.1, 0.7, size=3), previous)


@pytest.mark.parametrize("seed", range(25))
def test_solve_equals_exhaustive_search_and_greedy_stays_below(seed: int) -> None:
    problem = _random_knapsack(seed)
    every = [np.array(choice) for choice in itertools.product((False, True), repeat=11)]
    best = max(float(problem.gains @ choice) for choice in every if problem.holds(choice))
    solution = solve(problem)
    assert problem.holds(solution.chosen)
    assert solution.gain == pytest.approx(best)
    assert solution.bound == pytest.approx(best, rel=1e-4)
    quick = greedy(problem)
    assert problem.holds(quick)
    assert 0.6 * best <= float(problem.gains @ quick) <= best + 1e-12


@pytest.mark.parametrize("seed", range(25))
def test_one_row_is_solved_exactly_with_equal_costs_too(seed: int) -> None:
    random = np.random.default_rng(seed)
    problem = _random_knapsack(seed)
    costs = random.integers(1, 4, size=(1, 11)).astype(np.float64)
    problem = replace(problem, costs=costs, budgets=np.array([float(random.integers(0, 20))]))
    every = [np.array(choice) for choice in itertools.product((False, True), repeat=11)]
    best = max(float(problem.gains @ choice) for choice in every if problem.holds(choice))
    chosen = best_of_one_row(problem.gains, costs[0], float(problem.budgets[0]), problem.previous)
    assert chosen is not None
    assert problem.holds(chosen)
    assert problem.gains @ chosen == pytest.approx(best)
    assert solve(problem).bound == pytest.approx(best)


def test_too_many_different_sums_are_left_to_branch_and_bound() -> None:
    random = np.random.default_rng(0)
    count = 40
    gains = costs = random.uniform(1, 2, count)  # no choice is both dearer and worse than another
    alone = np.full(count, -1)
    assert best_of_one_row(gains, costs, 30.0, alone) is None
    solution = solve(Knapsack(gains, costs[None, :], np.array([30.0]), alone))
    assert solution.gain == pytest.approx(solution.bound, rel=1e-3)


# --- the whole problem ------------------------------------------------------------------------------------------


def _exhaustive(job: JobProblem, device: DeviceProblem, limit_bytes: float, deadline_s: float) -> float:
    """The best objective over every bits, batch, checkpointing, ranks and number of steps, from the models alone."""
    wanted = min(job.examples_per_round, device.train_examples)
    total = sum(curve[-1] for curve in job.curves.values())
    best = 0.0
    for bits, batch, checkpointing in itertools.product(device.profile.supported_bits, job.batch_sizes, (False, True)):
        config = StepConfig(
            bits=bits,
            batch_size=batch,
            sequence_length=job.sequence_length,
            gradient_checkpointing=checkpointing,
            task=job.task,
            num_labels=job.num_labels,
            ranks={},
            global_rank=job.global_rank,
        )
        option = next(
            o for o in prepare(job, device).options if (o.setting.bits, o.setting.batch_size) == (bits, batch)
        )
        for chosen in itertools.product((0, *job.rank_ladder), repeat=len(job.curves)):
            ranks = dict(zip(job.curves, chosen, strict=True))
            tried = replace(config, ranks=ranks)
            peak = predict_memory(job.shape, tried, DEFAULT_COEFFICIENTS).total_bytes
            if CONTEXT + peak * (1 + SAFETY_MARGIN) > limit_bytes:
                continue
            link = device.profile.link
            assert link is not None
            widths = {w.name: w.d_in + w.d_out for w in job.shape.weights}
            sent = 4 * (sum(r * widths[n] for n, r in ranks.items()) + job.shape.head_parameters)
            fixed_s = option.prepare_s + 2 * link.latency_s + 8 * job.down_bytes / link.downlink_bps
            fixed_s += 8 * sent / link.uplink_bps
            time_s = deadline_s * (1 - TIME_SLACK)
            room_s = time_s - fixed_s
            room_s -= evaluation_s(fixed_s, option.evaluate_s, option.evaluate_batch_s, time_s)
            step_s = predict_step_s(
                job.shape,
                replace(tried, sequence_length=device.mean_tokens),
                device_rates(device.profile),
                DEFAULT_TIMING,
            )
            examples = min(wanted, batch * math.floor(room_s / step_s))
            captured = sum(job.curves[n][r - 1] for n, r in ranks.items() if r)
            best = max(best, examples / wanted * captured / total * FIDELITY[bits])
    return best


@pytest.mark.parametrize("seed", range(16))
def test_the_choice_equals_exhaustive_search(seed: int) -> None:
    random = np.random.default_rng(seed)
    job = tiny_job(seed)
    # rates so low that steps, transfers and the limit all matter
    limit = CONTEXT + int(8.8 * MIB + 1.1 * random.uniform(26_000, 90_000))
    device = tiny_device(limit, flops_per_s=2e5, uplink_bps=float(random.uniform(1e3, 8e3)), bits=(4, 32))
    deadline_s = float(random.uniform(4, 16))
    prepared = prepare(job, device)
    choice = best_choice(job.increments, prepared, prepared.budget(deadline_s), gap=0.0, solves=500)
    # the models round to whole bytes
    least = _exhaustive(job, device, limit - 8, deadline_s * (1 - 1e-9))
    most = _exhaustive(job, device, limit + 8, deadline_s * (1 + 1e-9))
    reached = choice.objective if choice else 0.0
    assert least * (1 - 1e-9) <= reached <= most * (1 + 1e-9)
    quick = best_choice(job.increments, prepared, prepared.budget(deadline_s), solves=0)
    assert (quick.objective if quick else 0.0) <= reached * (1 + 1e-9)


# --- plans ------------------------------------------------------------------------------------------------------


def test_less_memory_means_fewer_bits_and_smaller_ranks() -> None:
    plans = [_planned(minilm_device(mib, bits=(4, 8, 32))) for mib in (520, 530, 650)]
    assert [plan.bits for plan in plans] == [4, 8, 32]
    sums = [sum(plan.ranks.values()) for plan in plans]
    assert sums == sorted(sums)
    assert sums[0] < sums[-1]
    assert plans[0].bound == "memory"
    assert plans[0].reason.startswith("memory: 4-bit base because the same work at 8 bits needs ")
    assert "520 MiB are lent" in plans[0].reason


def test_everything_fits_a_large_device() -> None:
    plan = _planned(minilm_device(1500))
    assert plan.bound == "nothing"
    assert plan.examples == 256
    assert set(plan.ranks.values()) == {32}
    assert len(plan.ranks) == 37
    assert plan.reason == f"nothing: {plan.bits}-bit base; all 37 weights at rank 32; 256 of 256 examples"


def test_a_plan_predicts_what_the_models_say() -> None:
    job = replace(minilm_job(), needs_download=True)
    device = replace(minilm_device(560), measurements=())
    plan = plan_device(job, device, round_=3, deadline_s=60, draw=first_components)
    assert isinstance(plan, Plan)
    config = StepConfig(
        bits=plan.bits,
        batch_size=plan.batch_size,
        sequence_length=job.sequence_length,
        gradient_checkpointing=plan.gradient_checkpointing,
        task=job.task,
        num_labels=8,
        ranks=dict.fromkeys(job.curves, 0) | plan.ranks,
        global_rank=32,
    )
    peak = predict_memory(job.shape, config, DEFAULT_COEFFICIENTS).total_bytes
    assert plan.predicted.peak_bytes == pytest.approx(peak, abs=8)
    widths = {w.name: w.d_in + w.d_out for w in job.shape.weights}
    assert plan.predicted.up_bytes == 4 * (sum(r * widths[n] for n, r in plan.ranks.items()) + 3080)
    # 42,240 parameters per rank of all weights, at rank 32, and the head
    assert plan.predicted.down_bytes == 4 * (32 * 42_240 + 3080)
    assert plan.predicted.compute_s < plan.predicted.round_s <= 60 * (1 - TIME_SLACK)


def test_a_short_deadline_binds_by_time_and_leaves_examples_out() -> None:
    plan = _planned(minilm_device(1500), deadline_s=8)
    assert plan.bound == "time"
    assert plan.examples < 256
    assert f"{plan.examples} of 256 examples" in plan.reason
    assert plan.predicted.round_s <= 8 * (1 - TIME_SLACK)


def test_a_slow_link_binds_and_lowers_the_ranks() -> None:
    plan = _planned(minilm_device(1500, uplink_bps=4e5))
    assert plan.bound == "link"
    assert sum(plan.ranks.values()) < 37 * 32
    assert plan.reason.startswith("link: ")


def test_a_budget_of_bytes_is_kept() -> None:
    plan = _planned(replace(minilm_device(1500), up_budget_bytes=500_000))
    assert plan.predicted.up_bytes <= 500_000
    assert plan.bound == "link"


def test_no_plan_names_the_smallest_thing_that_would_fit() -> None:
    plan = _plan(minilm_device(480))
    assert isinstance(plan, NoPlan)
    assert plan.bound == "memory"
    assert plan.reason.startswith("needs 5")
    said = r"needs (\d+) MiB at 16 bits, batch 4, checkpointing; 480 MiB are lent, (\d+) MiB too few"
    figures = re.fullmatch(said, plan.reason)
    assert figures is not None
    needed, lacking = int(figures[1]), int(figures[2])
    assert needed - lacking == pytest.approx(480, abs=1)
    assert isinstance(_plan(minilm_device(needed + 1)), Plan)


@pytest.mark.parametrize(("uplink_bps", "deadline_s", "bound"), [(20e6, 1.0, "time"), (1e4, 20.0, "link")])
def test_no_plan_for_want_of_time(uplink_bps: float, deadline_s: float, bound: str) -> None:
    plan = _plan(minilm_device(1500, uplink_bps=uplink_bps), deadline_s)
    assert isinstance(plan, NoPlan)
    assert plan.bound == bound
    assert f"{deadline_s * 0.9:.1f} s are usable" in plan.reason


def test_a_peak_below_the_cap_after_an_out_of_memory_error() -> None:
    before = _planned(minilm_device(700))
    after = _planned(replace(minilm_device(700), memory_cap_bytes=before.predicted.peak_bytes))
    assert after.predicted.peak_bytes < before.predicted.peak_bytes
    lower = _planned(replace(minilm_device(700), memory_cap_bytes=80 * MIB))
    assert lower.predicted.peak_bytes < 80 * MIB
    assert "may be used since it ran out of memory" in lower.reason


def test_only_supported_bits_are_planned() -> None:
    assert _planned(minilm_device(1500, bits=(8,))).bits == 8
    assert _planned(minilm_device(1500, bits=(8,))).bound == "nothing"
    # with equal rates and peaks, more bits win where they fit
    assert _planned(minilm_device(1500, bits=(4, 8, 32))).bits == 32


def test_a_base_that_is_still_loaded_costs_no_time() -> None:
    cold = minilm_device(1500, bits=(8,))
    warm = replace(cold, loaded_bits=8)
    saved = _planned(cold).predicted.round_s - _planned(warm).predicted.round_s
    assert saved == pytest.approx(1.0)


def test_a_device_with_few_examples_is_asked_for_no_more() -> None:
    few = replace(minilm_device(1500), train_examples=3)
    plan = _planned(few)
    assert (plan.examples, plan.batch_size) == (3, 4)
    assert plan.bound == "nothing"


def test_bad_draws_are_caught() -> None:
    def repeats(agent: str, weight: str, of: int, rank: int) -> tuple[int, ...]:
        del agent, weight, of
        return (0,) * rank

    with pytest.raises(PlanningError, match="expected 32 different ones of 0 to 31"):
        plan_device(minilm_job(), minilm_device(1500), round_=1, deadline_s=60, draw=repeats)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank_ladder": (64,)}, "no rank of the ladder .* global rank 32"),
        ({"rank_ladder": ()}, "no rank of the ladder"),
        ({"batch_sizes": ()}, "batch sizes .*at least one"),
        ({"examples_per_round": 0}, "examples per round is 0"),
        ({"curves": {"nowhere": (1.0,)}}, "the model has no weight nowhere"),
        ({"curves": {"pooler": (0.0, 0.0)}}, "every gradient was zero"),
    ],
)
def test_a_job_that_cannot_be_planned_says_why(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanningError, match=message):
        replace(minilm_job(), **change)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: _plan(minilm_device(1500), 0.0),
        lambda: _plan(minilm_device(1500), math.inf),
        lambda: plan_round(minilm_job(), {}, round_=1, deadline_s=None, draw=first_components),
        lambda: replace(minilm_device(1500), train_examples=0),
    ],
)
def test_impossible_questions_are_refused(ask: Callable[[], object]) -> None:
    with pytest.raises(PlanningError):
        ask()


# --- rounds -----------------------------------------------------------------------------------------------------


def _fleet() -> dict[str, DeviceProblem]:
    sizes = {"ward": 480, "clinic": 540, "lab": 600, "campus": 1500, "twin": 1500}
    return {name: minilm_device(mib, agent=name) for name, mib in sizes.items()}


def test_every_agent_of_a_round_is_told_something() -> None:
    found = plan_round(minilm_job(), _fleet(), round_=4, deadline_s=30.0, draw=first_components)
    assert set(found.none) == {"ward"}
    assert set(found.plans) == {"clinic", "lab", "campus", "twin"}
    assert all(plan.agent == name and plan.round == 4 for name, plan in found.plans.items())
    assert found.plans["campus"] == found.plans["twin"].model_copy(update={"agent": "campus"})
    assert [point.deadline_s for point in found.curve] == [30.0]
    alone = plan_device(minilm_job(), _fleet()["lab"], round_=4, deadline_s=30.0, draw=first_components)
    assert found.plans["lab"] == alone


def test_the_automatic_deadline_is_the_best_of_its_curve() -> None:
    found = plan_round(minilm_job(), _fleet(), round_=1, deadline_s=None, draw=first_components)
    best = max(found.curve, key=lambda point: point.progress / point.deadline_s)
    assert found.deadline_s == best.deadline_s
    deadlines = [point.deadline_s for point in found.curve]
    reached = [point.progress for point in found.curve]
    assert deadlines == sorted(deadlines)
    assert len(deadlines) >= 10
    assert all(after >= before - 0.01 for before, after in itertools.pairwise(reached))
    assert all(
        plan.predicted.round_s <= found.deadline_s * (1 - TIME_SLACK) * (1 + 1e-9) for plan in found.plans.values()
    )


def test_a_straggler_with_little_data_is_not_waited_for() -> None:
    slow = replace(
        minilm_device(1500, agent="slow"),
        measurements=tuple(m.model_copy(update={"step_s": 40.0}) for m in minilm_steps()),
        train_examples=20,
    )
    alone = plan_round(minilm_job(), _fleet(), round_=1, deadline_s=None, draw=first_components)
    joined = plan_round(minilm_job(), _fleet() | {"slow": slow}, round_=1, deadline_s=None, draw=first_components)
    assert joined.deadline_s < 2 * alone.deadline_s


def test_a_fleet_that_can_carry_nothing_gets_reasons() -> None:
    fleet = {"ward": minilm_device(400, agent="ward")}
    found = plan_round(minilm_job(), fleet, round_=1, deadline_s=None, draw=first_components)
    assert not found.plans
    assert found.none["ward"].bound == "memory"
    assert found.curve == ()


def test_an_agent_without_a_measured_link_is_still_planned() -> None:
    device = replace(
        minilm_device(1500), profile=profile(1500 * MIB).model_copy(update={"link": None}), measurements=()
    )
    assert isinstance(_plan(device), Plan)
