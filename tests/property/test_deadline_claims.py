"""What one agent claims of itself does not decide how long the others wait, nor whether they get plans."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_fleet import first_components, minilm_device, minilm_job, minilm_steps

from fedpipe_profiles.planning.planner import RoundPlan, plan_round
from fedpipe_profiles.planning.problem import DeviceProblem

HONEST = {
    name: minilm_device(mib, agent=name)
    for name, mib in {"clinic": 540, "lab": 600, "campus": 1500, "twin": 1500}.items()
}


def _auto(fleet: dict[str, DeviceProblem]) -> RoundPlan:
    return plan_round(minilm_job(), fleet, round_=1, deadline_s=None, draw=first_components)


def _claiming(step_s: float, examples: int) -> DeviceProblem:
    device = minilm_device(1500, agent="liar", flops_per_s=5e18 if step_s < 1e-3 else 1e11, uplink_bps=1e9, latency_s=0)
    measured = tuple(m.model_copy(update={"step_s": step_s}) for m in minilm_steps())
    return replace(device, measurements=measured, train_examples=examples, held_out_examples=1)


@given(st.floats(1e-6, 5e4), st.sampled_from([1, 1000, 2**53]))
@settings(max_examples=5, deadline=None)
def test_one_liar_neither_stalls_a_round_nor_takes_it_for_itself(step_s: float, examples: int) -> None:
    alone = _auto(HONEST)
    joined = _auto(HONEST | {"liar": _claiming(step_s, examples)})
    assert joined.deadline_s < 5 * alone.deadline_s
    assert 2 * len(joined.plans.keys() & HONEST.keys()) >= len(HONEST)


def test_the_slower_of_two_does_not_make_the_other_wait() -> None:
    alone = _auto({"lab": HONEST["lab"]})
    joined = _auto({"lab": HONEST["lab"], "liar": _claiming(5e4, 2**53)})
    assert joined.deadline_s < 5 * alone.deadline_s
    assert "lab" in joined.plans


def test_examples_beyond_those_of_a_round_weigh_nothing() -> None:
    enough = minilm_job().examples_per_round
    few, many = (
        _auto(HONEST | {"rich": replace(minilm_device(700, agent="rich"), train_examples=count)})
        for count in (enough, 2**53)
    )
    assert many.deadline_s == pytest.approx(few.deadline_s)
    assert [point.progress for point in many.curve] == pytest.approx([point.progress for point in few.curve])
