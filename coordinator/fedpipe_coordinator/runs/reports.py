"""What agents report of a round, and what becomes of their updates.

Part of the pure machine of `run_machine.py`. A report counts only for what its agent was asked last: one of an older
round, or one that came before, changes nothing.
"""

from collections import Counter
from collections.abc import Sequence

from fedpipe_coordinator.metrics import metrics_data, metrics_text
from fedpipe_coordinator.runs import late, refreshing
from fedpipe_coordinator.runs.backoff import fell_short, ran_out
from fedpipe_coordinator.runs.refused_updates import was_refused
from fedpipe_coordinator.runs.run_events import Fetch, Report, StopFetch, UpdateDelayed, UpdateRejected, UpdateStored
from fedpipe_coordinator.runs.run_state import Member, RunState
from fedpipe_coordinator.runs.steadying import DOWNLINK, UPLINK
from fedpipe_coordinator.runs.step import Step
from fedpipe_coordinator.runs.telling import REPLACED, acknowledge, decline, described, offered, remember
from fedpipe_profiles.plan import StepMeasurement, TransferMeasurement
from fedpipe_profiles.values import MAX_SECONDS
from fedpipe_wire.agent_messages import Ahead, Evaluated, Failed, Refused, Scored, Survey, Trained

MAX_MEASUREMENTS = 16
MAX_TRANSFERS = 8
MAX_REPLACED = 4
_WORKING = ("asked", "offered", "gone")


def look_ahead(work: Step, name: str, message: Report) -> None:
    """Say it aloud when an agent speaks of a round that this run has not come to: the coordinator went back in time."""
    state = work.state
    if isinstance(message, Survey | Scored) or message.round <= state.ahead:
        return
    if message.round <= state.round and not isinstance(message, Ahead):
        return
    if isinstance(message, Evaluated | Refused | Failed) and message.round == state.round + 1:
        return  # of the last adapter
    work.update(ahead=message.round)
    text = (
        f"the coordinator has gone back in time: {name} has worked for round {message.round}, this run is at round "
        f"{state.round}. Its store was restored from a backup, or its disk lost what was written last. The run goes on "
        "from here; updates of later rounds are lost, acknowledged or not"
    )
    work.note("went-back", text, agent=name, data={"seen": message.round})


def on_evaluated(work: Step, member: Member, message: Evaluated) -> None:
    """An agent evaluated the adapter of this round; the first answer counts."""
    state = work.state
    training = state.phase == "training" and message.round == state.round and _is_planned(state, member)
    answers = training or (message.round == state.round + 1 and _asked_for(state, member, message.round))
    if not answers or member.evaluated is not None:
        return
    update: dict[str, object] = {"evaluated": message.metrics}
    if state.phase == "evaluating":
        update["standing"] = "answered"
    work.put(member.model_copy(update=update))
    text, data = metrics_text(member.name, message.metrics), metrics_data(message.metrics)
    work.note("evaluated", text, agent=member.name, data=data)


def on_trained(work: Step, member: Member, message: Trained) -> None:
    """An agent finished training; its update is fetched, unless it is not wanted, of which the agent is told."""
    message, measured = refreshing.without_curves(message)
    reason = _unwanted(work.state, member, message)
    if reason is not None and message.update.sha256 in member.taken:
        acknowledge(work, member.name, message.round, message.update.sha256)
        return
    if reason is not None and was_refused(member) and member.trained == message:
        decline(work, member.name, message, member.note)
        return
    if reason is not None:
        late.offer(work, member, message, reason)
        return
    if member.standing == "accepted":
        acknowledge(work, member.name, message.round, message.update.sha256)
        return
    if member.standing != "offered" or member.trained != message:
        replaced = _replaced(work, member, message)
        update: dict[str, object] = {"trained": message, "replaced": replaced, "standing": "offered"}
        update |= _measured(member, message) | _fell_short(member, message)
        work.put(member.model_copy(update=update | offered(work, member, message) | {"fetch_at": None}))
        text = f"{member.name} trained {message.examples} examples, loss {message.train_loss:.3f}"
        if "memory_cap_bytes" in update:
            text += f"; its plan did not fit: {'; '.join(message.actions) or 'it says no more'}"
        work.note("trained", text, agent=member.name, data={"actions": list(message.actions)})
        refreshing.on_refresh(work, member.name, measured)
    work.do(Fetch(member.name, message.round, message.update))


