"""What happens within a round: planning, training, collecting, aggregating, and the evaluation of the last adapter.

Part of the pure machine of `run_machine.py`. A round ends when every planned agent has settled or the deadline has
passed; it never waits for an agent whose update is not on its way.
"""

from fedpipe_coordinator.metrics import combine_metrics, metrics_data, metrics_text
from fedpipe_coordinator.runs import late, lost_updates, membership, refused_updates, reports
from fedpipe_coordinator.runs.planning_machine import begin_planning, on_planned
from fedpipe_coordinator.runs.run_events import (
    AdapterChecked,
    Aggregated,
    BroadcastAdapter,
    Damaged,
    Export,
    Exported,
    Planned,
    SaveRound,
    UpdateDelayed,
    UpdateRejected,
    UpdatesRefused,
    UpdateStored,
)
from fedpipe_coordinator.runs.run_state import SETTLED, LateShare, Member, RoundResult, RunState
from fedpipe_coordinator.runs.step import Step
from fedpipe_coordinator.runs.tasks import ask_again
from fedpipe_coordinator.runs.telling import REPLACED, decline
from fedpipe_wire.message_values import Metrics

DEADLINE_GRACE = 1.25
DEADLINE_GRACE_S = 20.0
EVALUATION_GRACE_S = 300.0
MIN_ATTEMPTS = 3
"""A round is not given up before, and after `rounds.wait_s` since the first of them failed."""
PAUSES_S = (10.0, 30.0, 60.0)
"""Before the second attempt, the third, and each one after it."""


def on_work(work: Step, event: AdapterChecked | Planned | Aggregated | UpdatesRefused | Damaged | Exported) -> None:
    """Something that the service was asked for is done, or cannot be."""
    match event:
        case AdapterChecked(ref, round_):
            if work.state.adapter == ref and work.state.phase in ("training", "evaluating"):
                work.do(BroadcastAdapter(ref, round_))
        case Planned():
            on_planned(work, event)
        case Aggregated():
            _aggregated(work, event)
        case UpdatesRefused():
            if work.state.phase == "aggregating" and event.round == work.state.round:
                refused_updates.on_refused(work, event)
                _aggregate_again(work, complete=True)
        case Damaged():
            if work.state.phase == "aggregating" and event.round == work.state.round:
                _aggregate_again(work, complete=lost_updates.on_damaged(work, event))
        case Exported(paths, files):
            if work.state.phase == "exporting":
                work.update(note="", work_at=None)
                work.note("exported", f"{len(files)} files were exported", data={"files": files})
                work.to("done")
                work.note("run-done", "the run is done", data={"paths": paths})
                work.end_all("the run is done")


def on_outcome(work: Step, event: UpdateStored | UpdateRejected | UpdateDelayed) -> None:
    """What became of an update that was to be fetched."""
    if lost_updates.is_missing(work.state, event):
        _aggregate_again(work, complete=lost_updates.on_outcome(work, event))
    else:
        reports.on_outcome(work, event)


def finish_training(work: Step) -> None:
    """Aggregate when every planned agent has settled, or when the deadline and its grace have passed."""
    state = work.state
    if membership.is_overdue(state, state.deadline_s * DEADLINE_GRACE + DEADLINE_GRACE_S, work.now):
        for member in work.members():
            # A transfer that moves is waited for, one that died is not.
            if member.standing == "asked" or (member.standing == "offered" and member.fetch_at is not None):
                text = f"{member.name} sent no update by the deadline of {state.deadline_s:.0f} s: going on without it"
                work.put(member.model_copy(update={"standing": "gone", "note": text}))
                work.note("gone", text, agent=member.name)
    if any(member.standing not in SETTLED for member in work.state.members.values()):
        return
    accepted = late.aggregation(work.state).updates
    _close_previous(work)
    if _enough(state, len(accepted)):
        late.close(work)
        _leave_the_rest(work, closed=True)
        work.update(missed=0, missed_since=None, pause_s=0.0)
        work.to("aggregating")
        work.do(late.aggregation(work.state))
        return
    _leave_the_rest(work, closed=False)
    repeat(work, len(accepted))


def _aggregate_again(work: Step, *, complete: bool) -> None:
    """Aggregate what is left of a round's updates, once none is awaited; those lost or refused may leave too few."""
    if not complete:
        return
    action = late.aggregation(work.state)
    if _enough(work.state, len(action.updates)):
        work.do(action)
    else:
        repeat(work, len(action.updates))


def _enough(state: RunState, updates: int) -> bool:
    """Whether so many updates make a round."""
    return updates >= max(1, min(state.job.rounds.min_agents, _planned_count(state)))


