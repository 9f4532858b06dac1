"""The agent as a pure machine: `(state, event, now) -> (state, actions)`.

It works on one task at a time, the newest; a task that comes again is answered with what was already done. It refuses
what its owner's limits forbid. Everything the outside world does comes in as an event, everything it wants done goes
out as an action. What `state.memory` holds must be durable before the actions of its step are taken; an action may be
lost by a kill, and is derived again from the memory. `fetching.py` owns what becomes of adapters, `trainer_machine.py`
what the trainer process says and how it ends, `outbox_machine.py` what becomes of updates.
"""

from dataclasses import replace

from fedpipe_agent import checks, fetching, handing, outbox_machine, trainer_machine
from fedpipe_agent.agent_events import (
    Acknowledged,
    AdapterReady,
    AgentEvent,
    DiskRefused,
    DropUpdate,
    FetchAdapter,
    Log,
    NotShelved,
    Say,
    StopTrainer,
    TaskCame,
    Ticked,
    Tidy,
    TrainerEnded,
    TrainerReplied,
    TransferFailed,
    UpdateNamed,
    UpdateShelved,
    Welcomed,
)
from fedpipe_agent.handing import Outcome
from fedpipe_agent.state import (
    MAX_ENDED_RUNS,
    AgentState,
    Work,
    describe,
    finish,
    forget_run,
    task_key,
    task_rank,
    task_round,
    without_trainer,
)
from fedpipe_wire.agent_messages import Ahead, Failed, Refused, Trained
from fedpipe_wire.coordinator_messages import EndTask, EvaluateTask, IdleTask, Task, TrainTask


def step(state: AgentState, event: AgentEvent, now: float) -> Outcome:
    """What the agent becomes by an event, and what is to be done.

    Args:
        state: The agent as it is.
        event: What happened.
        now: Monotonic seconds of the agent's clock.
    """
    match event:
        case Welcomed():
            return _welcomed(state, now)
        case TaskCame(task):
            return _task_came(state, task, now)
        case AdapterReady() | TransferFailed() | DiskRefused():
            return fetching.happened(state, event, now)
        case TrainerReplied(reply):
            return trainer_machine.replied(state, reply)
        case TrainerEnded():
            return trainer_machine.ended(state, event, now)
        case UpdateNamed(ref):
            return outbox_machine.named(state, ref)
        case UpdateShelved(ref):
            return outbox_machine.shelved(state, ref)
        case NotShelved(name, reason):
            return outbox_machine.not_shelved(state, name, reason)
        case Acknowledged(ack):
            return outbox_machine.acknowledged(state, ack)
        case Ticked():
            return _ticked(state, now)


def _ticked(state: AgentState, now: float) -> Outcome:
    state, ended = trainer_machine.ticked(state, now)
    state, fetched = fetching.ticked(state, now)
    return state, (*ended, *fetched)


# --- beginning again --------------------------------------------------------------------------------------------


def _welcomed(state: AgentState, now: float) -> Outcome:
    """The coordinator listens: say what it must still acknowledge, and go on with what a killed process left."""
    offers, task, loaded = outbox_machine.offers(state), state.task, state.loaded
    state = replace(state, loaded=False)
    if not loaded or state.stage not in ("fetching", "working") or not isinstance(task, Work):
        return state, offers
    reason = checks.refusal(state.setup, task)
    if reason is not None:  # the owner has changed agent.toml meanwhile
        return state.empty_handed(), (*offers, *_refuse(task, reason))
    state = replace(state, restarted=True)
    left = handing.left_s(state, task, now)
    if left < handing.MIN_TRAINING_S:
        failed = handing.too_late(state, task, left)
        return finish(state, task, failed), (*offers, Say(failed), Log(failed.message))
    state, begun = _begin(state.to("idle"), task, now)
    return state, (*offers, Log(f"going on after a restart: {describe(task)}"), *begun)


# --- tasks ------------------------------------------------------------------------------------------------------


def _task_came(state: AgentState, task: Task, now: float) -> Outcome:
    if isinstance(task, EndTask):
        return _ended(state, task)
    if task.epoch > state.memory.epoch:
        return _of_newer_epoch(state, task, now)
    memory = state.memory
    if task.run in memory.ended:
        return state, (Log(f"run {task.run} is over here, {task.type} of it is not worked on"),)
    key, rank = task_key(task), task_rank(task)
    known = memory.done.get(key)
    if known is not None and not _deserves_another_try(state, task):
        return state, tuple(Say(message) for message in known)
    if _is_stale(state, task):
        return _stale(state, task)
    state = state.remembering(newest=rank)
    if known is None and state.task is not None and task_key(state.task) == key:
        return state.remembering(task=task), ()
    if isinstance(task, IdleTask):
        return _idle(state, task)
    reason = checks.refusal(state.setup, task)
    if reason is not None:
        # Not remembered: the owner's hours may have come when the task comes again.
        return state, _refuse(task, reason)
    done = {name: value for name, value in memory.done.items() if name != key}
    state, stopped = _free_hands(state.remembering(done=done), "a newer task came")
    state, begun = _begin(state.remembering(task=task, began=now), task, now)
    return state, (Log(describe(task)), *stopped, *begun)


