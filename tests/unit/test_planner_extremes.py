"""The planner on figures that no honest machine has, and on the smallest jobs."""

from dataclasses import replace

import numpy as np
import pytest
from planning_fleet import first_components, minilm_device, minilm_job, tiny_device, tiny_job, tiny_model

from fedpipe_profiles.device import MIB
from fedpipe_profiles.plan import NoPlan, Plan
from fedpipe_profiles.planning.planner import plan_device, plan_round
from fedpipe_profiles.planning.problem import DeviceProblem, JobProblem, PlanningError
from fedpipe_profiles.planning.reasons import MOST_CHARACTERS
from fedpipe_profiles.values import MAX_COUNT, MAX_RATE, MAX_SECONDS


def _plan(job: JobProblem, device: DeviceProblem, deadline_s: float = 60.0) -> Plan | NoPlan:
    return plan_device(job, device, round_=1, deadline_s=deadline_s, draw=first_components)


@pytest.mark.parametrize("flops_per_s", [1.0, 1e308, MAX_RATE])
@pytest.mark.parametrize("uplink_bps", [1.0, MAX_RATE / 4])
@pytest.mark.parametrize("examples", [1, MAX_COUNT])
@pytest.mark.parametrize("deadline_s", [1e-300, 60.0, MAX_SECONDS])
def test_absurd_figures_get_a_plan_or_a_reason(
    flops_per_s: float, uplink_bps: float, examples: int, deadline_s: float
) -> None:
    device = minilm_device(1500, uplink_bps=uplink_bps)
    rate = device.profile.matmul[0].model_copy(update={"flops_per_s": flops_per_s})
    device = replace(
        device,
        profile=device.profile.model_copy(update={"matmul": (rate,)}),
        measurements=(),
        train_examples=examples,
        held_out_examples=examples,
    )
    told = _plan(replace(minilm_job(), examples_per_round=MAX_COUNT), device, deadline_s)
    assert 0 < len(told.reason) < MOST_CHARACTERS
    assert "nan" not in told.reason
    if isinstance(told, Plan):
        assert told.predicted.round_s <= deadline_s
        assert 1 <= told.examples <= examples


@pytest.mark.parametrize("deadline_s", [-1.0, 0.0, 2 * MAX_SECONDS, 1e308, float("inf"), float("nan")])
def test_a_deadline_that_is_none_is_refused(deadline_s: float) -> None:
    with pytest.raises(PlanningError, match="more than 0 and at most 1000000000 seconds"):
        _plan(tiny_job(), tiny_device(1500 * MIB), deadline_s)


def test_a_round_of_absurd_devices_has_a_deadline() -> None:
    fleet = {
        name: replace(minilm_device(1500, agent=name, uplink_bps=bps), measurements=(), train_examples=MAX_COUNT)
        for name, bps in (("slow", 1.0), ("fast", MAX_RATE / 4))
    }
    found = plan_round(minilm_job(), fleet, round_=1, deadline_s=None, draw=first_components)
    assert 0 < found.deadline_s <= MAX_SECONDS
    assert "fast" in found.plans


def test_weights_without_gain_get_no_ranks() -> None:
    job = tiny_job()
    flat = replace(job, curves=dict.fromkeys(job.curves, (0.0,) * 4) | {"up": job.curves["up"]})
    plan = _plan(flat, tiny_device(1500 * MIB))
    assert isinstance(plan, Plan)
    assert set(plan.ranks) == {"up"}
    assert plan.bound == "nothing"
    assert "1 of 3 weights" in plan.reason


def test_one_weight_and_one_rank() -> None:
    job = replace(tiny_job(), curves={"out": (1e-300,)}, rank_ladder=(1,), batch_sizes=(1,))
    plan = _plan(job, tiny_device(1500 * MIB))
    assert isinstance(plan, Plan)
    assert plan.ranks == {"out": 1}


