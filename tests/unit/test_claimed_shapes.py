"""Curves that bend upwards, ladders beyond the model and one agent's word on a layer do not decide a plan."""

from dataclasses import replace

import numpy as np
import pytest
from planning_fleet import first_components, minilm, minilm_device, minilm_job

from fedpipe_coordinator.runs.base_model import commonest_block, curve_problem
from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.model import BlockShape
from fedpipe_profiles.plan import Plan
from fedpipe_profiles.planning.planner import plan_device
from fedpipe_profiles.planning.problem import PlanningError

JOB = minilm_job()


@pytest.mark.parametrize("curve", [tuple(float(k * k) for k in range(1, 33)), (*[0.0] * 31, 1.0), (1.0,) * 31 + (1.5,)])
def test_a_curve_that_bends_upwards_is_refused(curve: tuple[float, ...]) -> None:
    said = Contribution(examples=8, curves={**JOB.curves, "pooler": curve})
    found = curve_problem(said, minilm(), 32, "gradient-sketch")
    assert found is not None
    assert "'pooler' bends upwards" in found


@pytest.mark.parametrize("seed", range(5))
def test_concave_curves_pass_in_single_precision_too(seed: int) -> None:
    random = np.random.default_rng(seed)
    curves = {
        weight.name: tuple(np.cumsum(np.sort(random.gamma(0.1, size=32).astype(np.float32))[::-1]).tolist())
        for weight in minilm().weights
    }
    said = Contribution(examples=8, curves=curves | {"pooler": (1.0,) * 32})
    assert curve_problem(said, minilm(), 32, "gradient-sketch") is None


def test_gains_beyond_the_ladder_are_an_error_that_names_it() -> None:
    job = replace(JOB, rank_ladder=(4, 8), curves={"pooler": (*[0.0] * 31, 1.0)})
    with pytest.raises(PlanningError, match=r"no rank of the ladder \[4, 8\] gains"):
        _ = job.increments


def test_a_ladder_whose_lowest_rank_gains_nothing_begins_higher() -> None:
    job = replace(JOB, curves={"pooler": (*[0.0] * 4, *[1.0] * 28)})
    assert job.increments.ranks.tolist() == [8]
    plan = plan_device(job, minilm_device(1500), round_=1, deadline_s=60.0, draw=first_components)
    assert isinstance(plan, Plan)
    assert plan.ranks == {"pooler": 8}


def test_ranks_beyond_every_weight_are_refused() -> None:
    with pytest.raises(PlanningError, match=r"ladder \[100000\] begins above 384"):
        replace(JOB, rank_ladder=(100_000,), global_rank=100_000)


def test_one_agents_word_on_a_layer_decides_nothing_against_those_who_are_silent() -> None:
    silent = minilm()
    block = BlockShape.model_construct(key_value_heads=12, head_size=32, norm="layer", activation="gelu")
    known = silent.model_copy(update={"block": block})
    assert commonest_block([silent, silent, known]) is None
    assert commonest_block([silent, known]) is None
    assert commonest_block([]) is None