def _refuse(task: Task, reason: str) -> tuple[Say, Log]:
    return Say(Refused(run=task.run, round=task_round(task), reason=reason)), Log(f"refused: {reason}")


def _deserves_another_try(state: AgentState, task: Task) -> bool:
    """Whether a task that failed here, or whose update is not here any more, is asked for in a newer attempt."""
    last = state.memory.done[task_key(task)][-1]
    lost = isinstance(last, Trained) and last not in state.memory.outbox
    if not isinstance(task, TrainTask) or not (lost or isinstance(last, Failed)):
        return False
    return state.memory.newest is None or task_rank(task) > state.memory.newest


def _of_newer_epoch(state: AgentState, task: Work | IdleTask, now: float) -> Outcome:
    """A coordinator that was started anew: what it asks for counts, also where it went back in time meanwhile."""
    memory, rank, key = state.memory, task_rank(task), task_key(task)
    newest, said = memory.newest, memory.done.get(key, ())
    state = state.remembering(epoch=task.epoch)
    if said and isinstance(said[-1], Trained) and said[-1] not in memory.outbox:
        # It was acknowledged, and is asked for again all the same: it must be made anew.
        done = {name: results for name, results in memory.done.items() if name != key}
        mine = state.task is not None and task_key(state.task) == key
        state = (state.empty_handed() if mine else state).remembering(done=done)
    back = newest is not None and newest[0] == task.run and rank < newest
    if not back and task.run not in memory.ended:
        return _task_came(state, task, now)
    seen = newest[2] if back and newest is not None else 0
    ended = tuple(run for run in memory.ended if run != task.run)
    state, actions = _task_came(state.remembering(newest=rank if back else newest, ended=ended), task, now)
    behind = f"the coordinator has gone back in time: {task.type} of round {task_round(task)} came, this agent was at "
    behind += f"round {seen}" if back else "the end of the run"
    return state, (Say(Ahead(run=task.run, round=seen)), Log(behind), *actions)


def _is_stale(state: AgentState, task: Work | IdleTask) -> bool:
    newest = state.memory.newest
    if newest is None or newest[0] != task.run:
        return False
    return task.epoch < state.memory.epoch or task_rank(task) < newest


def _stale(state: AgentState, task: Task) -> Outcome:
    """A message that was overtaken, or a coordinator that went back in time: it learns where this agent is."""
    assert state.memory.newest is not None
    seen = state.memory.newest[2]
    reason = f"{task.type} of round {task_round(task)} came, this agent has seen round {seen} already"
    if task_round(task) == seen:  # a refusal would be taken for one of the newest task
        return state, (Log(reason),)
    return state, (Say(Refused(run=task.run, round=task_round(task), reason=reason)), Log(reason))


def _idle(state: AgentState, task: IdleTask) -> Outcome:
    log = Log(f"round {task.round}: nothing to do here: {task.no_plan.reason}")
    if state.task is None or state.task.run != task.run:
        return state, (log,)
    state, stopped = _free_hands(state, "this round has no work for this device")
    return state, (*stopped, log)


def _free_hands(state: AgentState, reason: str) -> Outcome:
    """Let the task in hand go; a trainer at work is ended: it cannot be interrupted, a new one loads in seconds."""
    if not state.in_hand:
        return state.empty_handed(), ()
    return without_trainer(state).empty_handed(), (StopTrainer(reason),)


def _begin(state: AgentState, task: Work, now: float) -> Outcome:
    if isinstance(task, TrainTask | EvaluateTask):
        state, opened = handing.open_trainer(state.to("fetching"), task)
        return state, (FetchAdapter(task.adapter), *opened)
    return handing.hand_over(state.to("working"), task, now)


def _ended(state: AgentState, task: EndTask) -> Outcome:
    memory = state.memory
    if task.run not in memory.ended:
        state = state.remembering(ended=(*memory.ended, task.run)[-MAX_ENDED_RUNS:])
    mine = state.opened_for == task.run or (state.task is not None and state.task.run == task.run)
    # What is still offered will not be fetched any more.
    kept = {trained.update.sha256 for trained in memory.outbox if trained.run != task.run}
    ended = {trained.update.sha256 for trained in memory.outbox if trained.run == task.run}
    dropped = tuple(DropUpdate(sha256) for sha256 in sorted(ended - kept))  # two runs may have made the same bytes
    if not mine and not ended:
        return state, ()
    stopped = (StopTrainer("the run is over"),) if mine else ()
    return forget_run(state, task.run), (*stopped, *dropped, Tidy(), Log(f"run {task.run}: {task.reason}"))
