"""The agent as a pure machine: `(state, event, now) -> (state, actions)`.

It works on one task at a time, the newest; a task that comes again is answered with what was already done. It refuses
what its owner's limits forbid. Everything the outside world does comes in as an event, everything it wants done goes
out as an action.
"""

import signal
from dataclasses import replace
from pathlib import Path

from fedpipe_agent import checks
from fedpipe_agent.agent_events import (
    Acknowledged,
    AdapterReady,
    AgentAction,
    AgentEvent,
    Ask,
    DropUpdate,
    FetchAdapter,
    Log,
    Say,
    ShelveUpdate,
    StopTrainer,
    TaskCame,
    Ticked,
    TrainerEnded,
    TrainerReplied,
    TransferFailed,
    UpdateShelved,
)
from fedpipe_agent.state import AgentState, Result, describe, remember, task_key, task_round
from fedpipe_agent.trainer_protocol import (
    ErrorReply,
    EvaluatedReply,
    EvaluateRequest,
    Opened,
    ProgressReply,
    Reply,
    ScoredReply,
    ScoreRequest,
    Surveyed,
    SurveyRequest,
    TrainedReply,
    TrainRequest,
)
from fedpipe_wire.messages import (
    EndTask,
    Evaluated,
    EvaluateTask,
    Failed,
    IdleTask,
    Progress,
    Refused,
    Scored,
    ScoreTask,
    Survey,
    Task,
    Trained,
    TrainTask,
)

MIN_TRAINING_S = 2.0
"""Less than this cannot hold an evaluation and one step."""
OVERRUN_S = 60.0
"""How long the trainer may stay silent beyond its budget before it is ended."""


Outcome = tuple[AgentState, tuple[AgentAction, ...]]


def step(state: AgentState, event: AgentEvent, now: float) -> Outcome:
    """What the agent becomes by an event, and what is to be done.

    Args:
        state: The agent as it is.
        event: What happened.
        now: Monotonic seconds of the agent's clock.
    """
    match event:
        case TaskCame(task):
            return _task_came(state, task, now)
        case AdapterReady(ref, path):
            return _adapter_ready(state, ref.sha256, path, now)
        case TransferFailed(sha256, reason):
            return _transfer_failed(state, sha256, reason)
        case TrainerReplied(reply):
            return _replied(state, reply)
        case TrainerEnded(returncode, last_words):
            return _trainer_ended(state, returncode, last_words)
        case UpdateShelved():
            return _shelved(state, event)
        case Acknowledged():
            return _acknowledged(state, event)
        case Ticked():
            return _ticked(state, now)


# --- tasks ------------------------------------------------------------------------------------------------------


def _task_came(state: AgentState, task: Task, now: float) -> Outcome:
    key = task_key(task)
    if key in state.done:
        return state, tuple(Say(message) for message in state.done[key])
    if state.task is not None and task_key(state.task) == key:
        return state, ((Say(state.offered),) if state.offered is not None else ())
    if isinstance(task, EndTask):
        return _ended(state, task)
    if isinstance(task, IdleTask):
        return state, (Log(f"round {task.round}: nothing to do here: {task.no_plan.reason}"),)
    reason = checks.refusal(state.setup, task)
    if reason is not None:
        refused = Refused(run=task.run, round=task_round(task), reason=reason)
        return remember(state, task, refused), (Say(refused), Log(f"refused: {reason}"))
    actions: list[AgentAction] = [Log(describe(task))]
    if state.task is not None and state.opened_for is not None and not _answered(state):
        # The trainer cannot be interrupted in mid-step: end it, a new one loads in seconds.
        actions.append(StopTrainer("a newer task came"))
        state = replace(state, opened_for=None)
    state = replace(
        state, task=task, began=now, adapter=None, trained=None, offered=None, budget_ends=None, download_s=0.0
    )
    if isinstance(task, TrainTask | EvaluateTask):
        actions.append(FetchAdapter(task.adapter))
        if state.opened_for != task.run:
            actions.append(Ask(checks.open_request(state.setup, task)))
            state = replace(state, opened_for=task.run)
        return state, tuple(actions)
    if state.opened_for != task.run:
        actions.append(Ask(checks.open_request(state.setup, task)))
        state = replace(state, opened_for=task.run)
    if isinstance(task, ScoreTask):
        budget = max(MIN_TRAINING_S, task.deadline_s)
        actions.append(Ask(ScoreRequest(labels=task.labels, batches=task.batches, budget_s=budget)))
    else:
        actions.append(Ask(SurveyRequest()))
    return state, tuple(actions)


def _answered(state: AgentState) -> bool:
    """Whether the trainer has nothing in hand: the current task's result is known or its adapter is still coming."""
    task = state.task
    if task is None or task_key(task) in state.done or state.trained is not None:
        return True
    return isinstance(task, TrainTask | EvaluateTask) and state.adapter is None


def _ended(state: AgentState, task: EndTask) -> Outcome:
    if state.opened_for != task.run and (state.task is None or state.task.run != task.run):
        return state, ()
    done = {key: value for key, value in state.done.items() if f"/{task.run}" not in key}
    fresh = AgentState(setup=state.setup, done=done)
    return fresh, (StopTrainer("the run is over"), Log(f"run {task.run}: {task.reason}"))


