"""A real trainer under a limit taken from what it needs: every rung down, and what the next plan makes of it."""

from pathlib import Path

import pytest
import torch
from planning_fleet import first_components, minilm_device
from run_support import trained as told
from tiny_models import make_gpt2, write_causal
from trainer_pipe import Trainer, make_open, trainer
from trainer_support import SCALE, make_plan, write_adapter

from fedpipe_agent.trainer_protocol import (
    EvaluatedReply,
    Opened,
    Surveyed,
    SurveyRequest,
    TrainedReply,
    TrainRequest,
)
from fedpipe_coordinator.runs.backoff import Backoff, ran_out
from fedpipe_coordinator.runs.replanning import replan
from fedpipe_coordinator.runs.run_state import Member
from fedpipe_profiles.device import MIB, Limits
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import NoPlan, Plan, Prediction
from fedpipe_profiles.planning.problem import JobProblem
from fedpipe_wire.agent_messages import Survey
from fedpipe_wire.tensors import a_name, b_name

RANK = 64
WIDTH, LAYERS = 512, 8
BASE_BYTES = 4 * 12 * LAYERS * WIDTH**2
"""Of the weights at 32 bits."""
ROOM_BYTES = 35 * MIB
"""So much less than is needed at 32 bits: a part of what Adam keeps of the adapters, so that the base still loads."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("rungs")
    return make_gpt2(folder / "model", WIDTH, LAYERS), write_causal(folder / "data.jsonl", rows=100)


class Rig:
    """One trainer process, and the rounds that are asked of it."""

    def __init__(self, process: Trainer, files: tuple[Path, Path], folder: Path) -> None:
        self.process, self.folder = process, folder
        self.model, self.data = files
        self.context_bytes = 0

    def open(self, **changes: object) -> ModelShape:
        terms = {"sequence_length": 16, "evaluation_examples": 2, "batch_sizes": (1, 8)}
        self.process.send(make_open(self.model, self.data, "causal-lm", terms=terms, **changes))
        self.context_bytes = self.process.expect(Opened).context_bytes
        self.process.send(SurveyRequest())
        return self.process.expect(Surveyed).shape

    def train(self, shape: ModelShape, **plan: object) -> tuple[Plan, TrainedReply]:
        torch.manual_seed(0)
        adapter = self.folder / "adapter"
        tensors = {a_name(w.name): torch.randn(RANK, w.d_in).numpy() for w in shape.weights}
        tensors |= {b_name(w.name): torch.zeros(w.d_out, RANK).numpy() for w in shape.weights}
        write_adapter(adapter, tensors)
        asked = make_plan(
            {w.name: tuple(range(RANK)) for w in shape.weights},
            **({"sequence_length": 16, "global_rank": RANK, "learning_rate": 1e-4} | plan),
        )
        self.process.send(
            TrainRequest(labels=(), plan=asked, adapter=adapter, update=self.folder / "update", budget_s=60.0)
        )
        self.process.expect(EvaluatedReply)
        return asked, self.process.expect(TrainedReply)


@pytest.mark.timeout(180)
def test_every_rung_is_taken_and_the_next_plan_has_fewer_bits(files: tuple[Path, Path], tmp_path: Path) -> None:
    with trainer(tmp_path / "log") as process:
        rig = Rig(process, files, tmp_path)
        shape = rig.open()
        _, least = rig.train(shape, batch_size=1, examples=2, gradient_checkpointing=True)
    need = least.measurement.peak_bytes
    assert need > BASE_BYTES
    limit = rig.context_bytes + need - ROOM_BYTES
    with trainer(tmp_path / "log", limit) as process:
        rig = Rig(process, files, tmp_path)
        rig.open(memory_limit_bytes=limit)
        plan, reply = rig.train(shape, batch_size=4, examples=12)
    assert reply.out_of_memory
    assert (reply.examples, reply.steps) == (12, 3)
    rungs = ["at 4 examples, now 2", "at 2 examples, now 1", "checkpointing turned on", "at 32 bits, now"]
    where = [next((i for i, said in enumerate(reply.actions) if rung in said), -1) for rung in rungs]
    assert where == sorted(where), reply.actions
    assert where[0] >= 0, reply.actions
    assert reply.measurement.bits < 32
    assert reply.measurement.evaluation_example_s is None  # that was timed at 32 bits
    assert reply.measurement.other_s is None
    assert reply.measurement.peak_bytes <= need - ROOM_BYTES  # the process was held to it, and says so
    after = next_plan(shape, plan, reply, rig.context_bytes)
    assert isinstance(after, Plan)
    assert after.bits <= reply.measurement.bits


def next_plan(shape: ModelShape, plan: Plan, reply: TrainedReply, context_bytes: int) -> Plan | NoPlan:
    """What a coordinator plans after that, for a device that says it has plenty."""
    predicted = Prediction(peak_bytes=2 * BASE_BYTES, round_s=1.0, compute_s=1.0, up_bytes=0, down_bytes=0)
    plan = plan.model_copy(update={"predicted": predicted})
    said = told("a", 1).model_copy(update={"measurement": reply.measurement, "out_of_memory": reply.out_of_memory})
    backoff, cap = ran_out(Backoff(), None, plan, said)
    member = Member(
        name="a",
        standing="accepted",
        survey=Survey(run="run", shape=shape, labels=(), train_examples=70, held_out_examples=30, mean_tokens=12.0),
        measurements=(reply.measurement,),
        plan=plan,
        trained=said,
        backoff=backoff,
        memory_cap_bytes=cap,
    )
    job = JobProblem(
        shape=shape,
        curves={weight.name: tuple(float(k) for k in range(1, RANK + 1)) for weight in shape.weights},
        rank_ladder=(16, 64),
        batch_sizes=(1, 4),
        global_rank=RANK,
        sequence_length=16,
        task="causal-lm",
        examples_per_round=12,
        evaluation_examples=2,
        learning_rate=1e-4,
        scale=SCALE,
        seed=0,
    )
    profile = minilm_device(1).profile
    host = profile.host.model_copy(update={"free_bytes": context_bytes + 4 * BASE_BYTES, "total_bytes": 1 << 34})
    profile = profile.model_copy(update={"host": host, "limits": Limits()})
    made, _ = replan(job, {"a": member}, {"a": profile}, round_=2, deadline_s=60.0, draw=first_components)
    return made.plans.get("a") or made.none["a"]
