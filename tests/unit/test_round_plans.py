"""What the coordinator's worker makes of a run's state: the plans of a round."""

from pathlib import Path

from planning_fleet import falling_curves, profile, tiny_model

from fedpipe_coordinator.config import Job
from fedpipe_coordinator.runs.run_events import MakePlans
from fedpipe_coordinator.runs.run_state import Member, RunState
from fedpipe_coordinator.work import make_plans
from fedpipe_profiles.plan import Plan
from fedpipe_wire.agent_messages import Survey
from fedpipe_wire.blob_files import BlobStore

SHAPE = tiny_model()
JOB = Job.model_validate(
    {
        "job": {"name": "j", "model": "m", "task": "sequence-classification", "seed": 7},
        "data": {"dataset": "d"},
        "rounds": {"number": 3, "deadline_s": 60},
        "train": {"examples_per_round": 8, "batch_sizes": [2, 4]},
        "adapter": {"global_rank": 4},
    }
)


def plan_of(tmp_path: Path, round_: int) -> Plan:
    survey = Survey(
        run="r", shape=SHAPE, labels=("a", "b", "c"), train_examples=100, held_out_examples=10, mean_tokens=10.0
    )
    state = RunState(
        run="r",
        job=JOB,
        phase="planning",
        round=round_,
        members={"a": Member(name="a", survey=survey)},
        labels=("a", "b", "c"),
        shape=SHAPE,
        curves=falling_curves(SHAPE, 4, 0),
    )
    made = make_plans(state, MakePlans(round_, ("a",)), {"a": profile(1 << 32)}, BlobStore(tmp_path / "b"), tmp_path)
    return made.plans["a"]


def test_each_round_is_shuffled_anew_and_a_round_planned_again_is_not(tmp_path: Path) -> None:
    # the agents draw their examples by this seed: with one for all rounds, each would train the same ones
    seeds = [plan_of(tmp_path, round_).seed for round_ in (1, 2, 3)]
    assert len(set(seeds)) == 3
    assert plan_of(tmp_path, 1).seed == seeds[0]
