"""An agent to drive by hand, and its trainer played by a stand-in that answers as the protocol says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from run_support import LABELS, RUN, device, measurement, metrics, name_of, plan, ref, shape

from fedpipe_agent.agent_events import (
    AdapterReady,
    AgentAction,
    AgentEvent,
    Ask,
    NameUpdate,
    Say,
    ShelveUpdate,
    StopTrainer,
    TaskCame,
    TrainerReplied,
    UpdateNamed,
    UpdateShelved,
)
from fedpipe_agent.checks import Setup
from fedpipe_agent.machine import step
from fedpipe_agent.memory import Memory
from fedpipe_agent.state import AgentState
from fedpipe_agent.trainer_protocol import (
    EvaluatedReply,
    EvaluateRequest,
    Opened,
    OpenRequest,
    Reply,
    Request,
    ScoredReply,
    ScoreRequest,
    Surveyed,
    SurveyRequest,
    TrainedReply,
    TrainRequest,
)
from fedpipe_data.source import DatasetSource
from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.plan import NoPlan
from fedpipe_wire.agent_messages import AgentMessage
from fedpipe_wire.coordinator_messages import EndTask, EvaluateTask, IdleTask, ScoreTask, SurveyTask, TrainTask
from fedpipe_wire.message_values import BlobRef, JobTerms

ADAPTER = ref(name_of("adapter", 0))
Found = TypeVar("Found")
TERMS = JobTerms(
    name="tiny",
    model="tiny",
    task="sequence-classification",
    dataset="words",
    seed=5,
    sequence_length=16,
    evaluation_examples=8,
    max_rank=4,
    batch_sizes=(2,),
)


def setup(agent: str = "a", **more: Any) -> Setup:
    fields: dict[str, Any] = {"profile": device(agent), "datasets": {"words": DatasetSource(path=Path("words.csv"))}}
    return Setup(**({"state": Path("state")} | fields | more))


def survey_task(run: str = RUN) -> SurveyTask:
    return SurveyTask(run=run, terms=TERMS)


def score_task(run: str = RUN) -> ScoreTask:
    return ScoreTask(run=run, terms=TERMS, labels=LABELS, batches=2, deadline_s=600.0)


def train_task(round_: int = 1, run: str = RUN, *, attempt: int = 0, agent: str = "a", **changes: Any) -> TrainTask:
    return TrainTask(
        run=run,
        round=round_,
        attempt=attempt,
        terms=TERMS,
        labels=LABELS,
        adapter=ADAPTER,
        plan=plan(agent, round_, **changes),
    )


def evaluate_task(round_: int = 3, run: str = RUN) -> EvaluateTask:
    return EvaluateTask(run=run, round=round_, terms=TERMS, labels=LABELS, adapter=ADAPTER, plan=plan("a", round_ - 1))


def idle_task(round_: int = 1, run: str = RUN) -> IdleTask:
    return IdleTask(run=run, round=round_, no_plan=NoPlan(agent="a", bound="memory", reason="too small"))


def end_task(run: str = RUN) -> EndTask:
    return EndTask(run=run, reason="the run is done")


def replies(request: Request, labels: tuple[str, ...] = LABELS) -> tuple[Reply, ...]:
    """What a trainer without trouble answers."""
    match request:
        case OpenRequest():
            return (Opened(context_bytes=1),)
        case SurveyRequest():
            return (
                Surveyed(
                    shape=shape(len(labels)), labels=labels, train_examples=30, held_out_examples=4, mean_tokens=10.0
                ),
            )
        case ScoreRequest():
            curves = dict.fromkeys(("up", "down", "out"), (1.0, 2.0, 3.0, 4.0))
            return (ScoredReply(contribution=Contribution(examples=8, curves=curves), measurements=(measurement(),)),)
        case EvaluateRequest():
            return (EvaluatedReply(metrics=metrics()),)
        case TrainRequest():
            done = TrainedReply(examples=12, steps=6, train_loss=0.7, measurement=measurement(2.0), compute_s=15.0)
            return (EvaluatedReply(metrics=metrics()), done)


@dataclass
class DriveAgent:
    """An agent driven by hand; `work` lets its trainer answer what it was asked."""

    state: AgentState = field(default_factory=lambda: AgentState(setup=setup()))
    now: float = 0.0
    actions: list[AgentAction] = field(default_factory=list)

    def __call__(self, event: AgentEvent, after_s: float = 0.0) -> tuple[AgentAction, ...]:
        """Let an event happen; the actions that it causes."""
        self.now += after_s
        self.state, actions = step(self.state, event, self.now)
        self.actions.extend(actions)
        return actions

    def task(self, task: Any, after_s: float = 0.0) -> tuple[AgentAction, ...]:
        return self(TaskCame(task), after_s)

    def reply(self, reply: Reply, after_s: float = 0.0) -> tuple[AgentAction, ...]:
        return self(TrainerReplied(reply), after_s)

    def adapter(self, blob: BlobRef = ADAPTER, after_s: float = 0.0) -> tuple[AgentAction, ...]:
        return self(AdapterReady(blob, Path("adapter")), after_s)

    def work(self) -> tuple[AgentMessage, ...]:
        """Let the trainer answer its last request, and the outbox take the update; what is said then."""
        before = len(self.actions)
        for reply in replies(self.all(Ask)[-1].request):
            self.keep(self.reply(reply))
        return said(self.actions[before:])

    def keep(self, actions: tuple[AgentAction, ...]) -> None:
        """Let the disk do what is asked of it for the update."""
        for action in actions:
            if isinstance(action, NameUpdate):
                self.keep(self(UpdateNamed(self.update())))
            elif isinstance(action, ShelveUpdate):
                self(UpdateShelved(action.ref))

    def restarted(self, after_s: float = 0.0) -> "DriveAgent":
        """The agent after a kill: what is in its journal, and nothing else; it was not let in yet."""
        memory = Memory.model_validate_json(self.state.memory.model_dump_json(exclude_none=True))
        return DriveAgent(AgentState(setup=self.state.setup, memory=memory, loaded=True), self.now + after_s)

    def update(self) -> BlobRef:
        """The reference of the present task's update: a function of the task."""
        task = self.state.task
        assert isinstance(task, TrainTask)
        return ref(name_of("update", task.plan.agent, task.round, task.adapter.sha256, task.plan.model_dump_json()))

    def all(self, kind: type[Found]) -> list[Found]:
        """The actions of a kind so far."""
        return [action for action in self.actions if isinstance(action, kind)]


def said(actions: Any) -> tuple[AgentMessage, ...]:
    """The messages in some actions."""
    return tuple(action.message for action in actions if isinstance(action, Say))


def asked(actions: Any) -> list[str]:
    """The requests in some actions, and where the trainer was ended, in order."""
    names: list[str] = []
    for action in actions:
        if isinstance(action, Ask):
            names.append(action.request.op)
        elif isinstance(action, StopTrainer):
            names.append("stop")
    return names
