"""The run as a pure machine: `(state, event, now) -> (state, actions)`.

Order of a run: every agent is surveyed, then scores its weights, then rounds of planning, training and aggregating
follow, then the last adapter is evaluated and exported. An agent may join, leave and return at any time; no decision
depends on an agent's clock. `round_machine.py` owns what happens within a round.
"""

from collections.abc import Sequence

from fedpipe_coordinator.config import MIN_LABELS
from fedpipe_coordinator.runs import late, membership, planning_machine, reports, round_machine
from fedpipe_coordinator.runs.base_model import base_identity, commonest_base, commonest_block, with_labels
from fedpipe_coordinator.runs.message_room import labels_problem
from fedpipe_coordinator.runs.run_events import (
    AdapterChecked,
    AgentOffline,
    AgentOnline,
    Aggregated,
    BroadcastAdapter,
    Damaged,
    Export,
    Exported,
    Heard,
    Planned,
    RunAction,
    RunEvent,
    Send,
    StopAsked,
    Ticked,
    Unfit,
    UpdateDelayed,
    UpdateRejected,
    UpdatesRefused,
    UpdateStored,
    WorkDelayed,
    WorkFailed,
)
from fedpipe_coordinator.runs.run_state import OPEN_PHASES, Member, RunState
from fedpipe_coordinator.runs.step import Step
from fedpipe_coordinator.runs.tasks import SCORE_GRACE_S, score_task
from fedpipe_profiles.contribution import average_contributions
from fedpipe_wire.agent_messages import Ahead, Evaluated, Failed, Refused, Scored, Survey, Trained
from fedpipe_wire.coordinator_messages import EndTask

MAX_LABELS = 10_000
"""As many as a task may name."""
WORK_AGAIN_S = 30.0
"""How long work that lacks disk space waits."""


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
            reports.fetch_again(work)
            _work_again(work)
        case AgentOnline():
            membership.agent_online(work, event)
        case AgentOffline():
            membership.agent_offline(work, event.agent)
        case Heard():
            work.heard = (event.agent, event.message_id) if event.message_id else None
            _heard(work, event)
            work.heard = None
        case Unfit():
            membership.leave_out(work, event.agent, event.reason)
        case UpdateStored() | UpdateRejected() | UpdateDelayed():
            round_machine.on_outcome(work, event)
        case AdapterChecked() | Planned() | Aggregated() | UpdatesRefused() | Damaged() | Exported():
            round_machine.on_work(work, event)
        case WorkFailed():
            work.fail(f"{event.work}: {event.reason}")
        case WorkDelayed():
            _put_off(work, event)
        case StopAsked():
            work.close("stopped", "run-stopped", "the run was stopped on request", "the run was stopped")


def _put_off(work: Step, event: WorkDelayed) -> None:
    """The phase's work lacks disk space: the run waits, and says so once."""
    if event.work != work.state.phase:
        return
    text = f"{event.work} waits: {event.reason}"
    if not work.state.note.startswith(f"{event.work} waits: "):  # the reason holds the free bytes, which change
        work.note("work-delayed", text)
    work.update(work_at=work.now + WORK_AGAIN_S, note=text)


def _work_again(work: Step) -> None:
    """Ask again for work that was put off."""
    state = work.state
    if state.work_at is None or work.now < state.work_at:
        return
    work.update(work_at=None, planning_asked=False)
    if state.phase == "aggregating":
        work.do(late.aggregation(state))
    elif state.phase == "exporting":
        work.do(Export())
    elif state.phase in ("training", "evaluating") and state.adapter is not None:
        work.do(BroadcastAdapter(state.adapter, state.round + (state.phase == "evaluating")))


def _after_the_end(work: Step, event: RunEvent) -> None:
    """An agent that comes back to a run that is over is told so; nothing else can matter any more."""
    reason = f"the run is {work.state.phase}"
    match event:
        case AgentOnline() if event.agent in work.state.members:
            work.do(Send(event.agent, EndTask(run=work.state.run, reason=reason)))
        case Heard(message=Trained() as trained) if event.agent in work.state.members:
            reports.on_trained(work, work.state.members[event.agent], trained)
        case _:
            pass


# --- what agents report -----------------------------------------------------------------------------------------


