"""The run as a pure machine: `(state, event, now) -> (state, actions)`.

Order of a run: every agent is surveyed, then scores its weights, then rounds of planning, training and aggregating
follow, then the last adapter is evaluated and exported. An agent may join, leave and return at any time; no decision
depends on an agent's clock. `round_machine.py` owns what happens within a round.
"""

from fedpipe_coordinator import membership, planning_machine, round_machine
from fedpipe_coordinator.run_events import (
    AgentOffline,
    AgentOnline,
    Aggregated,
    Exported,
    Heard,
    Planned,
    RunAction,
    RunEvent,
    Send,
    StopAsked,
    Ticked,
    UpdateRejected,
    UpdateStored,
    WorkFailed,
)
from fedpipe_coordinator.run_state import OPEN_PHASES, RunState
from fedpipe_coordinator.step import Step
from fedpipe_coordinator.tasks import SCORE_GRACE_S, score_task
from fedpipe_profiles.contribution import average_contributions
from fedpipe_wire.messages import (
    EndTask,
    Evaluated,
    Failed,
    Refused,
    Scored,
    Survey,
    Trained,
)


def step(state: RunState, event: RunEvent, now: float) -> tuple[RunState, tuple[RunAction, ...]]:
    """What a run becomes by an event, and what is to be done.

    Args:
        state: The run as it is.
        event: What happened.
        now: Monotonic seconds of the coordinator's clock.
    """
    work = Step(state, now)
    if state.phase not in OPEN_PHASES:
        _after_the_end(work, event)
        return work.result()
    _dispatch(work, event)
    if work.state.open:
        _move_on(work)
    return work.result()


def _dispatch(work: Step, event: RunEvent) -> None:
    match event:
        case Ticked():
            membership.drop_the_lost(work)
        case AgentOnline():
            membership.agent_online(work, event)
        case AgentOffline():
            membership.agent_offline(work, event.agent)
        case Heard():
            _heard(work, event)
        case UpdateStored() | UpdateRejected() | Planned() | Aggregated():
            round_machine.on_work(work, event)
        case Exported():
            work.to("done")
            work.note("run-done", "the run is done", data={"paths": event.paths})
            work.end_all("the run is done")
        case WorkFailed():
            work.fail(f"{event.work}: {event.reason}")
        case StopAsked():
            work.to("stopped")
            work.note("run-stopped", "the run was stopped on request")
            work.end_all("the run was stopped")


def _after_the_end(work: Step, event: RunEvent) -> None:
    """An agent that comes back to a run that is over is told so; nothing else can matter any more."""
    if isinstance(event, AgentOnline) and event.agent in work.state.members:
        work.do(Send(event.agent, EndTask(run=work.state.run, reason=f"the run is {work.state.phase}")))


# --- agents come and go -----------------------------------------------------------------------------------------


# --- what agents report -----------------------------------------------------------------------------------------


def _heard(work: Step, event: Heard) -> None:
    member = work.state.members.get(event.agent)
    if member is None:
        return
    match event.message:
        case Survey():
            membership.on_surveyed(work, member, event.message)
        case Scored():
            membership.on_scored(work, member, event.message)
        case Refused():
            work.put(member.model_copy(update={"standing": "refused", "note": event.message.reason}))
            work.note("refused", f"{member.name} refuses: {event.message.reason}", agent=member.name)
        case Failed():
            round_machine.on_failed(work, member, event.message)
        case Evaluated() | Trained():
            round_machine.on_report(work, member, event.message)


# --- going on ---------------------------------------------------------------------------------------------------


def _move_on(work: Step) -> None:
    match work.state.phase:
        case "surveying":
            _finish_surveying(work)
        case "scoring":
            _finish_scoring(work)
        case "planning":
            planning_machine.wait_for_agents(work)
        case "training":
            round_machine.finish_training(work)
        case "evaluating":
            round_machine.finish_evaluating(work)
        case _:
            pass


def _finish_surveying(work: Step) -> None:
    state = work.state
    answered = [member for member in state.members.values() if member.survey is not None]
    waiting = any(member.standing == "asked" for member in state.members.values())
    late = work.now - state.phase_began > state.job.rounds.wait_s
    if len(answered) < state.job.rounds.min_agents:
        if late:
            work.fail(_too_few(state, len(answered)))
        return
    if waiting and not late:
        return
    _choose_base(work)
    labels = state.job.data.labels or tuple(
        sorted({label for member in work.state.members.values() if member.survey for label in member.survey.labels})
    )
    if state.job.job.task == "sequence-classification" and len(labels) < 2:  # noqa: PLR2004  # one class is no task
        work.fail(
            f"classification needs at least 2 labels, the silos have {len(labels)}: look at data.labels and fields"
        )
        return
    work.update(labels=labels)
    work.to("scoring")
    for member in work.members():
        if member.survey is not None:
            work.put(member.model_copy(update={"standing": "asked"}))
            work.do(Send(member.name, score_task(work.state)))


def _choose_base(work: Step) -> None:
    """The base model that most agents hold is the run's; the others are told which one that is."""
    surveys = {member.name: member.survey for member in work.state.members.values() if member.survey is not None}
    prints = [survey.shape.fingerprint for survey in surveys.values()]
    chosen = max(sorted(set(prints)), key=prints.count)
    for name, survey in sorted(surveys.items()):
        if survey.shape.fingerprint != chosen:
            membership.exclude(
                work,
                work.state.members[name],
                membership.other_base(name, survey.shape.fingerprint, chosen),
            )
        elif work.state.shape is None:
            work.update(shape=survey.shape)


def _finish_scoring(work: Step) -> None:
    state = work.state
    late = work.now - state.phase_began > SCORE_GRACE_S
    if any(member.standing == "asked" for member in state.members.values()) and not late:
        return
    scored = [member for member in state.members.values() if member.contribution is not None]
    if len(scored) < state.job.rounds.min_agents:
        work.fail(_too_few(state, len(scored)))
        return
    try:
        curves = average_contributions([m.contribution for m in scored if m.contribution is not None])
    except ValueError as error:
        work.fail(str(error))
        return
    work.update(curves=curves)
    ranked = sorted(curves, key=lambda name: -curves[name][-1])
    work.note(
        "contributions",
        f"{len(curves)} weights scored by {len(scored)} agents; the most worth training: {', '.join(ranked[:3])}",
        data={"curves": curves},
    )
    planning_machine.begin_planning(work, 1)


def _too_few(state: RunState, count: int) -> str:
    notes = "; ".join(member.note for member in state.members.values() if member.note)
    return (
        f"{count} agents are ready and rounds.min_agents is {state.job.rounds.min_agents}. "
        f"Start more agents that map dataset {state.job.data.dataset!r}, or lower min_agents"
        + (f". Reported: {notes}" if notes else "")
    )