def _adapter_ready(state: AgentState, sha256: str, path: Path, now: float) -> Outcome:
    task = state.task
    if not isinstance(task, TrainTask | EvaluateTask) or task.adapter.sha256 != sha256 or state.adapter is not None:
        return state, ()
    state = replace(state, adapter=path, download_s=now - state.began)
    if isinstance(task, EvaluateTask):
        return state, (Ask(EvaluateRequest(labels=task.labels, plan=task.plan, adapter=path)),)
    budget = task.plan.deadline_s - (now - state.began) - checks.upload_s(state.setup, task.plan)
    if budget < MIN_TRAINING_S:
        failed = Failed(
            run=task.run,
            round=task.round,
            kind="time",
            message=f"{budget:.1f} s are left of {task.plan.deadline_s:.0f} s after the adapter came and before the "
            "update must be sent: a longer deadline or a faster link would help",
        )
        return remember(state, task, failed), (Say(failed),)
    request = TrainRequest(
        labels=task.labels,
        plan=task.plan,
        adapter=path,
        update=state.setup.state / "update.safetensors",
        budget_s=budget,
    )
    return replace(state, budget_ends=now + budget), (Ask(request),)


# --- the trainer ------------------------------------------------------------------------------------------------


def _replied(state: AgentState, reply: Reply) -> Outcome:
    task = state.task
    if task is None:
        return state, ()
    round_ = task_round(task)
    match reply:
        case Opened():
            return state, ()
        case ProgressReply():
            said = Progress(run=task.run, round=round_, **reply.model_dump(exclude={"reply"}))
            return state, (Say(said),)
        case Surveyed():
            return _finish(state, Survey(run=task.run, **dict(reply.model_dump(exclude={"reply"}))))
        case ScoredReply():
            return _finish(
                state, Scored(run=task.run, contribution=reply.contribution, measurements=reply.measurements)
            )
        case EvaluatedReply():
            evaluated = Evaluated(run=task.run, round=max(1, round_), metrics=reply.metrics)
            if isinstance(task, EvaluateTask):
                return _finish(state, evaluated)
            return remember(state, task, evaluated, finished=False), (Say(evaluated),)
        case TrainedReply():
            if not isinstance(task, TrainTask):
                return state, ()
            path = state.setup.state / "update.safetensors"
            return replace(state, trained=reply, budget_ends=None), (ShelveUpdate(path),)
        case ErrorReply():
            failed = Failed(
                run=task.run, round=round_, kind=reply.kind, message=reply.message[:4000], peak_bytes=reply.peak_bytes
            )
            return _finish(state, failed)


def _finish(state: AgentState, result: Result) -> Outcome:
    if state.task is None:
        return state, ()
    return remember(state, state.task, result), (Say(result),)


def _trainer_ended(state: AgentState, returncode: int, last_words: str) -> Outcome:
    state = replace(state, opened_for=None, budget_ends=None)
    task = state.task
    if task is None or task_key(task) in state.done or state.trained is not None:
        return state, (Log(f"the trainer ended with {returncode}"),)
    killed = returncode == -signal.SIGKILL  # it comes from the kernel's out-of-memory killer, or from a person
    message = (
        "the trainer was killed, most likely for memory: lower [limits] memory_mib or free memory on this machine"
        if killed
        else f"the trainer ended unexpectedly with status {returncode}: {last_words[-500:]}"
    )
    failed = Failed(
        run=task.run, round=task_round(task), kind="out-of-memory" if killed else "internal", message=message
    )
    return remember(state, task, failed), (Say(failed), Log(message))


def _ticked(state: AgentState, now: float) -> Outcome:
    if state.budget_ends is None or now < state.budget_ends + OVERRUN_S or state.task is None:
        return state, ()
    failed = Failed(
        run=state.task.run,
        round=task_round(state.task),
        kind="time",
        message=f"the trainer overran its budget by {OVERRUN_S:.0f} s and was ended",
    )
    state = replace(remember(state, state.task, failed), opened_for=None, budget_ends=None)
    return state, (StopTrainer("it overran its budget"), Say(failed))


# --- the update -------------------------------------------------------------------------------------------------


def _shelved(state: AgentState, event: UpdateShelved) -> Outcome:
    task, reply = state.task, state.trained
    if not isinstance(task, TrainTask) or reply is None:
        return state, ()
    offered = Trained(
        run=task.run,
        round=task.round,
        update=event.ref,
        examples=reply.examples,
        steps=reply.steps,
        train_loss=reply.train_loss,
        measurement=reply.measurement,
        download_s=state.download_s,
        compute_s=reply.compute_s,
        actions=reply.actions,
    )
    return replace(remember(state, task, offered), offered=offered), (Say(offered),)


def _acknowledged(state: AgentState, event: Acknowledged) -> Outcome:
    ack = event.ack
    verdict = "taken" if ack.accepted else f"not taken: {ack.reason}"
    return state, (DropUpdate(ack.sha256), Log(f"round {ack.round}: the update was {verdict}"))


def _transfer_failed(state: AgentState, sha256: str, reason: str) -> Outcome:
    task = state.task
    if not isinstance(task, TrainTask | EvaluateTask) or task_key(task) in state.done:
        return state, ()
    if task.adapter.sha256 != sha256:
        return state, ()
    failed = Failed(
        run=task.run, round=task.round, kind="transfer", message=f"the global adapter did not come: {reason}"
    )
    return remember(state, task, failed), (Say(failed),)
