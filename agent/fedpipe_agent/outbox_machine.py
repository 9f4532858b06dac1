"""What becomes of an update from the trainer's word that it is written until the coordinator's acknowledgement.

Part of the pure machine of `machine.py`. First the update is named by its content and remembered as one that the
coordinator must acknowledge, then it is moved into the outbox, then it is offered. So wherever a kill falls, the same
update is offered, under the same name. Only an acknowledgement, or the end of its run, takes one out of the outbox,
or that so many came after it that it can count no more.
"""

from fedpipe_agent.agent_events import (
    AgentAction,
    DropUpdate,
    Log,
    NameUpdate,
    Say,
    ShelveUpdate,
)
from fedpipe_agent.handing import Outcome, update_path
from fedpipe_agent.state import AgentState, finish, remember, task_key
from fedpipe_wire.agent_messages import Failed, Trained
from fedpipe_wire.coordinator_messages import Ack, TrainTask
from fedpipe_wire.message_values import BlobRef

MAX_OUTBOX = 8
"""An update counts in its round or the next one, and a round is planned three times at most; so what lies behind this
many newer ones can count no more. It bounds the disk that a coordinator which acknowledges nothing can fill."""


def offers(state: AgentState) -> tuple[AgentAction, ...]:
    """What to do for every update that is not acknowledged; each may be done twice without harm.

    What was said before the update may have been lost with it, and is said again.
    """
    path, done = update_path(state), state.memory.done
    actions: list[AgentAction] = []
    if state.stage == "shelving" and state.offered is None and state.task is not None:
        actions += [*map(Say, done.get(f"early/{task_key(state.task)}", ())), NameUpdate(path)]
    for trained in state.memory.outbox:
        said = next((results for results in done.values() if results[-1] == trained), ())
        actions += [*map(Say, said[:-1]), ShelveUpdate(path, trained.update)]
    return tuple(actions)


def named(state: AgentState, ref: BlobRef) -> Outcome:
    """The written update has a name."""
    task, memory = state.task, state.memory
    if not isinstance(task, TrainTask) or state.stage != "shelving" or memory.trained is None:
        return state, ()
    trained = Trained(
        run=task.run,
        round=task.round,
        update=ref,
        download_s=memory.download_s or 0.0,
        **dict(memory.trained.model_dump(exclude={"reply"})),
    )
    state, dropped = _make_place(remember(state, task, trained))
    state = state.remembering(outbox=(*state.memory.outbox, trained))
    return state, (*dropped, ShelveUpdate(update_path(state), ref))


def _make_place(state: AgentState) -> Outcome:
    """Let the oldest updates go where a coordinator has acknowledged none for long."""
    outbox = state.memory.outbox
    excess = max(0, len(outbox) + 1 - MAX_OUTBOX)
    old, left = outbox[:excess], outbox[excess:]
    kept = {each.update.sha256 for each in left}
    logs = tuple(
        Log(
            f"update {each.update.sha256[:12]} of round {each.round} was never acknowledged and can count no more: "
            f"it is dropped, for the outbox holds {MAX_OUTBOX} at most"
        )
        for each in old
    )
    drops = tuple(DropUpdate(each.update.sha256) for each in old if each.update.sha256 not in kept)
    return state.remembering(outbox=left), (*logs, *drops)


def shelved(state: AgentState, ref: BlobRef) -> Outcome:
    """An update lies in the outbox under its content's name: offer it."""
    entries = [trained for trained in state.memory.outbox if trained.update.sha256 == ref.sha256]
    if not entries:
        return state, (DropUpdate(ref.sha256),)
    if state.stage == "shelving" and state.offered in entries:
        state = state.to("offered")
    return state, tuple(Say(entry) for entry in entries)


def not_shelved(state: AgentState, sha256: str | None, reason: str) -> Outcome:
    """An update cannot be kept or sent (`sha256` is None before it had a name): its round is lost, and said so."""
    log, task = Log(f"an update cannot be kept in the outbox: {reason}"), state.task
    if sha256 is None:
        if state.stage != "shelving" or not isinstance(task, TrainTask):
            return state, (log,)
        failed = _lost(task.run, task.round, reason)
        return finish(state, task, failed), (Say(failed), log)
    lost = [trained for trained in state.memory.outbox if trained.update.sha256 == sha256]
    if not lost:
        return state, (log,)
    if state.offered in lost:
        state = state.to("finished")
    # Should the same task come again, it is answered with this, and worked on anew in a newer attempt.
    failures = [_lost(trained.run, trained.round, reason) for trained in lost]
    done = {
        key: (*results[:-1], failures[lost.index(results[-1])]) if results[-1] in lost else results
        for key, results in state.memory.done.items()
    }
    state = state.remembering(outbox=tuple(each for each in state.memory.outbox if each not in lost), done=done)
    return state, (DropUpdate(sha256), *map(Say, failures), log)


def _lost(run: str, round_: int, reason: str) -> Failed:
    message = f"the update cannot be kept on this agent's disk: {reason}"[:4000]
    return Failed(run=run, round=round_, kind="internal", message=message)


def acknowledged(state: AgentState, ack: Ack) -> Outcome:
    """The coordinator has taken an update, or never will."""
    outbox, name = state.memory.outbox, f"update {ack.sha256[:12]} of round {ack.round}"
    settled = [
        each for each in outbox if (each.run, each.round, each.update.sha256) == (ack.run, ack.round, ack.sha256)
    ]
    if not settled:
        if not ack.accepted:  # taken at first, it differed too much from the others' when the round was closed
            return state, (Log(f"{name} is refused, and is not in the outbox any more: {ack.reason}"),)
        return state, (Log(f"{name} was acknowledged, and no such update is in the outbox: nothing to do"),)
    if state.offered in settled:
        state = state.to("finished") if ack.accepted else state.empty_handed()
    left = tuple(each for each in outbox if each not in settled)
    state = state.remembering(outbox=left)
    dropped = () if any(each.update.sha256 == ack.sha256 for each in left) else (DropUpdate(ack.sha256),)
    if ack.accepted:
        return state, (*dropped, Log(f"{name} was taken"))
    # The update is gone: should the same task come again, it must be worked on anew.
    done = {key: results for key, results in state.memory.done.items() if results[-1] not in settled}
    return state.remembering(done=done), (*dropped, Log(f"{name} was not taken: {ack.reason}"))
