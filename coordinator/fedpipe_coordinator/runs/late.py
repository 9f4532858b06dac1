"""Updates that come after their round was closed: they count in the next round, with less weight.

Part of the pure machine of `run_machine.py`. A late update is checked against the plan of its own round, measured
against the adapter that it was trained from, and used by one aggregation at most. It never helps a round to its quorum.
"""

from fedpipe_coordinator.runs.run_events import Aggregate, Fetch, StopFetch, UpdateDelayed, UpdateRejected, UpdateStored
from fedpipe_coordinator.runs.run_state import LateShare, LateUpdate, Member, RunState
from fedpipe_coordinator.runs.step import Step
from fedpipe_coordinator.runs.telling import REPLACED, acknowledge, decline, described, offered, remember
from fedpipe_profiles.plan import Plan
from fedpipe_wire.agent_messages import Trained

FETCH_AGAIN_S = 30.0


def offer(work: Step, member: Member, message: Trained, reason: str) -> None:
    """An update came that the present round does not await: fetch it for the next aggregation, or say why not.

    Args:
        work: The step in the making.
        member: Whose update it is.
        message: What it said.
        reason: Why the update does not count in the present round.
    """
    plan = _plan_of(work.state, member, message)
    if isinstance(plan, str):
        why = f"{reason}; {plan}" if plan else reason
        work.note("late", f"{member.name}: {why}; its update is dropped", agent=member.name)
        decline(work, member.name, message, why)
        return
    known = _entry(member, message.update.sha256)
    if known is None:
        keep(work, member, message, plan)
    work.do(Fetch(member.name, message.round, message.update))


def keep(work: Step, member: Member, trained: Trained, plan: Plan) -> None:
    """Await an update for the next aggregation; another one of the same round that is on its way makes place."""
    state = work.state
    base = state.adapter if trained.round == state.round else state.former
    if base is None:
        raise ValueError(f"{member.name}: round {trained.round} was closed, and its adapter is not known")
    for former in member.late:
        if former.round == trained.round:
            _drop(work, work.state.members[member.name], former, REPLACED)
    entry = LateUpdate(round=trained.round, plan=plan, base=base, trained=trained)
    others = tuple(each for each in member.late if each.round != trained.round)
    work.put(member.model_copy(update={"late": (*others, entry)} | offered(work, member, trained)))
    text = f"{member.name}'s update of round {trained.round} comes after the round was closed: it counts in the next"
    work.note("late-offered", text, agent=member.name, data={"round": trained.round})


def _plan_of(state: RunState, member: Member, message: Trained) -> Plan | str:
    """The plan that a late update answers, or why it is not taken."""
    if message.round != state.closed_round or state.phase not in ("aggregating", "planning", "training"):
        return ""
    if not possible(state, message.round):
        return "rounds.late_weight is 0" if state.job.rounds.late_weight == 0 else "no round follows"
    plan = next((p for p in (member.plan, member.former_plan) if p is not None and p.round == message.round), None)
    if plan is None:
        return f"no update of {member.name} is awaited of it"
    if member.delivered >= message.round:
        return "another update of it was taken before"
    return plan


def possible(state: RunState, round_: int) -> bool:
    """Whether an update of a round that is closed, or is just being closed, can still count."""
    return state.job.rounds.late_weight > 0 and not (round_ == state.round and state.is_last_round)


def outcome(work: Step, member: Member, event: UpdateStored | UpdateRejected | UpdateDelayed) -> None:
    """What became of an update that is fetched, if it is a late one that is still awaited."""
    entry = _entry(member, event.sha256)
    if entry is None or entry.stored or entry.round != event.round:
        return
    match event:
        case UpdateStored():
            _stored(work, member, entry)
        case UpdateRejected(reason=reason):
            _drop(work, member, entry, reason)
            data = {**described(member, entry.trained.update), "reason": reason}
            work.note("rejected", f"{member.name}'s late update is not taken: {reason}", agent=member.name, data=data)
        case UpdateDelayed():
            work.put(member.model_copy(update={"fetch_at": work.now + FETCH_AGAIN_S}))


def _stored(work: Step, member: Member, entry: LateUpdate) -> None:
    stored = entry.model_copy(update={"stored": True})
    update = {
        "late": tuple(stored if each is entry else each for each in member.late),
        "delivered": max(member.delivered, entry.round),
    }
    work.put(remember(member, entry.trained.update.sha256).model_copy(update=update))
    pending = work.state.pending
    if pending is not None and pending.round == entry.round:
        members = tuple(shown_late(each, stored) if each.name == member.name else each for each in pending.members)
        work.update(pending=pending.model_copy(update={"members": members}))
    sha256, late_weight = entry.trained.update.sha256, work.state.job.rounds.late_weight
    text = f"{member.name}'s update {sha256[:12]} of round {entry.round} came late and is stored"
    data = {**described(member, entry.trained.update), "round": entry.round, "weight": late_weight}
    work.note("late-accepted", text, agent=member.name, data=data)
    acknowledge(work, member.name, entry.round, sha256)


def shown_late(member: Member, entry: LateUpdate) -> Member:
    """An agent's entry in the record of the round that was closed without its update."""
    note = "its update came after the round was closed, and counts in the next"
    return member.model_copy(update={"standing": "late", "trained": entry.trained, "note": note})


def fetch(work: Step, name: str) -> None:
    """Ask for the late updates of an agent that are still awaited."""
    for entry in work.state.members[name].late:
        if not entry.stored:
            work.do(Fetch(name, entry.round, entry.trained.update))


def usable(state: RunState) -> dict[str, LateUpdate]:
    """The late updates that this round's aggregation uses, by agent."""
    return {
        name: entry
        for name, member in sorted(state.members.items())
        for entry in member.late
        if entry.stored and entry.round == state.round - 1
    }


def aggregation(state: RunState) -> Aggregate:
    """What this round's aggregation is made of: the same whenever it is asked for."""
    accepted = {
        name: member.trained.update.sha256
        for name, member in sorted(state.members.items())
        if member.standing == "accepted" and member.trained is not None
    }
    late = {name: entry.trained.update.sha256 for name, entry in usable(state).items()}
    return Aggregate(state.round, accepted, late)


def close(work: Step) -> None:
    """The round is closed: late updates that are not here by now are out of date."""
    for member in work.members():
        for entry in member.late:
            if not entry.stored:
                reason = f"it did not arrive before round {work.state.round} was closed as well"
                _drop(work, work.state.members[member.name], entry, reason)
                work.note("late", f"{member.name}'s update of round {entry.round}: {reason}", agent=member.name)


def used(work: Step) -> tuple[LateShare, ...]:
    """The round is aggregated: forget the late updates that went into it, and tell them."""
    weight = work.state.job.rounds.late_weight
    found = usable(work.state)
    for name in found:
        member = work.state.members[name]
        left = tuple(entry for entry in member.late if entry.round >= work.state.round)
        work.put(member.model_copy(update={"late": left}))
    return tuple(
        LateShare(
            agent=name,
            round=entry.round,
            examples=entry.trained.examples,
            weight=weight,
            sha256=entry.trained.update.sha256,
        )
        for name, entry in found.items()
    )


def _drop(work: Step, member: Member, entry: LateUpdate, reason: str) -> None:
    work.put(member.model_copy(update={"late": tuple(each for each in member.late if each is not entry)}))
    work.do(StopFetch(member.name, entry.trained.update.sha256))
    decline(work, member.name, entry.trained, f"round {entry.round}: {reason}")


def _entry(member: Member, sha256: str) -> LateUpdate | None:
    return next((each for each in member.late if each.trained.update.sha256 == sha256), None)