def repeat(work: Step, updates: int) -> None:
    """A round has too few updates: plan it again after a pause, or give up.

    What fails at once would fail again at once, and most of it passes: a full disk, hours in which nothing is lent.
    """
    state = work.state
    missed, since = state.missed + 1, work.now if state.missed_since is None else state.missed_since
    left_s = state.job.rounds.wait_s - (work.now - since)
    text = f"round {state.round} has {updates} updates, rounds.min_agents is {state.job.rounds.min_agents}"
    if missed >= MIN_ATTEMPTS and left_s <= 0:
        work.fail(f"{text}, {missed} times in a row. Reported: {work.reported() or 'nothing'}")
        return
    pause_s = max(0.0, min(PAUSES_S[min(missed, len(PAUSES_S)) - 1], left_s))
    text += f": it is planned again in {pause_s:.0f} s"
    work.update(missed=missed, missed_since=since, pause_s=pause_s, note=text)
    work.note("round-repeated", text, data={"attempt": missed, "pause_s": pause_s})
    begin_planning(work, state.round)


def _leave_the_rest(work: Step, *, closed: bool) -> None:
    """Who left while its update was on its way may bring it late, or learns that the round went on without it.

    So does who offered another update in its place: which of the two it holds is known only now.
    """
    for member in work.members():
        for former in member.replaced:
            decline(work, member.name, former, REPLACED)
        if member.replaced:
            work.put(member.model_copy(update={"replaced": ()}))
    for member in work.members():
        if member.standing != "gone" or member.trained is None or member.plan is None:
            continue
        if closed and late.possible(work.state, work.state.round):
            late.keep(work, member, member.trained, member.plan)
            continue
        reason = f"round {work.state.round} went on without it: {member.note}"
        decline(work, member.name, member.trained, reason)


def _planned_count(state: RunState) -> int:
    return sum(1 for member in state.members.values() if member.plan is not None and member.plan.round == state.round)


def _close_previous(work: Step) -> None:
    """With this round's evaluations the previous round's metric is known: write its record."""
    metric = combine_metrics([m.evaluated for m in work.members() if m.evaluated is not None])
    if work.state.round == 1:
        if work.state.initial_metric is None:
            work.update(initial_metric=metric)
            _judge(work, metric)
            work.note("initial-metric", metrics_text("before training", metric), data=metrics_data(metric))
    elif work.state.pending is not None:
        work.do(SaveRound(work.state.pending, metric))
        work.update(pending=None)
        _judge(work, metric)


def _judge(work: Step, metric: Metrics | None) -> None:
    """Count the rounds in a row whose adapter has no lower loss than the best before it."""
    if metric is None:
        return
    best = work.state.best_loss
    if best is None or metric.loss < best:
        work.update(best_loss=metric.loss, stale_rounds=0)
    else:
        work.update(stale_rounds=work.state.stale_rounds + 1)


def _aggregated(work: Step, event: Aggregated) -> None:
    state = work.state
    if state.phase != "aggregating" or event.round != state.round:
        return
    _note_aggregated(work, event, late.used(work))
    if not state.is_last_round:
        begin_planning(work, state.round + 1)
        return
    if state.round < state.job.rounds.number:
        text = f"no better loss than {state.best_loss:.4f} for {state.stale_rounds} rounds"
        work.note("stopped-early", f"{text}: round {state.round} is the last")
    work.to("evaluating")
    work.do(BroadcastAdapter(event.adapter, state.round + 1))
    for member in work.members():
        if member.plan is None:
            continue
        standing = "gone" if membership.is_lost(member, work.now) else "asked"
        work.put(member.model_copy(update={"standing": standing, "evaluated": None}))
        if member.online:
            ask_again(work, member.name)


def _note_aggregated(work: Step, event: Aggregated, shares: tuple[LateShare, ...]) -> None:
    """The new adapter is the run's; the round's record waits for its metric."""
    state = work.state
    result = RoundResult(
        round=state.round,
        wall_s=work.now - state.round_began,
        deadline_s=state.deadline_s,
        truncation_tail=event.truncation_tail,
        members=tuple(map(_as_recorded, work.members())),
        late=shares,
    )
    work.update(adapter=event.adapter, former=state.adapter, pending=result, note="", work_at=None)
    taken = sum(1 for member in result.members if member.standing == "accepted")
    work.note(
        "aggregated",
        f"round {state.round}/{state.job.rounds.number}: {taken} updates aggregated"
        + (f", and {len(shares)} of the round before" if shares else "")
        + f", {event.truncation_tail:.2%} lost by truncation"
        + (f"; {event.said}" if event.said else ""),
        data={"sha256": event.adapter.sha256, "truncation_tail": event.truncation_tail} | event.treatment,
    )


def _as_recorded(member: Member) -> Member:
    """An agent's entry for the round's record, without what only the next round needs."""
    shown = member.model_copy(update={"late": (), "former_plan": None})
    came = next((each for each in member.late if each.stored), None)
    return shown if came is None else late.shown_late(shown, came)


def finish_evaluating(work: Step) -> None:
    """Export when every agent that trained has evaluated the last adapter, or is not waited for any more."""
    state = work.state
    late = membership.is_overdue(state, EVALUATION_GRACE_S, work.now)
    if any(member.standing == "asked" for member in state.members.values()) and not late:
        return
    metric = combine_metrics([m.evaluated for m in work.members() if m.evaluated is not None])
    if state.pending is not None:
        work.do(SaveRound(state.pending, metric))
    work.update(final_metric=metric, pending=None)
    work.to("exporting")
    work.do(Export())