def test_ranks_beyond_the_global_rank_are_not_planned() -> None:
    plan = _plan(replace(tiny_job(), rank_ladder=(2, 8, 64)), tiny_device(1500 * MIB))
    assert isinstance(plan, Plan)
    assert set(plan.ranks.values()) == {2}


def test_batches_beyond_the_examples_are_left_out_unless_all_are() -> None:
    few = replace(tiny_device(1500 * MIB), train_examples=3)
    plan = _plan(replace(tiny_job(), batch_sizes=(2, 4, 64)), few)
    assert isinstance(plan, Plan)
    assert plan.batch_size == 2
    all_larger = _plan(replace(tiny_job(), batch_sizes=(64, 128)), few)
    assert isinstance(all_larger, Plan)
    assert (all_larger.batch_size, all_larger.examples) == (64, 3)


def test_a_deadline_shorter_than_loading_says_how_long_loading_takes() -> None:
    device = minilm_device(1500)
    slow = tuple(m.model_copy(update={"load_s": 40.0}) for m in device.measurements)
    told = _plan(minilm_job(), replace(device, measurements=slow), deadline_s=20.0)
    assert isinstance(told, NoPlan)
    assert told.bound == "time"
    assert "40.0 s of it for loading the model" in told.reason
    assert told.reason.endswith("18.0 s are usable")


def test_a_memory_bound_plan_says_what_finer_bits_and_the_next_rank_need() -> None:
    plan = _plan(minilm_job(), minilm_device(520, bits=(4, 8, 32)))
    assert isinstance(plan, Plan)
    assert plan.bound == "memory"
    lacking = float(plan.reason.rsplit("the next rank step lacks ", 1)[1].removesuffix(" MiB"))
    assert "4-bit base because the same work at 8 bits needs " in plan.reason
    # with that much more lent, the plan captures more
    more = _plan(minilm_job(), minilm_device(520 + lacking + 0.02, bits=(4,)))
    same = _plan(minilm_job(), minilm_device(520, bits=(4,)))
    assert isinstance(more, Plan)
    assert isinstance(same, Plan)
    curves = minilm_job().curves
    captured = [sum(curves[name][rank - 1] for name, rank in each.ranks.items()) for each in (same, more)]
    assert captured[1] > captured[0]


def test_a_link_bound_plan_says_how_fast_a_link_the_next_rank_needs() -> None:
    plan = _plan(minilm_job(), minilm_device(1500, uplink_bps=4e5))
    assert isinstance(plan, Plan)
    mbit = float(plan.reason.rsplit("the next rank step needs ", 1)[1].removesuffix(" Mbit/s up"))
    assert 0.4 < mbit < 0.8
    bytes_ = _plan(minilm_job(), replace(minilm_device(1500), up_budget_bytes=500_000))
    assert "bytes and 500000 are allowed" in bytes_.reason


def test_a_fleet_plans_alike_in_any_order() -> None:
    random = np.random.default_rng(0)
    fleet = {
        f"agent-{place}": minilm_device(float(random.uniform(480, 900)), agent=f"agent-{place}") for place in range(6)
    }
    one = plan_round(minilm_job(), fleet, round_=1, deadline_s=None, draw=first_components)
    other = plan_round(minilm_job(), dict(reversed(fleet.items())), round_=1, deadline_s=None, draw=first_components)
    assert one.deadline_s == pytest.approx(other.deadline_s)
    assert {name: plan.ranks for name, plan in one.plans.items()} == {
        name: plan.ranks for name, plan in other.plans.items()
    }
    assert one.none == other.none


def test_the_tiny_model_has_the_widths_that_are_counted_by_hand() -> None:
    shape = tiny_model()
    assert shape.weight_parameters == 2 * 32 * 8 + 64
    assert shape.output_features == 32 + 8 + 8
    smaller = shape.model_copy(update={"weights": shape.weights[:1]})
    assert smaller.weight_parameters == 32 * 8
    assert shape.weight_parameters == 2 * 32 * 8 + 64
