"""What the trainer process says, and how it ends: part of the pure machine of `machine.py`.

A reply counts only while the request that it answers is in the trainer's hands.
"""

import signal
from dataclasses import replace
from typing import Literal

from fedpipe_agent.agent_events import Log, NameUpdate, Say, StopTrainer, TrainerEnded
from fedpipe_agent.handing import Outcome, hand_over, update_path
from fedpipe_agent.memory import Result
from fedpipe_agent.state import AgentState, Work, finish, remember, task_round, without_trainer
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
from fedpipe_wire.agent_messages import Evaluated, Failed, Progress, Scored, Survey
from fedpipe_wire.coordinator_messages import EvaluateTask, ScoreTask, SurveyTask, Task, TrainTask

OVERRUN_S = 60.0
"""How long the trainer may stay silent beyond its budget before it is ended."""
MAX_DEATHS = 1
"""How many trainers may die with a task in their hands before it counts as failed."""


def replied(state: AgentState, reply: Reply) -> Outcome:
    """The trainer said something."""
    if isinstance(reply, Opened):
        held = replace(state.setup, context_bytes=reply.context_bytes or None)
        return replace(state, opened=True, setup=held), ()
    task = state.task
    if task is None or state.stage not in ("fetching", "working"):
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
            state = replace(state.remembering(trained=reply), budget_ends=None).to("shelving")
            return state, (NameUpdate(update_path(state)),)
        case _:
            return state, (Log(f"the trainer said {reply.reply!r} to {task.type}, which does not answer it"),)


def _finish(state: AgentState, task: Task, result: Result) -> Outcome:
    return finish(state, task, result), (Say(result),)


def ended(state: AgentState, event: TrainerEnded, now: float) -> Outcome:
    """The trainer process is gone without being asked to go; what it worked on goes once to a fresh one."""
    task, worked = state.task, state.in_hand
    state = without_trainer(state)
    if not worked or not isinstance(task, Work):
        return state, (Log(f"the trainer ended with {event.returncode}"),)
    deaths = state.memory.deaths + 1
    state = state.remembering(deaths=deaths)
    if deaths <= MAX_DEATHS and not event.out_of_memory:
        state, again = hand_over(state, task, now)
        return state, (Log(f"the trainer ended with {event.returncode} in mid-work: its task is begun again"), *again)
    # SIGKILL comes from the kernel's out-of-memory killer, or from a person
    killed = event.out_of_memory or event.returncode == -signal.SIGKILL
    sure = "" if event.out_of_memory else "most likely "
    message = (
        f"the trainer was killed, {sure}for memory: lower [limits] memory_mib or free memory on this machine"
        if killed
        else f"the trainer ended unexpectedly with status {event.returncode}: trainer.log on this agent has all"
    )
    kind: Literal["out-of-memory", "internal"] = "out-of-memory" if killed else "internal"
    failed = Failed(run=task.run, round=task_round(task), kind=kind, message=message)
    # what it wrote last may quote an example: it stays in its log
    return finish(state, task, failed), (Say(failed), Log(message))


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
    state = without_trainer(finish(state, state.task, failed))
    return state, (StopTrainer("it overran its budget"), Say(failed))
