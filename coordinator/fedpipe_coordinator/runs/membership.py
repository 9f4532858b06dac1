"""Agents come, go, and say what they hold.

Part of the pure machine of `run_machine.py`. An agent that joins while a run is going on is surveyed and scored, and is
planned from the next round on.
"""

from fedpipe_coordinator.runs import late, refused_updates
from fedpipe_coordinator.runs.base_model import base_identity, block_problem, curve_problem
from fedpipe_coordinator.runs.message_room import labels_problem, model_problem
from fedpipe_coordinator.runs.run_events import AgentOnline, Send
from fedpipe_coordinator.runs.run_state import Member, RunState
from fedpipe_coordinator.runs.step import Step
from fedpipe_coordinator.runs.tasks import ask_again, score_task, survey_task
from fedpipe_profiles.contribution import Contribution
from fedpipe_wire.agent_messages import Scored, Survey
from fedpipe_wire.coordinator_messages import EndTask

OFFLINE_GRACE_S = 20.0


def agent_online(work: Step, event: AgentOnline) -> None:
    """An agent is there: new ones are surveyed, those that return get the task they owe."""
    name = event.agent
    member = work.state.members.get(name)
    if member is None:
        joined_late = work.state.phase != "surveying"
        work.put(Member(name=name, session=event.session, standing="idle" if joined_late else "asked"))
        work.note(
            "joined",
            f"{name} joined" + (" while the run was going on" if joined_late else ""),
            agent=name,
        )
        work.do(Send(name, survey_task(work.state)))
        return
    restarted = event.session != member.session
    update: dict[str, object] = {"online": True, "offline_since": None, "session": event.session}
    if restarted and member.contribution is None and member.standing in ("refused", "failed"):
        # its owner may have mended what kept it out
        standing = "asked" if work.state.phase == "surveying" else "idle"
        update |= {"standing": standing, "note": "", "survey": None}
    work.put(member.model_copy(update=update))
    if not member.online:
        work.note("returned", f"{name} is back", agent=name)
    refused_updates.tell_again(work, member)
    ask_again(work, name)
    late.fetch(work, name)


def agent_offline(work: Step, name: str) -> None:
    """The broker lost an agent; it is waited for until the grace is over."""
    member = work.state.members.get(name)
    if member is not None and member.online:
        work.put(member.model_copy(update={"online": False, "offline_since": work.now}))
        work.note("offline", f"{name} is offline", agent=name)


def is_lost(member: Member, now: float) -> bool:
    """Whether an agent is offline for longer than the grace."""
    return member.offline_since is not None and now - member.offline_since > OFFLINE_GRACE_S


def heard_since(state: RunState) -> float:
    """Since when agents could be heard in this phase: its beginning, or the restart of the coordinator in it."""
    return state.phase_began if state.resumed_at is None else max(state.phase_began, state.resumed_at)


def is_overdue(state: RunState, allowed_s: float, now: float) -> bool:
    """Whether a phase lasts longer than it may; agents get the grace to be heard in it, also after a restart."""
    return now - state.phase_began > allowed_s and (
        state.resumed_at is None or now - state.resumed_at > OFFLINE_GRACE_S
    )


def drop_the_lost(work: Step) -> None:
    """Who is offline for longer than the grace is not waited for any more in this phase."""
    for member in work.members():
        if member.standing in ("asked", "offered") and is_lost(member, work.now):
            text = f"{member.name} is offline since {OFFLINE_GRACE_S:.0f} s: going on without it"
            work.put(member.model_copy(update={"standing": "gone", "note": text}))
            work.note("gone", text, agent=member.name)


def on_surveyed(work: Step, member: Member, survey: Survey) -> None:
    """An agent says what it holds; one that cannot belong to this run is told why."""
    if member.survey is not None or member.standing == "refused":  # who was left out was told why, once
        return
    problem = (
        labels_problem(survey.labels, "it has")
        or model_problem(survey.shape, work.state.job)
        or block_problem(survey.shape)
    )
    if problem is not None:
        exclude(work, member, f"{member.name} cannot take part: {problem}")
        return
    labels = work.state.job.data.labels or (work.state.labels if work.state.phase != "surveying" else ())
    unknown = sorted(set(survey.labels) - set(labels)) if labels else []
    if unknown:
        exclude(
            work,
            member,
            f"{member.name} has labels that this run does not know: {', '.join(map(repr, unknown[:5]))}; "
            f"the run's labels are {', '.join(map(repr, labels[:20]))}. List all labels under data.labels of the job",
        )
        return
    ours = work.state.shape
    if ours is not None and base_identity(survey.shape, len(survey.labels)) != base_identity(
        ours, len(work.state.labels)
    ):
        exclude(work, member, other_base(member.name, survey.shape.fingerprint, ours.fingerprint))
        return
    if work.state.phase == "surveying":
        work.put(member.model_copy(update={"survey": survey, "standing": "answered"}))
    else:
        work.put(member.model_copy(update={"survey": survey}))
        work.do(Send(member.name, score_task(work.state)))
    work.note(
        "surveyed",
        f"{member.name} has {survey.train_examples} examples to train on and {survey.held_out_examples} held out",
        agent=member.name,
    )


def on_scored(work: Step, member: Member, scored: Scored) -> None:
    """An agent's contributions and first measurements are in."""
    shape = work.state.shape
    if member.contribution is not None or member.survey is None or shape is None:
        return
    problem = curve_problem(scored.contribution, shape, work.state.job.adapter.rank_ladder[-1])
    if problem is not None:
        exclude(work, member, f"{member.name} cannot be planned: {problem}")
        return
    contribution = _as_asked(work.state, member.survey, scored.contribution)
    update: dict[str, object] = {"contribution": contribution, "measurements": scored.measurements}
    if work.state.phase == "scoring":
        update["standing"] = "answered"
    work.put(member.model_copy(update=update))
    work.note(
        "scored",
        f"{member.name} scored {len(contribution.curves)} weights on {contribution.examples} examples",
        agent=member.name,
    )


def _as_asked(state: RunState, survey: Survey, said: Contribution) -> Contribution:
    """Curves weigh by no more examples than the task asked for and the agent has, whatever it says."""
    task = score_task(state)
    most = min(survey.train_examples, task.batches * max(task.terms.batch_sizes))
    return said.model_copy(update={"examples": min(said.examples, most)})


def exclude(work: Step, member: Member, reason: str) -> None:
    """Leave an agent out of the run, and say why."""
    work.put(member.model_copy(update={"standing": "refused", "note": reason, "survey": None}))
    work.note("excluded", reason, agent=member.name)
    work.do(Send(member.name, EndTask(run=work.state.run, reason=reason[:1000])))


def leave_out(work: Step, name: str, reason: str) -> None:
    """Go on without an agent whose words cannot be worked with; an update of it that was acknowledged still counts."""
    member = work.state.members.get(name)
    if member is None:
        return
    member = member.model_copy(update={"contribution": None, "evaluated": None, "measurements": ()})
    if member.standing == "accepted":
        work.put(member.model_copy(update={"survey": None, "note": reason}))
        work.note("excluded", reason, agent=name)
        return
    exclude(work, member, reason)


def other_base(name: str, theirs: str, ours: str) -> str:
    """Why an agent with other base files cannot take part."""
    differ = (
        f"{theirs[:12]}, the run works on {ours[:12]}" if theirs != ours else "of another shape than it should have"
    )
    return (
        f"{name} holds another base model ({differ}): give it the same files, by [models] in its agent.toml if need be"
    )
