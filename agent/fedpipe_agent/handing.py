"""Giving the task in hand to a trainer, the first time and again: part of the pure machine of `machine.py`.

Owns the time box: what is left of a task's time, by the agent's monotonic clock, whatever was lost on the way.
"""

from dataclasses import replace
from pathlib import Path

from fedpipe_agent import checks
from fedpipe_agent.agent_events import AgentAction, Ask, Log, Say
from fedpipe_agent.state import AgentState, Work, finish, task_round
from fedpipe_agent.trainer_protocol import EvaluateRequest, Request, ScoreRequest, SurveyRequest, TrainRequest
from fedpipe_wire.agent_messages import Failed
from fedpipe_wire.coordinator_messages import EvaluateTask, ScoreTask, SurveyTask, TrainTask

MIN_TRAINING_S = 2.0
"""Less than this cannot hold an evaluation and one step."""
UNTIMED_S = 1800.0
"""How long a request without a budget of its own may take, loading the base included."""

Outcome = tuple[AgentState, tuple[AgentAction, ...]]


def update_path(state: AgentState) -> Path:
    """Where the trainer writes its update."""
    return state.setup.state / "update.safetensors"


def open_trainer(state: AgentState, task: Work) -> Outcome:
    """Have a trainer for this task's run; it imports its libraries while the adapter is on its way."""
    if state.opened_for == task.run:
        return state, ()
    return replace(state, opened_for=task.run, opened=False), (Ask(checks.open_request(state.setup, task)),)


def hand_over(state: AgentState, task: Work, now: float) -> Outcome:
    """Ask the trainer for the task in hand within the time that is left of it, or say that too little is."""
    left = left_s(state, task, now)
    if left < MIN_TRAINING_S:
        failed = too_late(state, task, left)
        return finish(state, task, failed), (Say(failed), Log(failed.message))
    state, opened = open_trainer(state, task)
    state = replace(state, budget_ends=now + left)
    return state if state.stage == "working" else state.to("working"), (*opened, Ask(_request(state, task, left)))


def left_s(state: AgentState, task: Work, now: float) -> float:
    """Seconds that the trainer may use."""
    used = now - state.memory.began
    match task:
        case TrainTask():
            return task.plan.deadline_s - used - checks.upload_s(state.setup, task.plan)
        case ScoreTask():
            return max(MIN_TRAINING_S, task.deadline_s) - used
        case SurveyTask() | EvaluateTask():
            return UNTIMED_S


def too_late(state: AgentState, task: Work, left: float) -> Failed:
    """What is said of a task that cannot be done in its time."""
    whole = task.plan.deadline_s if isinstance(task, TrainTask) else getattr(task, "deadline_s", UNTIMED_S)
    causes = ["the agent was restarted"] * state.restarted + ["its trainer died"] * (state.memory.deaths > 0)
    after = " and ".join(causes) or "the adapter came"
    before = " and before the update must be sent" if isinstance(task, TrainTask) else ""
    message = (
        f"{left:.1f} s are left of {whole:.0f} s after {after}{before}: a longer deadline or a faster link would help"
    )
    return Failed(run=task.run, round=task_round(task), kind="time", message=message)


def _request(state: AgentState, task: Work, left: float) -> Request:
    match task:
        case SurveyTask():
            return SurveyRequest()
        case ScoreTask():
            return ScoreRequest(labels=task.labels, batches=task.batches, budget_s=left)
        case EvaluateTask():
            limit = checks.memory_limit_bytes(state.setup)
            return EvaluateRequest(
                labels=task.labels, plan=task.plan, adapter=_adapter(state), memory_limit_bytes=limit
            )
        case TrainTask():
            return TrainRequest(
                labels=task.labels,
                plan=task.plan,
                adapter=_adapter(state),
                update=update_path(state),
                budget_s=left,
                memory_limit_bytes=checks.memory_limit_bytes(state.setup),
                score_batches=task.score_batches,
            )


def _adapter(state: AgentState) -> Path:
    assert state.adapter is not None, "the adapter must be here before its task is handed over"
    return state.adapter
