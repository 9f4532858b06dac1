"""A least share of every silo's examples, and the curve of deadlines."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from planning_fleet import first_components, minilm_device, minilm_job, minilm_steps

from fedpipe_profiles.planning.evaluating import TIME_SLACK
from fedpipe_profiles.planning.options import prepare
from fedpipe_profiles.planning.planner import RoundPlan, effort, plan_round
from fedpipe_profiles.planning.problem import DeviceProblem, JobProblem, PlanningError
from fedpipe_profiles.planning.search import GAP


def _slow(factor: float, **settings: Any) -> DeviceProblem:
    device = minilm_device(1500, agent="slow", **settings)
    steps = tuple(m.model_copy(update={"step_s": m.step_s * factor}) for m in minilm_steps())
    return replace(device, measurements=steps)


def _fleet(slow: DeviceProblem) -> dict[str, DeviceProblem]:
    return {"lab": minilm_device(600, agent="lab"), "campus": minilm_device(1500, agent="campus"), "slow": slow}


def _job(least_share: float) -> JobProblem:
    return replace(minilm_job(), least_share=least_share)


def _round(least_share: float, deadline_s: float | None, slow: DeviceProblem) -> RoundPlan:
    return plan_round(_job(least_share), _fleet(slow), round_=1, deadline_s=deadline_s, draw=first_components)


def test_a_least_share_is_bought_with_ranks() -> None:
    slow = _slow(1.0, uplink_bps=8e5)
    free, fair = (_round(share, 26.0, slow).plans["slow"] for share in (0.0, 1.0))
    assert free.examples < 256 == fair.examples
    assert sum(fair.ranks.values()) < sum(free.ranks.values())
    assert fair.predicted.round_s <= 26.0 * (1 - TIME_SLACK) * (1 + 1e-9)


def test_who_cannot_reach_its_share_trains_what_it_can_and_says_so() -> None:
    free, fair = (_round(share, 15.0, _slow(10.0)) for share in (0.0, 0.9))
    assert fair.plans["slow"].examples == free.plans["slow"].examples < 231
    assert "its least share of 231 examples needs " in fair.plans["slow"].reason
    assert fair.plans["slow"].reason.endswith("13.5 s are usable")
    assert fair.plans["campus"] == free.plans["campus"]


def test_the_automatic_deadline_waits_for_a_share_that_can_be_reached() -> None:
    slow = _slow(2.0)
    free, fair = (_round(share, None, slow) for share in (0.0, 0.9))
    assert free.plans["slow"].examples < 231 <= fair.plans["slow"].examples
    assert fair.deadline_s > free.deadline_s
    # the progress per second is the best of those deadlines that are long enough
    admissible = [point for point in fair.curve if point.under_training["slow"] <= 1 - 231 / 256 + 1e-9]
    assert fair.deadline_s in {point.deadline_s for point in admissible}


def test_the_automatic_deadline_does_not_wait_for_a_share_out_of_reach() -> None:
    free, fair = (_round(share, None, _slow(1000.0)) for share in (0.0, 0.5))
    assert fair.deadline_s == free.deadline_s


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(share: float) -> None:
    with pytest.raises(PlanningError, match=r"least share is .*from 0 to 1"):
        _job(share)


def test_the_curve_says_what_every_agent_leaves_out() -> None:
    found = _round(0.0, None, _slow(4.0))
    assert [point.deadline_s for point in found.curve] == sorted({point.deadline_s for point in found.curve})
    assert found.deadline_s == max(found.curve, key=lambda point: point.progress_per_s).deadline_s
    for name in ("lab", "campus", "slow"):
        left_out = [point.under_training[name] for point in found.curve]
        assert all(0 <= rate <= 1 for rate in left_out)
        assert left_out[0] > left_out[-1]
    assert all(later.progress >= sooner.progress - 1e-12 for sooner, later in itertools.pairwise(found.curve))
    # what the curve promises is at least about what the plans do
    chosen = next(point for point in found.curve if point.deadline_s == found.deadline_s)
    for name, plan in found.plans.items():
        assert plan.examples / 256 >= 1 - chosen.under_training[name] - 0.1


def test_a_given_deadline_has_the_plans_own_point() -> None:
    found = _round(0.0, 15.0, _slow(4.0))
    assert [point.deadline_s for point in found.curve] == [15.0]
    assert found.curve[0].under_training == {name: 1 - plan.examples / 256 for name, plan in found.plans.items()}
    assert 0 < found.curve[0].progress < 1


def test_the_effort_depends_on_the_number_of_unlike_devices_only() -> None:
    assert effort(1).gap == effort(32).gap == GAP
    assert effort(33) == effort(10_000)
    assert effort(33).gap < 0.005


def test_the_gaps_of_a_small_fleet_are_proved() -> None:
    found = _round(0.0, 12.0, _slow(4.0))
    assert found.gaps.keys() == found.plans.keys()
    assert all(0 <= gap <= GAP * (1 + 1e-9) for gap in found.gaps.values())
    prepared = prepare(_job(0.0), _fleet(_slow(4.0))["lab"])
    assert prepared.least == 0
