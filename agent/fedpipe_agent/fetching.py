"""What becomes of a task's adapter until it is on this machine's disk: part of the pure machine of `machine.py`.

A disk that has no room for it costs time and not the task: the adapter is fetched again while the task's time lasts.
"""

from dataclasses import replace
from pathlib import Path

from fedpipe_agent import handing
from fedpipe_agent.agent_events import AdapterReady, DiskRefused, FetchAdapter, Log, Say, TransferFailed
from fedpipe_agent.handing import MIN_TRAINING_S, Outcome
from fedpipe_agent.state import AgentState, finish
from fedpipe_wire.agent_messages import Failed
from fedpipe_wire.coordinator_messages import EvaluateTask, TrainTask

FETCH_AGAIN_S = 10.0
"""How long a disk that took nothing is left alone."""


def happened(state: AgentState, event: AdapterReady | TransferFailed | DiskRefused, now: float) -> Outcome:
    """An adapter came, or did not; one that no task waits for changes nothing."""
    sha256 = event.ref.sha256 if isinstance(event, AdapterReady) else event.sha256
    task = _awaiting(state, sha256)
    if task is None:
        return state, ()
    match event:
        case AdapterReady(_, path):
            return _ready(state, task, path, now)
        case TransferFailed(_, reason):
            return _failed(state, task, reason)
        case DiskRefused(_, reason):
            return _refused(state, task, reason, now)


def _ready(state: AgentState, task: TrainTask | EvaluateTask, path: Path, now: float) -> Outcome:
    if state.memory.download_s is None:
        state = state.remembering(download_s=max(0.0, now - state.memory.began))
    return handing.hand_over(replace(state, adapter=path, fetch_at=None), task, now)


def _refused(state: AgentState, task: TrainTask | EvaluateTask, reason: str, now: float) -> Outcome:
    left = _left_s(state, task, now)
    if left < MIN_TRAINING_S:
        return _failed(state, task, f"{reason}. {max(0.0, left):.1f} s are left of the task's time")
    waiting = replace(state, fetch_at=now + min(FETCH_AGAIN_S, left - MIN_TRAINING_S), fetch_told=True)
    if state.fetch_told:
        return waiting, ()
    text = f"the global adapter is not here yet, and is asked for every {FETCH_AGAIN_S:.0f} s: {reason}"
    return waiting, (Log(text),)


def ticked(state: AgentState, now: float) -> Outcome:
    """Time has passed: fetch again what the disk did not take."""
    task = state.task
    if state.fetch_at is None or now < state.fetch_at or state.stage != "fetching":
        return state, ()
    if not isinstance(task, TrainTask | EvaluateTask):
        return state, ()
    return replace(state, fetch_at=None), (FetchAdapter(task.adapter),)


def _left_s(state: AgentState, task: TrainTask | EvaluateTask, now: float) -> float:
    """Seconds that would be left to the trainer; an evaluation's time counts from its coming, too."""
    left = handing.left_s(state, task, now)
    return left if isinstance(task, TrainTask) else left - (now - state.memory.began)


def _failed(state: AgentState, task: TrainTask | EvaluateTask, reason: str) -> Outcome:
    message = f"the global adapter did not come: {reason}"[:4000]
    failed = Failed(run=task.run, round=task.round, kind="transfer", message=message)
    return finish(state, task, failed), (Say(failed), Log(message))


def _awaiting(state: AgentState, sha256: str) -> TrainTask | EvaluateTask | None:
    """The task that waits for this adapter."""
    task = state.task
    if state.stage != "fetching" or not isinstance(task, TrainTask | EvaluateTask):
        return None
    return task if task.adapter.sha256 == sha256 else None
