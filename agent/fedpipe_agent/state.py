"""What an agent is doing, and what it has done: the state of `machine.py`.

Owns the state's type and the few pure functions that read and extend it. What of it survives is `memory.py`'s.
"""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from fedpipe_agent.checks import Setup
from fedpipe_agent.memory import Memory, Result, Stage
from fedpipe_wire.agent_messages import Trained
from fedpipe_wire.coordinator_messages import EndTask, EvaluateTask, IdleTask, ScoreTask, SurveyTask, Task, TrainTask

MAX_ENDED_RUNS = 16
Work = SurveyTask | ScoreTask | TrainTask | EvaluateTask
"""The tasks for which something is done."""


@dataclass(frozen=True, slots=True)
class AgentState:
    """What the agent is doing.

    Attributes:
        memory: What survives this process; the rest belongs to it.
        opened_for: The run that the trainer process was opened for, None where there is no usable process.
        opened: The trainer has said that it is ready.
        budget_ends: When the request in hand should be done; monotonic seconds.
        loaded: The memory is that of an earlier process, and nothing of its task is under way in this one yet.
        restarted: The task in hand was begun by an earlier process, and is gone on with in this one.
        fetch_at: When to fetch again the adapter that the disk did not take; monotonic seconds.
        fetch_told: The owner was told that it waits for the disk.
    """

    setup: Setup
    memory: Memory = field(default_factory=Memory)
    opened_for: str | None = None
    opened: bool = False
    adapter: Path | None = None
    budget_ends: float | None = None
    loaded: bool = False
    restarted: bool = False
    fetch_at: float | None = None
    fetch_told: bool = False

    @property
    def task(self) -> Task | None:
        """The newest task that was taken on."""
        return self.memory.task

    @property
    def stage(self) -> Stage:
        """How far it is."""
        return self.memory.stage

    def works_for(self, run: str) -> bool:
        """Whether a task of this run is in hand, or its trainer is kept."""
        return self.opened_for == run or (self.task is not None and self.task.run == run)

    @property
    def in_hand(self) -> bool:
        """Whether the trainer of this process works on a request."""
        return self.memory.stage == "working" and self.opened_for is not None

    @property
    def finished(self) -> bool:
        """Whether the current task, if any, has its result."""
        return self.memory.stage in ("idle", "offered", "finished")

    @property
    def offered(self) -> Trained | None:
        """The update of the task in hand, while the coordinator has not acknowledged it."""
        results = () if self.task is None else self.memory.done.get(task_key(self.task), ())
        last = results[-1] if results else None
        return last if isinstance(last, Trained) and last in self.memory.outbox else None

    def remembering(self, **changes: Any) -> Self:
        """The same state with some fields of its memory changed."""
        return replace(self, memory=self.memory.model_copy(update=changes))

    def to(self, stage: Stage) -> Self:
        """The same state in another stage of its task; raises as `Memory.to`."""
        return replace(self, memory=self.memory.to(stage))

    def empty_handed(self) -> Self:
        """The same state without a task; what was done stays known."""
        memory = self.memory if self.stage == "idle" else self.memory.to("idle")
        memory = memory.model_copy(update={"task": None, "trained": None, "download_s": None, "deaths": 0})
        return replace(
            self, memory=memory, adapter=None, budget_ends=None, restarted=False, fetch_at=None, fetch_told=False
        )


def task_key(task: Task) -> str:
    """What makes two tasks the same: kind, run and round; a plan made anew is another task."""
    match task:
        case TrainTask():
            plan = hashlib.sha256(task.plan.model_dump_json().encode()).hexdigest()
            return f"{task.type}/{task.run}/{task.round}/{task.adapter.sha256}/{plan}"
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
    key, done = task_key(task), state.memory.done
    if not finished:
        return state.remembering(done={**done, f"early/{key}": (result,)})
    early = done.get(f"early/{key}", ())
    kept = {k: v for k, v in done.items() if not k.startswith(("train-task", "evaluate-task", "early/"))}
    return state.remembering(done={**kept, key: (*early, result)})


def finish(state: AgentState, task: Task, result: Result) -> AgentState:
    """The state after the task in hand has its result."""
    return replace(remember(state, task, result), budget_ends=None).to("finished")


def without_trainer(state: AgentState) -> AgentState:
    """The state after the trainer process is gone."""
    return replace(state, opened_for=None, opened=False, budget_ends=None)


def forget_run(state: AgentState, run: str) -> AgentState:
    """The state after a run has ended; what was done for others stays known."""
    done = {
        key: value for key, value in state.memory.done.items() if key.removeprefix("early/").split("/", 2)[1] != run
    }
    outbox = tuple(trained for trained in state.memory.outbox if trained.run != run)
    state = state.remembering(done=done, outbox=outbox)
    if state.opened_for == run:
        state = without_trainer(state)
    return state.empty_handed() if state.task is not None and state.task.run == run else state


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
