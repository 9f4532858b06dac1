"""Updates that were acknowledged, and that this coordinator's disk has lost before they were aggregated.

Part of the pure machine of `run_machine.py`. Each is asked for again: its agent may not have heard the acknowledgement,
and hold it still. What does not come is told aloud, for it breaks the promise that the acknowledgement was.
"""

from fedpipe_coordinator.runs.run_events import Damaged, Fetch, UpdateDelayed, UpdateRejected, UpdateStored
from fedpipe_coordinator.runs.run_state import Member, RunState
from fedpipe_coordinator.runs.step import Step
from fedpipe_coordinator.runs.telling import decline, described
from fedpipe_wire.agent_messages import Trained


def on_damaged(work: Step, event: Damaged) -> bool:
    """Ask again for what can come again; whether nothing is awaited."""
    work.update(missing=event.updates)
    for name, sha256 in event.updates:
        trained = trained_of(work.state.members[name], sha256)
        if trained is not None:
            text = (
                f"{name}'s update {sha256[:12]} was acknowledged, and is damaged or gone on this disk: it is asked for "
                "again. Look after the disk"
            )
            work.note("damaged", text, agent=name, data={"sha256": sha256})
            work.do(Fetch(name, trained.round, trained.update))
    for name, sha256 in event.useless:
        _lose(work, name, sha256, "the adapter that it was trained from is damaged or gone on this disk")
    return not work.state.missing


def is_missing(state: RunState, event: UpdateStored | UpdateRejected | UpdateDelayed) -> bool:
    """Whether an outcome is of an update that is asked for again."""
    return state.phase == "aggregating" and (event.agent, event.sha256) in state.missing


def on_outcome(work: Step, event: UpdateStored | UpdateRejected | UpdateDelayed) -> bool:
    """It came again, or it did not; whether nothing is awaited any more."""
    work.update(missing=tuple(each for each in work.state.missing if each != (event.agent, event.sha256)))
    if isinstance(event, UpdateStored):
        member = work.state.members[event.agent]
        trained = trained_of(member, event.sha256)
        data = {} if trained is None else described(member, trained.update)
        text = f"{event.agent}'s update {event.sha256[:12]} is stored again"
        work.note("accepted", text, agent=event.agent, data=data)
    else:
        _lose(work, event.agent, event.sha256, event.reason)
    return not work.state.missing


def _lose(work: Step, name: str, sha256: str, why: str) -> None:
    member = work.state.members[name]
    trained = trained_of(member, sha256)
    if trained is None:
        return
    text = f"{name}'s update {sha256[:12]} of round {trained.round} was acknowledged and is lost by this disk: {why}"
    taken = tuple(each for each in member.taken if each != sha256)
    update: dict[str, object] = {"taken": taken, "delivered": min(member.delivered, trained.round - 1)}
    if member.trained is trained:
        update |= {"standing": "gone", "note": text}
    else:
        update |= {"late": tuple(entry for entry in member.late if entry.trained is not trained)}
    work.put(member.model_copy(update=update))
    work.note("update-lost", text, agent=name, data={"sha256": sha256, "round": trained.round})
    decline(work, name, trained, text)


def trained_of(member: Member, sha256: str) -> Trained | None:
    """What an agent said of one of the updates that an aggregation uses."""
    if member.standing == "accepted" and member.trained is not None and member.trained.update.sha256 == sha256:
        return member.trained
    entries = [entry for entry in member.late if entry.stored and entry.trained.update.sha256 == sha256]
    return entries[0].trained if entries else None
