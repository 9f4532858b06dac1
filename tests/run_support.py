"""Builders for the run's and the agent's machines: a tiny job, its silos' reports, and a coordinator to drive by hand.

The heavy work is stood in for by names: an update or an adapter is a name that is a function of what it is made of.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from planning_fleet import profile, tiny_model

from fedpipe_coordinator.config import Job
from fedpipe_coordinator.runs.run_events import (
    AgentOnline,
    Aggregate,
    Aggregated,
    Export,
    Exported,
    Heard,
    MakePlans,
    Note,
    Planned,
    RunAction,
    RunEvent,
    Send,
    UpdateStored,
)
from fedpipe_coordinator.runs.run_machine import step
from fedpipe_coordinator.runs.run_state import Member, RunState
from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.device import MIB, DeviceProfile
from fedpipe_profiles.model import ModelShape, ParameterShape
from fedpipe_profiles.plan import NoPlan, Plan, Prediction, StepMeasurement
from fedpipe_wire.agent_messages import Evaluated, Failed, Scored, Survey, Trained
from fedpipe_wire.coordinator_messages import Task
from fedpipe_wire.message_values import BlobRef, Metrics

RUN = "tiny-20300101-000000-0000"
LABELS = ("east", "north", "west")
PEAK = 100 * MIB
Action = TypeVar("Action")


def name_of(*parts: object) -> str:
    """A blob's name that is a function of `parts`."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def ref(sha256: str) -> BlobRef:
    return BlobRef(sha256=sha256, size=1000, chunk_bytes=256)


def job(labels: tuple[str, ...] | None = None, task: str = "sequence-classification", **rounds: Any) -> Job:
    return Job.model_validate(
        {
            "job": {"name": "tiny", "model": "tiny", "task": task, "seed": 5},
            "data": {"dataset": "words", "labels": labels},
            "rounds": {"number": 2, "deadline_s": 100.0, **rounds},
            "adapter": {"global_rank": 4, "rank_ladder": (1, 2, 4)},
        }
    )


def begin(**settings: Any) -> RunState:
    return RunState(run=RUN, job=job(**settings), phase="surveying", members={})


def shape(labels: int = len(LABELS), fingerprint: str = "0") -> ModelShape:
    head = (ParameterShape(name="head.weight", shape=(labels, 8)), ParameterShape(name="head.bias", shape=(labels,)))
    return tiny_model().model_copy(update={"head": head, "fingerprint": fingerprint})


def survey(labels: Sequence[str] = LABELS, fingerprint: str = "0", **more: Any) -> Survey:
    return Survey(
        run=RUN,
        shape=shape(len(labels), fingerprint),
        labels=tuple(labels),
        train_examples=30,
        held_out_examples=4,
        mean_tokens=10.0,
        **more,
    )


def measurement(step_s: float = 0.1) -> StepMeasurement:
    return StepMeasurement(
        bits=32,
        batch_size=2,
        sequence_length=16,
        gradient_checkpointing=False,
        trainable_parameters=100,
        side_parameters=100,
        steps=3,
        step_s=step_s,
        peak_bytes=PEAK,
        context_bytes=MIB,
    )


def scored(examples: int = 8, height: float = 1.0, *, weights: Sequence[str] = ("up", "down", "out")) -> Scored:
    curves = {name: tuple(height * (at + 1) * rank for rank in (1, 2, 3, 4)) for at, name in enumerate(weights)}
    return Scored(run=RUN, contribution=Contribution(examples=examples, curves=curves), measurements=(measurement(),))


def plan(agent: str, round_: int, peak_bytes: int = PEAK, **more: Any) -> Plan:
    fields: dict[str, Any] = {
        "agent": agent,
        "round": round_,
        "bits": 32,
        "batch_size": 2,
        "gradient_checkpointing": False,
        "sequence_length": 16,
        "learning_rate": 1e-3,
        "seed": 5,
        "examples": 12,
        "deadline_s": 100.0,
        "scale": 1.0,
        "global_rank": 4,
        "components": {"up": (0, 1), "out": (2,)},
        "predicted": Prediction(peak_bytes=peak_bytes, round_s=20.0, compute_s=15.0, up_bytes=4000, down_bytes=4000),
        "bound": "nothing",
        "reason": "everything fits",
    }
    return Plan(**fields | more)


def metrics(loss: float = 1.0) -> Metrics:
    return Metrics(loss=loss, accuracy=0.5, examples=4)


def evaluated(round_: int, loss: float = 1.0) -> Evaluated:
    return Evaluated(run=RUN, round=round_, metrics=metrics(loss))


