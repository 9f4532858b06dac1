"""What happens within a round: planning, training, collecting, aggregating, and the evaluation of the last adapter.

Part of the pure machine of `run_machine.py`. A round ends when every planned agent has settled or the deadline has
passed; it never waits for an agent whose update is not on its way.
"""

from fedpipe_coordinator.metrics import combine_metrics, metrics_data, metrics_text
from fedpipe_coordinator.planning_machine import begin_planning, on_planned
from fedpipe_coordinator.run_events import (
    Aggregate,
    Aggregated,
    BroadcastAdapter,
    Export,
    Fetch,
    Planned,
    SaveRound,
    Send,
    UpdateRejected,
    UpdateStored,
)
from fedpipe_coordinator.run_state import SETTLED, Member, RoundResult, RunState
from fedpipe_coordinator.step import Step
from fedpipe_coordinator.tasks import ask_again
from fedpipe_wire.messages import (
    Ack,
    Evaluated,
    Failed,
    Trained,
)

DEADLINE_GRACE = 1.25
DEADLINE_GRACE_S = 20.0
EVALUATION_GRACE_S = 300.0
MEMORY_BACKOFF = 0.8
MAX_MISSED_ROUNDS = 3
MAX_MEASUREMENTS = 16


# --- collecting -------------------------------------------------------------------------------------------------


def on_report(work: Step, member: Member, message: Evaluated | Trained) -> None:
    """An agent evaluated the adapter of this round, or finished training it."""
    state = work.state
    if isinstance(message, Evaluated):
        if message.round == state.round and state.phase == "training":
            work.put(member.model_copy(update={"evaluated": message.metrics}))
            work.note(
                "evaluated",
                metrics_text(member.name, message.metrics),
                agent=member.name,
                data=metrics_data(message.metrics),
            )
        elif message.round == state.round + 1 and state.phase == "evaluating":
            work.put(member.model_copy(update={"evaluated": message.metrics, "standing": "answered"}))
            work.note(
                "evaluated",
                metrics_text(member.name, message.metrics),
                agent=member.name,
                data=metrics_data(message.metrics),
            )
        return
    if message.round != state.round or state.phase != "training":
        reason = f"round {message.round} is over, the run is at round {state.round} ({state.phase})"
        work.note("late", f"{member.name}: {reason}; its update is dropped", agent=member.name)
        work.do(
            Send(
                member.name,
                Ack(
                    run=state.run,
                    round=message.round,
                    sha256=message.update.sha256,
                    accepted=False,
                    reason=reason,
                ),
            )
        )
        return
    if member.standing == "accepted" and member.trained is not None:
        work.do(
            Send(
                member.name,
                Ack(
                    run=state.run,
                    round=state.round,
                    sha256=member.trained.update.sha256,
                    accepted=True,
                ),
            )
        )
        return
    measurements = (*member.measurements, message.measurement)[-MAX_MEASUREMENTS:]
    work.put(member.model_copy(update={"trained": message, "standing": "offered", "measurements": measurements}))
    work.note(
        "trained",
        f"{member.name} trained {message.examples} examples, loss {message.train_loss:.3f}",
        agent=member.name,
    )
    work.do(Fetch(member.name, message.round, message.update))


def on_failed(work: Step, member: Member, failure: Failed) -> None:
    """An agent failed. One that ran out of memory is planned smaller from now on."""
    update: dict[str, object] = {"standing": "failed", "note": failure.message}
    if failure.kind == "out-of-memory" and member.plan is not None:
        cap = int(MEMORY_BACKOFF * member.plan.predicted.peak_bytes)
        update["memory_cap_bytes"] = min(cap, member.memory_cap_bytes or cap)
    work.put(member.model_copy(update=update))
    text = f"{member.name} failed ({failure.kind}): {failure.message}"
    if failure.kind == "out-of-memory":
        text += "; it is planned smaller next round"
    work.note(
        "failed",
        text,
        agent=member.name,
        data={"kind": failure.kind, "peak_bytes": failure.peak_bytes},
    )


def on_work(work: Step, event: UpdateStored | UpdateRejected | Planned | Aggregated) -> None:
    """Something that the service was asked for is done."""
    match event:
        case Planned():
            on_planned(work, event)
        case UpdateStored():
            _stored(work, event)
        case UpdateRejected():
            _rejected(work, event)
        case Aggregated():
            _aggregated(work, event)


def _stored(work: Step, event: UpdateStored) -> None:
    member = work.state.members.get(event.agent)
    if member is None or event.round != work.state.round or work.state.phase != "training":
        return
    work.put(member.model_copy(update={"standing": "accepted", "round_s": work.now - work.state.phase_began}))
    work.note(
        "accepted",
        f"{event.agent}'s update {event.sha256[:12]} is stored",
        agent=event.agent,
        data={"sha256": event.sha256},
    )
    work.do(
        Send(
            event.agent,
            Ack(run=work.state.run, round=event.round, sha256=event.sha256, accepted=True),
        )
    )


