"""A round's evaluation in the plan, against a trainer's clock: it stops in time, and steps follow."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_fleet import first_components, minilm_device, minilm_job

from fedpipe_profiles.plan import EVALUATION_PART, NoPlan, Plan
from fedpipe_profiles.planning.evaluating import TIME_SLACK, evaluating_s, most_fixed_s, needed_s, room_s
from fedpipe_profiles.planning.options import prepare
from fedpipe_profiles.planning.planner import plan_device, plan_round

SECONDS = st.floats(0, 500)
BATCH = st.floats(0.01, 40)
COUNT = st.integers(1, 100)


def by_the_clock(deadline_s: float, fixed_s: float, batch_s: float, batches: int) -> float:
    """Seconds that a trainer evaluates: it asks before every batch whether its part of the time is over."""
    now = 0.0
    while batches and now < EVALUATION_PART * (deadline_s - fixed_s):
        now, batches = now + batch_s, batches - 1
    return now


@given(usable=SECONDS, fixed=SECONDS, batch=BATCH, batches=COUNT)
@settings(max_examples=200, deadline=None)
def test_it_takes_what_a_trainers_clock_gives_it(usable: float, fixed: float, batch: float, batches: int) -> None:
    found = float(evaluating_s(usable, fixed, batch * batches, batch))
    assert abs(found - by_the_clock(usable / (1 - TIME_SLACK), fixed, batch, batches)) <= batch / 2 * (1 + 1e-9) + 1e-9


@given(usable=SECONDS, fixed=SECONDS, full=SECONDS, part=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_room_is_what_fixed_costs_and_evaluation_leave(usable: float, fixed: float, full: float, part: float) -> None:
    batch = full * part
    room = float(room_s(usable, fixed, full, batch))
    left = usable - fixed - float(evaluating_s(usable, fixed, full, batch))
    # where nothing is left it does not matter how little
    assert room == pytest.approx(left, abs=1e-6) or max(room, left) < 0


@given(usable=SECONDS, more=SECONDS, fixed=SECONDS, full=SECONDS, batch=BATCH)
@settings(max_examples=200, deadline=None)
def test_a_longer_round_never_leaves_less(usable: float, more: float, fixed: float, full: float, batch: float) -> None:
    assert room_s(usable + more, fixed, full, batch) >= room_s(usable, fixed, full, batch)


@given(work=st.floats(0.1, 500), fixed=SECONDS, full=SECONDS, batch=BATCH)
@settings(max_examples=200, deadline=None)
def test_the_least_time_is_just_enough(work: float, fixed: float, full: float, batch: float) -> None:
    least = float(needed_s(work, fixed, full, batch))
    assert float(room_s(least, fixed, full, batch)) == pytest.approx(work, rel=1e-9, abs=1e-6)
    assert float(room_s(least * (1 - 1e-6), fixed, full, batch)) < work
    assert float(most_fixed_s(least, work, full, batch)) == pytest.approx(fixed, rel=1e-9, abs=1e-6)


def _round(evaluation_examples: int, deadline_s: float) -> Plan | NoPlan:
    job = replace(minilm_job(), evaluation_examples=evaluation_examples)
    device = replace(minilm_device(1500), held_out_examples=100_000)
    return plan_device(job, device, round_=1, deadline_s=deadline_s, draw=first_components)


def test_a_device_too_slow_to_evaluate_everything_still_trains() -> None:
    # 100,000 examples would take 900 s
    plans = [_round(100_000, deadline_s) for deadline_s in (5.0, 10.0, 20.0, 40.0)]
    done = [plan.examples if isinstance(plan, Plan) else 0 for plan in plans]
    assert done == sorted(done)
    assert 0 < done[0] < 256
    for plan in plans[:3]:
        assert isinstance(plan, Plan)
        usable_s = plan.deadline_s * (1 - TIME_SLACK)
        assert plan.predicted.round_s <= usable_s * (1 + 1e-9)
        steps_s = -(-plan.examples // plan.batch_size) * plan.predicted.step_s
        evaluated_s = plan.predicted.compute_s - steps_s
        assert evaluated_s == pytest.approx(EVALUATION_PART * plan.deadline_s, rel=0.15)


def test_few_held_out_examples_are_all_evaluated() -> None:
    few, none = _round(50, 60.0), _round(1, 60.0)
    assert isinstance(few, Plan)
    assert isinstance(none, Plan)
    assert few.predicted.compute_s - none.predicted.compute_s == pytest.approx(49 * 0.009, rel=0.2)


def test_a_chosen_deadline_waits_for_no_evaluation() -> None:
    device = replace(minilm_device(1500), held_out_examples=100_000)
    job = replace(minilm_job(), evaluation_examples=100_000)
    found = plan_round(job, {"a": device}, round_=1, deadline_s=None, draw=first_components)
    assert found.plans["a"].examples == 256
    assert found.deadline_s < 60


def test_prepared_devices_are_planned_as_others() -> None:
    job, device = minilm_job(), minilm_device(700)
    anew = plan_round(job, {"a": device}, round_=1, deadline_s=20.0, draw=first_components)
    known = {"a": prepare(job, device)}
    assert plan_round(job, {"a": device}, round_=1, deadline_s=20.0, draw=first_components, prepared=known) == anew
    # what was handed on is what is planned with
    other = {"a": prepare(job, minilm_device(520))}
    less = plan_round(job, {"a": device}, round_=1, deadline_s=20.0, draw=first_components, prepared=other)
    assert less.plans["a"].predicted.peak_bytes < anew.plans["a"].predicted.peak_bytes