def trained(agent: str, round_: int, *more: object) -> Trained:
    return Trained(
        run=RUN,
        round=round_,
        update=ref(name_of("update", agent, round_, *more)),
        examples=12,
        steps=6,
        train_loss=0.7,
        measurement=measurement(1.0 + round_),
        download_s=0.5,
        compute_s=15.0,
    )


def failed(round_: int, kind: str = "internal", message: str = "it broke") -> Failed:
    return Failed(run=RUN, round=round_, kind=cast("Any", kind), message=message)


def device(agent: str, **more: Any) -> DeviceProfile:
    return profile(1 << 30, agent=agent).model_copy(update={"datasets": ("words",), **more})


def planned(state: RunState, action: MakePlans, peaks: Mapping[str, int] | None = None) -> Planned:
    """What a planner would answer: a plan for each agent, none for those whose peak is 0."""
    peaks = peaks or {}
    plans = {
        name: plan(name, action.round, min(state.members[name].memory_cap_bytes or PEAK, peaks.get(name, PEAK)))
        for name in action.agents
        if peaks.get(name, PEAK) > 0
    }
    none = {name: NoPlan(agent=name, bound="memory", reason="too small") for name in action.agents if name not in plans}
    return Planned(action.round, 100.0, plans, none, state.adapter or ref(name_of("adapter", 0)))


def aggregated(state: RunState, action: Aggregate) -> Aggregated:
    """What an aggregator would answer: an adapter whose name is a function of the former one and of the updates."""
    assert state.adapter is not None
    late = sorted(action.late.items())
    made_of = [state.adapter.sha256, sorted(action.updates.items()), *([late] if late else [])]
    return Aggregated(action.round, ref(name_of("adapter", *made_of)), 0.01)


@dataclass
class Drive:
    """A run driven by hand: events go in, actions are kept; `work` answers what was asked of the service."""

    state: RunState
    now: float = 0.0
    actions: list[RunAction] = field(default_factory=list)

    @property
    def phase(self) -> str:
        return self.state.phase

    def __call__(self, event: RunEvent, after_s: float = 0.0) -> tuple[RunAction, ...]:
        """Let an event happen; the actions that it causes."""
        self.now += after_s
        self.state, actions = step(self.state, event, self.now)
        self.actions.extend(actions)
        return actions

    def hear(self, agent: str, message: Any, after_s: float = 0.0) -> tuple[RunAction, ...]:
        return self(Heard(agent, message), after_s)

    def member(self, agent: str) -> Member:
        return self.state.members[agent]

    def asked(self, agent: str, kind: type[Action]) -> list[Action]:
        """The messages of a kind that an agent was sent so far."""
        sends = [action for action in self.actions if isinstance(action, Send) and action.agent == agent]
        return [send.message for send in sends if isinstance(send.message, kind)]

    def all(self, kind: type[Action]) -> list[Action]:
        """The actions of a kind so far."""
        return [action for action in self.actions if isinstance(action, kind)]

    def notes(self, kind: str) -> list[Note]:
        return [note for note in self.all(Note) if note.kind == kind]

    def plan(self, peaks: Mapping[str, int] | None = None) -> tuple[RunAction, ...]:
        """Answer the last request for plans."""
        return self(planned(self.state, self.all(MakePlans)[-1], peaks))

    def aggregate(self) -> tuple[RunAction, ...]:
        """Answer the last request for an aggregation."""
        return self(aggregated(self.state, self.all(Aggregate)[-1]))

    def export(self) -> tuple[RunAction, ...]:
        """Answer the last request for an export."""
        assert self.all(Export)
        return self(Exported({"adapter": "out/adapter"}))


def training(*agents: str, peaks: Mapping[str, int] | None = None, **rounds: Any) -> Drive:
    """A run in its first round: every agent has its task."""
    drive = Drive(begin(**rounds))
    for agent in agents:
        drive(AgentOnline(agent, f"{agent}-1"))
    for agent in agents:
        drive.hear(agent, survey())
    for agent in agents:
        drive.hear(agent, scored())
    drive.plan(peaks)
    assert drive.phase == "training"
    return drive


def finish(drive: Drive, agent: str) -> None:
    """An agent trains the present round, and its update is stored."""
    offer = trained(agent, drive.state.round)
    drive.hear(agent, offer)
    drive(UpdateStored(agent, drive.state.round, offer.update.sha256))


def tasks(actions: Sequence[RunAction]) -> list[tuple[str, Task]]:
    """The messages in some actions, with their agents."""
    return [(action.agent, cast("Task", action.message)) for action in actions if isinstance(action, Send)]
