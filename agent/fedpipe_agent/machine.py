"""The agent as a pure machine: `(state, event, now) -> (state, actions)`.

It works on one task at a time, the newest; a task that comes again is answered with what was already done. It refuses
what its owner's limits forbid. Everything the outside world does comes in as an event, everything it wants done goes
out as an action. `trainer_machine.py` owns what the trainer process says and how it ends.
"""

from dataclasses import replace
from pathlib import Path

from fedpipe_agent import checks, trainer_machine
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
    StopTrainer,
    TaskCame,
    Ticked,
    TrainerEnded,
    TrainerReplied,
    TransferFailed,
    UpdateShelved,
)
from fedpipe_agent.state import (
    MAX_ENDED_RUNS,
    AgentState,
    describe,
    forget_run,
    remember,
    task_key,
    task_rank,
    task_round,
)
from fedpipe_agent.trainer_protocol import EvaluateRequest, Request, ScoreRequest, SurveyRequest, TrainRequest
from fedpipe_wire.messages import (
    EndTask,
    EvaluateTask,
    Failed,
    IdleTask,
    Refused,
    ScoreTask,
    SurveyTask,
    Task,
    Trained,
    TrainTask,
)

MIN_TRAINING_S = 2.0
"""Less than this cannot hold an evaluation and one step."""
UNTIMED_S = 1800.0
"""How long a request without a budget of its own may take, loading the base included."""

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
            return trainer_machine.replied(state, reply)
        case TrainerEnded(returncode):
            return trainer_machine.ended(state, returncode)
        case UpdateShelved():
            return _shelved(state, event)
        case Acknowledged():
            return _acknowledged(state, event)
        case Ticked():
            return trainer_machine.ticked(state, now)


# --- tasks ------------------------------------------------------------------------------------------------------


def _task_came(state: AgentState, task: Task, now: float) -> Outcome:
    if isinstance(task, EndTask):
        return _ended(state, task)
    if task.run in state.ended:
        return state, (Log(f"run {task.run} is over here, {task.type} of it is not worked on"),)
    key, rank = task_key(task), task_rank(task)
    known = state.done.get(key)
    if known is not None and not _deserves_another_try(state, task):
        return state, tuple(Say(message) for message in known)
    if _is_stale(state, rank):
        return _stale(state, task)
    state = replace(state, newest=rank)
    if known is None and state.task is not None and task_key(state.task) == key:
        return replace(state, task=task), ()
    if isinstance(task, IdleTask):
        return _idle(state, task)
    reason = checks.refusal(state.setup, task)
    if reason is not None:
        # Not remembered: the owner's hours may have come when the task comes again.
        return state, (Say(Refused(run=task.run, round=task_round(task), reason=reason)), Log(f"refused: {reason}"))
    done = {name: value for name, value in state.done.items() if name != key}
    state, stopped = _free_hands(replace(state, done=done), "a newer task came")
    state = replace(state, task=task, began=now, adapter=None, trained=None, offered=None, download_s=0.0)
    state, begun = _begin(state, task, now)
    return state, (Log(describe(task)), *stopped, *begun)


def _deserves_another_try(state: AgentState, task: Task) -> bool:
    """Whether a task that failed here is asked for in a newer attempt of the same round."""
    if not isinstance(task, TrainTask) or not isinstance(state.done[task_key(task)][-1], Failed):
        return False
    return state.newest is None or task_rank(task) > state.newest


def _is_stale(state: AgentState, rank: tuple[str, int, int, int]) -> bool:
    return state.newest is not None and state.newest[0] == rank[0] and rank < state.newest


def _stale(state: AgentState, task: Task) -> Outcome:
    """A message that was overtaken, or a coordinator that went back in time: it learns where this agent is."""
    assert state.newest is not None
    reason = f"{task.type} of round {task_round(task)} came, this agent has seen round {state.newest[2]} already"
    if task_round(task) == state.newest[2]:  # a refusal would be taken for one of the newest task
        return state, (Log(reason),)
    return state, (Say(Refused(run=task.run, round=task_round(task), reason=reason)), Log(reason))


def _idle(state: AgentState, task: IdleTask) -> Outcome:
    log = Log(f"round {task.round}: nothing to do here: {task.no_plan.reason}")
    if state.task is None or state.task.run != task.run:
        return state, (log,)
    state, stopped = _free_hands(state, "this round has no work for this device")
    return replace(state, task=None, adapter=None, trained=None, offered=None), (*stopped, log)