def _rejected(work: Step, event: UpdateRejected) -> None:
    member = work.state.members.get(event.agent)
    if member is None or event.round != work.state.round or work.state.phase != "training":
        return
    work.put(member.model_copy(update={"standing": "failed", "note": event.reason}))
    work.note("rejected", f"{event.agent}'s update is not taken: {event.reason}", agent=event.agent)
    work.do(
        Send(
            event.agent,
            Ack(
                run=work.state.run,
                round=event.round,
                sha256=event.sha256,
                accepted=False,
                reason=event.reason[:1000],
            ),
        )
    )


def finish_training(work: Step) -> None:
    """Aggregate when every planned agent has settled, or when the deadline and its grace have passed."""
    state = work.state
    if work.now - state.phase_began > state.deadline_s * DEADLINE_GRACE + DEADLINE_GRACE_S:
        for member in work.members():
            if member.standing == "asked":
                text = f"{member.name} sent no update by the deadline of {state.deadline_s:.0f} s: going on without it"
                work.put(member.model_copy(update={"standing": "gone", "note": text}))
                work.note("gone", text, agent=member.name)
    if any(member.standing not in SETTLED for member in work.state.members.values()):
        return
    accepted = {
        m.name: m.trained.update.sha256 for m in work.members() if m.standing == "accepted" and m.trained is not None
    }
    _close_previous(work)
    if len(accepted) >= 1 and len(accepted) >= min(state.job.rounds.min_agents, _planned_count(state)):
        work.update(missed=0)
        work.to("aggregating")
        work.do(Aggregate(state.round, accepted))
        return
    work.update(missed=state.missed + 1)
    text = f"round {state.round} has {len(accepted)} updates, rounds.min_agents is {state.job.rounds.min_agents}"
    if work.state.missed >= MAX_MISSED_ROUNDS:
        notes = "; ".join(member.note for member in work.members() if member.note)
        work.fail(f"{text}, {MAX_MISSED_ROUNDS} times in a row. Reported: {notes or 'nothing'}")
        return
    work.note("round-repeated", f"{text}: it is planned again")
    begin_planning(work, state.round)


def _planned_count(state: RunState) -> int:
    return sum(1 for member in state.members.values() if member.plan is not None and member.plan.round == state.round)


def _close_previous(work: Step) -> None:
    """With this round's evaluations the previous round's metric is known: write its record."""
    metric = combine_metrics([m.evaluated for m in work.members() if m.evaluated is not None])
    if work.state.round == 1:
        if work.state.initial_metric is None:
            work.update(initial_metric=metric)
            work.note("initial-metric", metrics_text("before training", metric), data=metrics_data(metric))
    elif work.state.pending is not None:
        work.do(SaveRound(work.state.pending, metric))
        work.update(pending=None)


def _aggregated(work: Step, event: Aggregated) -> None:
    state = work.state
    if state.phase != "aggregating" or event.round != state.round:
        return
    result = RoundResult(
        round=state.round,
        wall_s=work.now - state.round_began,
        deadline_s=state.deadline_s,
        truncation_tail=event.truncation_tail,
        members=tuple(work.members()),
    )
    work.update(adapter=event.adapter, pending=result)
    taken = sum(1 for member in result.members if member.standing == "accepted")
    work.note(
        "aggregated",
        f"round {state.round}/{state.job.rounds.number}: {taken} updates aggregated, "
        f"{event.truncation_tail:.2%} lost by truncation",
        data={"sha256": event.adapter.sha256, "truncation_tail": event.truncation_tail},
    )
    if state.round < state.job.rounds.number:
        begin_planning(work, state.round + 1)
        return
    work.to("evaluating")
    work.do(BroadcastAdapter(event.adapter, state.round + 1))
    for member in work.members():
        if member.plan is None:
            continue
        standing = "asked" if member.online else "gone"
        work.put(member.model_copy(update={"standing": standing, "evaluated": None}))
        ask_again(work, member.name)


def finish_evaluating(work: Step) -> None:
    """Export when every agent that trained has evaluated the last adapter, or is not waited for any more."""
    state = work.state
    late = work.now - state.phase_began > EVALUATION_GRACE_S
    if any(member.standing == "asked" for member in state.members.values()) and not late:
        return
    metric = combine_metrics([m.evaluated for m in work.members() if m.evaluated is not None])
    if state.pending is not None:
        work.do(SaveRound(state.pending, metric))
    work.update(final_metric=metric, pending=None)
    work.to("exporting")
    work.do(Export())
