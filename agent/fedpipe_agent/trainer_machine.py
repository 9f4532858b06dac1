"""What the trainer process says, and how it ends: part of the pure machine of `machine.py`.

A reply counts only while the request that it answers is in the trainer's hands.
"""

import signal
from dataclasses import replace
from pathlib import Path

from fedpipe_agent.agent_events import AgentAction, Log, Say, ShelveUpdate, StopTrainer
from fedpipe_agent.state import AgentState, Result, remember, task_round
from fedpipe_agent.trainer_protocol import (
    ErrorReply,
    EvaluatedReply,
    Opened,
    ProgressReply,
    Reply,
    ScoredReply,
    Surveyed,
    TrainedReply,
)
from fedpipe_wire.messages import (
    Evaluated,
    EvaluateTask,
    Failed,
    Progress,
    Scored,
    ScoreTask,
    Survey,
    SurveyTask,
    Task,
    TrainTask,
)

OVERRUN_S = 60.0
"""How long the trainer may stay silent beyond its budget before it is ended."""

Outcome = tuple[AgentState, tuple[AgentAction, ...]]


def update_path(state: AgentState) -> Path:
    """Where the trainer writes its update."""
    return state.setup.state / "update.safetensors"


def without_trainer(state: AgentState) -> AgentState:
    """The state after the trainer process is gone."""
    return replace(state, opened_for=None, opened=False, in_hand=False, budget_ends=None)


def replied(state: AgentState, reply: Reply) -> Outcome:
    """The trainer said something."""
    if isinstance(reply, Opened):
        return replace(state, opened=True), ()
    task = state.task
    if task is None or state.finished:
        return state, ()
    if isinstance(reply, ErrorReply):
        return _failed(state, task, reply)
    if not state.in_hand:
        return state, ()
    return _answered(state, task, reply)


def _failed(state: AgentState, task: Task, reply: ErrorReply) -> Outcome:
    failed = Failed(
        run=task.run,
        round=task_round(task),
        kind=reply.kind,
        message=reply.message[:4000],
        peak_bytes=reply.peak_bytes,
    )
    if not state.opened:
        # It was opening that failed: the process must be opened anew before it is of any use.
        state = replace(state, opened_for=None)
    return _finish(state, task, failed)


def _answered(
    state: AgentState, task: Task, reply: Surveyed | ScoredReply | EvaluatedReply | TrainedReply | ProgressReply
) -> Outcome:
    match reply, task:
        case ProgressReply(), _:
            said = Progress(run=task.run, round=task_round(task), **reply.model_dump(exclude={"reply"}))
            return state, (Say(said),)
        case Surveyed(), SurveyTask():
            return _finish(state, task, Survey(run=task.run, **dict(reply.model_dump(exclude={"reply"}))))
        case ScoredReply(), ScoreTask():
            scored = Scored(run=task.run, contribution=reply.contribution, measurements=reply.measurements)
            return _finish(state, task, scored)
        case EvaluatedReply(), EvaluateTask():
            return _finish(state, task, Evaluated(run=task.run, round=task.round, metrics=reply.metrics))
        case EvaluatedReply(), TrainTask():
            evaluated = Evaluated(run=task.run, round=task.round, metrics=reply.metrics)
            return remember(state, task, evaluated, finished=False), (Say(evaluated),)
        case TrainedReply(), TrainTask():
            state = replace(state, trained=reply, in_hand=False, budget_ends=None)
            return state, (ShelveUpdate(update_path(state)),)
        case _:
            return state, (Log(f"the trainer said {reply.reply!r} to {task.type}, which does not answer it"),)


def _finish(state: AgentState, task: Task, result: Result) -> Outcome:
    return replace(remember(state, task, result), in_hand=False, budget_ends=None), (Say(result),)


def ended(state: AgentState, returncode: int) -> Outcome:
    """The trainer process is gone without being asked to go."""
    task, worked = state.task, state.in_hand
    state = without_trainer(state)
    if task is None or not worked:
        return state, (Log(f"the trainer ended with {returncode}"),)
    killed = returncode == -signal.SIGKILL  # it comes from the kernel's out-of-memory killer, or from a person
    message = (
        "the trainer was killed, most likely for memory: lower [limits] memory_mib or free memory on this machine"
        if killed
        else f"the trainer ended unexpectedly with status {returncode}: trainer.log on this agent has all"
    )
    kind = "out-of-memory" if killed else "internal"
    failed = Failed(run=task.run, round=task_round(task), kind=kind, message=message)
    # what it wrote last may quote an example: it stays in its log
    return remember(state, task, failed), (Say(failed), Log(message))


def ticked(state: AgentState, now: float) -> Outcome:
    """Time has passed: a trainer that stays silent beyond its budget is ended."""
    if state.budget_ends is None or now < state.budget_ends + OVERRUN_S or state.task is None:
        return state, ()
    failed = Failed(
        run=state.task.run,
        round=task_round(state.task),
        kind="time",
        message=f"the trainer overran its budget by {OVERRUN_S:.0f} s and was ended",
    )
    state = without_trainer(remember(state, state.task, failed))
    return state, (StopTrainer("it overran its budget"), Say(failed))