def _free_hands(state: AgentState, reason: str) -> Outcome:
    """End the trainer if it works on something: it cannot be interrupted in mid-step, a new one loads in seconds."""
    if not state.in_hand:
        return state, ()
    return trainer_machine.without_trainer(state), (StopTrainer(reason),)


def _begin(state: AgentState, task: SurveyTask | ScoreTask | TrainTask | EvaluateTask, now: float) -> Outcome:
    match task:
        case TrainTask() | EvaluateTask():
            # The trainer imports its libraries while the adapter is on its way.
            state, opened = _open(state, task)
            return state, (FetchAdapter(task.adapter), *opened)
        case ScoreTask():
            budget = max(MIN_TRAINING_S, task.deadline_s)
            return _ask(
                state, task, ScoreRequest(labels=task.labels, batches=task.batches, budget_s=budget), now + budget
            )
        case SurveyTask():
            return _ask(state, task, SurveyRequest(), now + UNTIMED_S)


def _open(state: AgentState, task: SurveyTask | ScoreTask | TrainTask | EvaluateTask) -> Outcome:
    if state.opened_for == task.run:
        return state, ()
    return replace(state, opened_for=task.run, opened=False), (Ask(checks.open_request(state.setup, task)),)


def _ask(
    state: AgentState, task: SurveyTask | ScoreTask | TrainTask | EvaluateTask, request: Request, budget_ends: float
) -> Outcome:
    state, opened = _open(state, task)
    return replace(state, in_hand=True, budget_ends=budget_ends), (*opened, Ask(request))


def _ended(state: AgentState, task: EndTask) -> Outcome:
    if task.run not in state.ended:
        state = replace(state, ended=(*state.ended, task.run)[-MAX_ENDED_RUNS:])
    if state.opened_for != task.run and (state.task is None or state.task.run != task.run):
        return state, ()
    # What is still offered will not be fetched any more.
    dropped = (DropUpdate(state.offered.update.sha256),) if state.offered is not None else ()
    return forget_run(state, task.run), (
        StopTrainer("the run is over"),
        *dropped,
        Log(f"run {task.run}: {task.reason}"),
    )


# --- the adapter ------------------------------------------------------------------------------------------------


def _adapter_ready(state: AgentState, sha256: str, path: Path, now: float) -> Outcome:
    task = state.task
    if not _awaits_adapter(state, sha256) or not isinstance(task, TrainTask | EvaluateTask):
        return state, ()
    state = replace(state, adapter=path, download_s=now - state.began)
    if isinstance(task, EvaluateTask):
        request = EvaluateRequest(labels=task.labels, plan=task.plan, adapter=path)
        return _ask(state, task, request, now + UNTIMED_S)
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
    update = trainer_machine.update_path(state)
    return _ask(
        state,
        task,
        TrainRequest(labels=task.labels, plan=task.plan, adapter=path, update=update, budget_s=budget),
        now + budget,
    )


def _transfer_failed(state: AgentState, sha256: str, reason: str) -> Outcome:
    task = state.task
    if not _awaits_adapter(state, sha256) or not isinstance(task, TrainTask | EvaluateTask):
        return state, ()
    failed = Failed(
        run=task.run, round=task.round, kind="transfer", message=f"the global adapter did not come: {reason}"[:4000]
    )
    return remember(state, task, failed), (Say(failed),)


def _awaits_adapter(state: AgentState, sha256: str) -> bool:
    task = state.task
    return (
        isinstance(task, TrainTask | EvaluateTask)
        and task.adapter.sha256 == sha256
        and state.adapter is None
        and not state.finished
    )


# --- the update -------------------------------------------------------------------------------------------------


def _shelved(state: AgentState, event: UpdateShelved) -> Outcome:
    task, reply = state.task, state.trained
    if not isinstance(task, TrainTask) or reply is None or state.finished:
        return state, (DropUpdate(event.ref.sha256),)
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
    actions = (DropUpdate(ack.sha256), Log(f"round {ack.round}: the update was {verdict}"))
    if ack.accepted:
        return state, actions
    # The update is gone: should the same task come again, it must be worked on anew.
    if state.offered is not None and state.offered.update.sha256 == ack.sha256:
        state = replace(state, task=None, adapter=None, trained=None, offered=None)
    done = {
        key: results
        for key, results in state.done.items()
        if not (isinstance(results[-1], Trained) and results[-1].update.sha256 == ack.sha256)
    }
    return replace(state, done=done), actions
