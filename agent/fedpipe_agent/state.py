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
    Scored,
    ScoreTask,
    Survey,
    SurveyTask,
    Task,
    Trained,
    TrainTask,
)

Result = Survey | Scored | Evaluated | Trained | Failed
MAX_ENDED_RUNS = 16


@dataclass(frozen=True, slots=True)
class AgentState:
    """What the agent is doing.

    Attributes:
        task: The newest task that was taken on; its results, once known, are in `done`.
        opened_for: The run that the trainer process was opened for, None where there is no usable process.
        opened: The trainer has said that it is ready.
        in_hand: The trainer works on a request.
        budget_ends: When the request in hand should be done; monotonic seconds.
        newest: Run, stage, round and attempt of the newest task that came, refused ones too.
        ended: The runs that ended last, whose late tasks are not worked on.
        done: The results of tasks already worked on, by task key.
    """

    setup: Setup
    task: Task | None = None
    began: float = 0.0
    opened_for: str | None = None
    opened: bool = False
    in_hand: bool = False
    adapter: Path | None = None
    download_s: float = 0.0
    trained: TrainedReply | None = None
    offered: Trained | None = None
    budget_ends: float | None = None
    newest: tuple[str, int, int, int] | None = None
    ended: tuple[str, ...] = ()
    done: dict[str, tuple[Result, ...]] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the current task, if any, has its result."""
        return self.task is None or task_key(self.task) in self.done


def task_key(task: Task) -> str:
    """What makes two tasks the same: kind, run and round; a plan made anew is another task."""
    match task:
        case TrainTask():
            return f"{task.type}/{task.run}/{task.round}/{task.adapter.sha256}/{task.plan.model_dump_json()}"
        case EvaluateTask() | IdleTask():
            return f"{task.type}/{task.run}/{task.round}"
        case SurveyTask() | ScoreTask() | EndTask():
            return f"{task.type}/{task.run}"


def task_rank(task: Task) -> tuple[str, int, int, int]:
    """Run, stage, round and attempt: within a run, tasks come in rising order of these."""
    match task:
        case SurveyTask() | EndTask():
            return task.run, 0, 0, 0
        case ScoreTask():
            return task.run, 1, 0, 0
        case TrainTask() | IdleTask():
            return task.run, 2, task.round, task.attempt
        case EvaluateTask():
            return task.run, 2, task.round, 0


def remember(state: AgentState, task: Task, result: Result, *, finished: bool = True) -> AgentState:
    """Keep a result for the case that the task comes again; only the newest round's results are kept."""
    key = task_key(task)
    if not finished:
        return replace(state, done={**state.done, f"early/{key}": (result,)})
    early = state.done.get(f"early/{key}", ())
    kept = {k: v for k, v in state.done.items() if not k.startswith(("train-task", "evaluate-task", "early/"))}
    return replace(state, done={**kept, key: (*early, result)})


def forget_run(state: AgentState, run: str) -> AgentState:
    """The state after a run has ended; what was done for others stays known."""
    done = {key: value for key, value in state.done.items() if key.removeprefix("early/").split("/", 2)[1] != run}
    return AgentState(setup=state.setup, newest=state.newest, ended=state.ended, done=done)


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