def _heard(work: Step, event: Heard) -> None:
    member = work.state.members.get(event.agent)
    if member is None:
        return
    reports.look_ahead(work, event.agent, event.message)
    member = work.state.members[event.agent]
    match event.message:
        case Survey():
            membership.on_surveyed(work, member, event.message)
        case Scored():
            membership.on_scored(work, member, event.message)
        case Refused():
            reports.on_refused(work, member, event.message)
        case Failed():
            reports.on_failed(work, member, event.message)
        case Evaluated():
            reports.on_evaluated(work, member, event.message)
        case Trained():
            reports.on_trained(work, member, event.message)
        case Ahead():
            pass


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
    late = membership.is_overdue(state, state.job.rounds.wait_s, work.now)
    if len(answered) < state.job.rounds.min_agents:
        # `wait_s` is for agents to come: where enough came and too few can work, waiting would help nobody.
        unfit = sum(member.standing in ("refused", "failed") for member in state.members.values())
        if late or (not waiting and len(answered) + unfit >= state.job.rounds.min_agents):
            work.fail(_too_few(work, len(answered)), nobody_came=not work.reported())
        return
    if waiting and not late:
        return
    _choose_base(work)
    fit = [member for member in work.members() if member.survey is not None]
    if len(fit) < state.job.rounds.min_agents:
        work.fail(_too_few(work, len(fit)))
        return
    if _settle_labels(work, fit):
        work.to("scoring")
        _ask_for_scores(work)


def _choose_base(work: Step) -> None:
    """The base model that most agents hold is the run's; the others are told which one that is."""
    fit = [(member, member.survey) for member in work.members() if member.survey is not None]
    chosen = commonest_base([survey for _, survey in fit])
    ours = next(s.shape.fingerprint for _, s in fit if base_identity(s.shape, len(s.labels)) == chosen)
    for member, survey in fit:
        if base_identity(survey.shape, len(survey.labels)) != chosen:
            membership.exclude(work, member, membership.other_base(member.name, survey.shape.fingerprint, ours))


def _settle_labels(work: Step, fit: Sequence[Member]) -> bool:
    """Settle the run's labels and, with them, its model's shape; False where the run failed for its labels."""
    state = work.state
    surveys = [member.survey for member in fit if member.survey is not None]
    labels = state.job.data.labels or tuple(sorted({label for survey in surveys for label in survey.labels}))
    if state.job.job.task == "sequence-classification" and not MIN_LABELS <= len(labels) <= MAX_LABELS:
        work.fail(
            f"classification needs {MIN_LABELS} to {MAX_LABELS} labels, the silos have {len(labels)}: "
            "look at data.labels and fields"
        )
        return False
    problem = labels_problem(labels, "the run has")
    if problem is not None:
        work.fail(problem)
        return False
    # A silo may lack some labels: its head is smaller than the run's.
    shape = with_labels(surveys[0].shape, len(surveys[0].labels), len(labels))
    block = commonest_block([survey.shape for survey in surveys])
    work.update(labels=labels, shape=shape.model_copy(update={"block": block}))
    return True


def _ask_for_scores(work: Step) -> None:
    for member in work.members():
        if member.survey is not None:
            work.put(member.model_copy(update={"standing": "asked"}))
            work.do(Send(member.name, score_task(work.state)))
        elif member.standing == "asked":
            note = f"{member.name} did not answer the survey within {work.state.job.rounds.wait_s:.0f} s"
            work.put(member.model_copy(update={"standing": "idle", "note": note}))


def _finish_scoring(work: Step) -> None:
    state = work.state
    late = membership.is_overdue(state, SCORE_GRACE_S, work.now)
    if any(member.standing == "asked" for member in state.members.values()) and not late:
        return
    scored = [member for member in work.members() if member.contribution is not None]
    if len(scored) < state.job.rounds.min_agents:
        work.fail(_too_few(work, len(scored)))
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


def _too_few(work: Step, count: int) -> str:
    job, reported = work.state.job, work.reported()
    return (
        f"{count} agents are ready and rounds.min_agents is {job.rounds.min_agents}. "
        f"Start more agents that map dataset {job.data.dataset!r}, or lower min_agents"
        + (f". Reported: {reported}" if reported else "")
    )
