"""What an agent is doing, and what it has done: the memory of `machine.py`.

Owns the state's type and the few pure functions that read and extend it.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from fedpipe_agent.checks import Setup
from fedpipe_agent.trainer_protocol import TrainedReply
from fedpipe_wire.messages import (
    EndTask,
    Evaluated,
    EvaluateTask,
    Failed,
    IdleTask,
    Refused,
    Scored,
    ScoreTask,
    Survey,
    SurveyTask,
    Task,
    Trained,
    TrainTask,
)

Result = Survey | Scored | Evaluated | Trained | Failed | Refused


@dataclass(frozen=True, slots=True)
class AgentState:
    """What the agent is doing. `done` holds the results of tasks already worked on, by task key."""

    setup: Setup
    task: Task | None = None
    began: float = 0.0
    opened_for: str | None = None
    adapter: Path | None = None
    download_s: float = 0.0
    trained: TrainedReply | None = None
    offered: Trained | None = None
    budget_ends: float | None = None
    done: dict[str, tuple[Result, ...]] = field(default_factory=dict)


def task_key(task: Task) -> str:
    """What makes two tasks the same: kind, run and round; a plan made anew is another task."""
    match task:
        case TrainTask():
            return f"{task.type}/{task.run}/{task.round}/{task.adapter.sha256}/{task.plan.model_dump_json()}"
        case EvaluateTask() | IdleTask():
            return f"{task.type}/{task.run}/{task.round}"
        case SurveyTask() | ScoreTask() | EndTask():
            return f"{task.type}/{task.run}"


def remember(state: AgentState, task: Task, result: Result, *, finished: bool = True) -> AgentState:
    """Keep a result for the case that the task comes again; only the newest round's results are kept."""
    key = task_key(task)
    before = state.done.get(key, ()) if finished else ()
    early = state.done.get(f"early/{key}", ())
    if not finished:
        return replace(state, done={**state.done, f"early/{key}": (result,)})
    kept = {k: v for k, v in state.done.items() if not k.startswith(("train-task", "evaluate-task", "early/"))}
    return replace(state, done={**kept, key: (*early, *before, result)})


def task_round(task: Task) -> int:
    """The round a task belongs to; 0 before the first."""
    return task.round if isinstance(task, TrainTask | EvaluateTask | IdleTask) else 0


def describe(task: Task) -> str:
    """A task in words, for the owner of this machine."""
    match task:
        case TrainTask():
            plan = task.plan
            return (
                f"round {task.round}: train {len(plan.ranks)} weights at {plan.bits} bits, batch {plan.batch_size}, "
                f"up to {plan.examples} examples in {plan.deadline_s:.0f} s"
            )
        case EvaluateTask():
            return f"run {task.run}: evaluate the adapter of round {task.round - 1}"
        case _:
            return f"run {task.run}: {task.type}"