def _measured(member: Member, message: Trained) -> dict[str, object]:
    """What follows from the steps that were measured; those that are known already change nothing."""
    known = member.measurements
    if message.measurement in known[-1:]:
        return {}
    all_, speeds = (*known, message.measurement), member.steady.speeds_of(len(known))
    kept = _worth_keeping(all_)
    steady = member.steady.model_copy(update={"speeds": tuple((*speeds, 0.0)[at] for at in kept)})
    return {"measurements": tuple(all_[at] for at in kept), "steady": steady}


def _worth_keeping(measurements: Sequence[StepMeasurement]) -> list[int]:
    """Where those lie that are kept: of the kind of which there are most the oldest go first.

    Were it the oldest of all, a device that trains at few bits would forget what more of them need, and try again.
    """
    kinds = [(m.bits, m.gradient_checkpointing) for m in measurements]
    kept = list(range(len(measurements)))
    while len(kept) > MAX_MEASUREMENTS:
        counts = Counter(kinds[at] for at in kept)
        kept.remove(max(kept, key=lambda at: (counts[kinds[at]], -at)))
    return kept


def _fell_short(member: Member, message: Trained) -> dict[str, object]:
    """What follows from a plan that did not fit, though it was trained with less: once for each plan."""
    if member.plan is None or member.backoff.fresh or not fell_short(member.plan, message):
        return {}
    backoff, cap = ran_out(member.backoff, member.memory_cap_bytes, member.plan, message)
    return {"backoff": backoff, "memory_cap_bytes": cap}


def _replaced(work: Step, member: Member, message: Trained) -> tuple[Trained, ...]:
    """The updates of this round that `message` takes the place of; they are answered when the round is over."""
    former, replaced = member.trained, member.replaced
    if former is None or former.update == message.update:
        return replaced
    work.do(StopFetch(member.name, former.update.sha256))
    replaced = (*(each for each in replaced if each.update != message.update), former)
    for each in replaced[:-MAX_REPLACED]:
        decline(work, member.name, each, REPLACED)
    return replaced[-MAX_REPLACED:]


def _unwanted(state: RunState, member: Member, message: Trained) -> str | None:
    """Why an update is not taken, or None if it is."""
    if message.round > state.round:
        return f"round {message.round} is not known here any more, the run has gone back to round {state.round}"
    if state.phase != "training" or message.round != state.round:
        return f"round {message.round} is over, the run is at round {state.round} ({state.phase})"
    if member.standing == "accepted" and member.trained is not None:
        taken = member.trained.update.sha256
        return None if taken == message.update.sha256 else f"update {taken[:12]} of this round was taken before"
    if member.standing not in _WORKING or not _is_planned(state, member):
        return f"no update is awaited in round {state.round}, it stands as {member.standing}: {member.note}"[:1000]
    return None


def _is_planned(state: RunState, member: Member) -> bool:
    """Whether an agent has a plan for this round."""
    return member.plan is not None and member.plan.round == state.round and member.standing != "idle"


def on_refused(work: Step, member: Member, message: Refused) -> None:
    """An agent will not do what it was asked."""
    if not _asked_for(work.state, member, message.round):
        _too_late(work, member, message)
        return
    _offer_lapses(work, member, message.reason)
    work.put(member.model_copy(update={"standing": "refused", "note": message.reason}))
    work.note("refused", f"{member.name} refuses: {message.reason}", agent=member.name)


def on_failed(work: Step, member: Member, failure: Failed) -> None:
    """An agent failed. One that ran out of memory is planned smaller from now on."""
    if not _asked_for(work.state, member, failure.round):
        _too_late(work, member, failure)
        return
    _offer_lapses(work, member, failure.message)
    update: dict[str, object] = {"standing": "failed", "note": failure.message}
    if failure.kind == "out-of-memory" and failure.round > 0 and member.plan is not None:
        backoff, cap = ran_out(member.backoff, member.memory_cap_bytes, member.plan)
        update |= {"backoff": backoff, "memory_cap_bytes": cap}
    work.put(member.model_copy(update=update))
    text = f"{member.name} failed ({failure.kind}): {failure.message}"
    if "memory_cap_bytes" in update:
        text += "; it is planned smaller next round"
    work.note("failed", text, agent=member.name, data={"kind": failure.kind, "peak_bytes": failure.peak_bytes})


def _offer_lapses(work: Step, member: Member, said: str) -> None:
    """An agent gives a round up for which it had offered an update: it has lost it, or need not keep it."""
    if member.trained is not None and member.delivered < member.trained.round:
        work.do(StopFetch(member.name, member.trained.update.sha256))
        decline(work, member.name, member.trained, f"{member.name} gave the round up: {said}")


def _asked_for(state: RunState, member: Member, round_: int) -> bool:
    """Whether a report of `round_` (0: survey or scores) answers what this agent was asked last and still owes."""
    if round_ == 0:
        return member.contribution is None and member.standing not in ("refused", "failed")
    if state.phase == "training":
        return round_ == state.round and member.standing in _WORKING
    return state.phase == "evaluating" and round_ == state.round + 1 and member.standing in _WORKING


def _too_late(work: Step, member: Member, message: Refused | Failed) -> None:
    said = message.reason if isinstance(message, Refused) else message.message
    text = f"{member.name} says of round {message.round}, which it does not owe any more: {said}"
    work.note("late", text, agent=member.name)


def on_outcome(work: Step, event: UpdateStored | UpdateRejected | UpdateDelayed) -> None:
    """What became of an update that was to be fetched; one that nobody awaits any more changes nothing."""
    member = work.state.members.get(event.agent)
    if member is None:
        return
    if not _awaited(work.state, member, event):
        late.outcome(work, member, event)
        return
    match event:
        case UpdateStored():
            _stored(work, member, event)
        case UpdateRejected(reason=reason):
            work.put(member.model_copy(update={"standing": "failed", "note": reason}))
            if member.trained is not None:
                data = {**described(member, member.trained.update), "reason": reason}
                work.note("rejected", f"{event.agent}'s update is not taken: {reason}", agent=event.agent, data=data)
                decline(work, event.agent, member.trained, reason)
        case UpdateDelayed(reason=reason):
            # It is not declined: its agent keeps it, and it is asked for again while the round waits.
            work.put(member.model_copy(update={"fetch_at": work.now + late.FETCH_AGAIN_S, "note": reason}))
            work.note("delayed", f"{event.agent}'s update is asked for again later: {reason}", agent=event.agent)


def _stored(work: Step, member: Member, event: UpdateStored) -> None:
    round_s = work.now - work.state.phase_began
    update = {
        "standing": "accepted",
        "delivered": event.round,
        "round_s": round_s,
        "transfers": (*member.transfers, *_transfer(work.state, member, round_s))[-MAX_TRANSFERS:],
        "fetch_at": None,
        "note": "",
    }
    work.put(remember(member, event.sha256).model_copy(update=update))
    text = f"{event.agent}'s update {event.sha256[:12]} is stored"
    data = {} if member.trained is None else described(member, member.trained.update)
    work.note("accepted", text, agent=event.agent, data=data)
    acknowledge(work, event.agent, event.round, event.sha256)


def _transfer(state: RunState, member: Member, round_s: float) -> tuple[TransferMeasurement, ...]:
    """What this round's transfers took; nothing where the round was begun again meanwhile."""
    trained, plan = member.trained, member.plan
    if trained is None or plan is None or state.missed:
        return ()
    rest_s = round_s - trained.download_s - trained.compute_s
    return (
        TransferMeasurement(
            down_bytes=plan.predicted.down_bytes,
            down_s=trained.download_s,
            up_bytes=trained.update.size,
            up_s=min(MAX_SECONDS, max(0.0, rest_s)),
            downlink_bps=member.steady.heard(DOWNLINK),
            uplink_bps=member.steady.heard(UPLINK),
        ),
    )


def fetch_again(work: Step) -> None:
    """Ask for the updates whose transfer died a while ago."""
    for member in work.members():
        if member.fetch_at is None or work.now < member.fetch_at or not member.online:
            continue
        work.put(member.model_copy(update={"fetch_at": None}))
        if member.standing == "offered" and member.trained is not None:
            work.do(Fetch(member.name, member.trained.round, member.trained.update))
        late.fetch(work, member.name)


def _awaited(state: RunState, member: Member, event: UpdateStored | UpdateRejected | UpdateDelayed) -> bool:
    """Whether an outcome is of the update that this agent offered last, in this round."""
    return (
        state.phase == "training"
        and event.round == state.round
        and member.standing in ("offered", "gone")
        and member.trained is not None
        and member.trained.update.sha256 == event.sha256
    )
