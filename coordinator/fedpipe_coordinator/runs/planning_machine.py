"""How a round begins: who takes part, when plans are asked for, and what becomes of them.

Part of the pure machine of `run_machine.py`.
"""

import hashlib
import math
from dataclasses import fields
from typing import Any

from fedpipe_coordinator.runs import refreshing
from fedpipe_coordinator.runs.membership import OFFLINE_GRACE_S, heard_since, is_lost, is_overdue
from fedpipe_coordinator.runs.plan_changes import plan_change
from fedpipe_coordinator.runs.run_events import BroadcastAdapter, MakePlans, Planned
from fedpipe_coordinator.runs.run_state import Member, RunState
from fedpipe_coordinator.runs.step import Step
from fedpipe_coordinator.runs.tasks import ask_again
from fedpipe_profiles.plan import Plan


def begin_planning(work: Step, round_: int) -> None:
    """Go to the planning of a round; the plans are asked for as soon as enough agents are there."""
    refreshing.follow(work)
    work.update(round=round_)
    work.to("planning")
    wait_for_agents(work)


def wait_for_agents(work: Step) -> None:
    """Ask for plans once `min_agents` are online and scored; give up after `rounds.wait_s`, and a pause before it.

    Who was lost a moment ago is waited for: after a restart of the coordinator all are, and a round must not begin with
    those alone that were heard first. But no longer than the grace, counted once for all: of many agents that come and
    go, some were lost a moment ago at any time.
    """
    state = work.state
    delivered = sum(_delivered(member, state.round) for member in work.members())
    scored = [m for m in work.members() if m.contribution is not None and not _delivered(m, state.round)]
    if state.planning_asked or work.now - state.phase_began < state.pause_s:
        return
    patient = work.now - heard_since(state) <= OFFLINE_GRACE_S
    if patient and any(not member.online and not is_lost(member, work.now) for member in scored):
        return
    ready = [member.name for member in scored if member.online]
    if ready and len(ready) + delivered >= state.job.rounds.min_agents:
        work.update(planning_asked=True)
        work.do(MakePlans(state.round, draw_agents(state, ready, delivered)))
    elif is_overdue(state, state.pause_s + state.job.rounds.wait_s, work.now):
        work.fail(
            f"round {state.round} cannot begin: {len(ready) + delivered} agents are online, "
            f"rounds.min_agents is {state.job.rounds.min_agents}. Start the missing agents and run the job again",
            nobody_came=True,
        )


def _delivered(member: Member, round_: int) -> bool:
    """Whether an agent's update of a round that is planned again is here already: it counts, and is not asked anew."""
    return member.standing == "accepted" and member.delivered == round_


def draw_agents(state: RunState, ready: list[str], delivered: int = 0) -> tuple[str, ...]:
    """The agents of a round: a share `rounds.fraction` of those that are ready, drawn by (seed, round, name).

    `delivered` is how many agents have done the round already, in an attempt that lacked others.
    """
    share = math.ceil(state.job.rounds.fraction * (len(ready) + delivered))
    count = max(1, max(state.job.rounds.min_agents, share) - delivered)

    def lot(name: str) -> bytes:
        return hashlib.sha256(f"{state.job.job.seed}/{state.round}/{name}".encode()).digest()

    return tuple(sorted(sorted(ready, key=lot)[:count]))


def on_planned(work: Step, event: Planned) -> None:
    """The plans are made: broadcast the adapter and give every agent its task."""
    if work.state.phase != "planning" or event.round != work.state.round:
        return
    delivered = sum(_delivered(member, event.round) for member in work.members())
    carrying = len(event.plans) + delivered
    if carrying < min(work.state.job.rounds.min_agents, carrying + len(event.none)):
        reasons = "; ".join(f"{name}: {none.reason}" for name, none in sorted(event.none.items()))
        work.fail(f"{carrying} agents can carry a plan, {work.state.job.rounds.min_agents} are needed. {reasons}")
        return
    work.update(
        planning_asked=False,
        work_at=None,
        note="",
        deadline_s=event.deadline_s,
        adapter=event.adapter,
        round_began=work.now,
    )
    work.to("training")
    changes = _changes(work, event)
    for member in work.members():
        if not _delivered(member, event.round):
            work.put(_in_new_round(member, event, "" if member.name not in changes else changes[member.name][0]))
    for name, (text, data) in changes.items():
        work.note("replanned", f"{name}: {text}", agent=name, data=data)
    work.note(
        "planned",
        f"round {event.round}: {len(event.plans)} plans, deadline {event.deadline_s:.0f} s",
        data={
            "deadline_s": event.deadline_s,
            "plans": {
                name: plan.model_dump(mode="json", exclude={"components"})
                | {"ranks": plan.ranks, "sha256": hashlib.sha256(plan.model_dump_json().encode()).hexdigest()}
                for name, plan in event.plans.items()
            },
            "none": {name: none.model_dump(mode="json") for name, none in event.none.items()},
        },
    )
    work.do(BroadcastAdapter(event.adapter, event.round))
    for name in sorted({*event.plans, *event.none}):
        ask_again(work, name)


def _changes(work: Step, event: Planned) -> dict[str, tuple[str, dict[str, Any]]]:
    """By agent, how its plan differs from the one that it had, where it does."""
    found = {}
    for member in work.members():
        plan = event.plans.get(member.name) or event.none.get(member.name)
        recalled = event.recalled.get(member.name)
        if plan is None or recalled is None:
            continue
        change = plan_change(member.no_plan or member.plan, plan, recalled.because)
        if change is not None:
            found[member.name] = change
    return found


def _in_new_round(member: Member, event: Planned, replanned: str) -> Member:
    """An agent's entry when a round begins, with its plan, or the reason for none."""
    plan, none = event.plans.get(member.name), event.none.get(member.name)
    out = member.contribution is None and member.standing in ("refused", "failed")
    recalled = event.recalled.get(member.name)
    kept: dict[str, object] = {}
    if recalled is not None:
        kept = {field.name: getattr(recalled, field.name) for field in fields(recalled) if field.name != "because"}
    return member.model_copy(
        update=kept
        | {
            "replanned": replanned,
            "plan": plan or member.plan,
            "former_plan": _former_plan(member, event.round - 1),
            "no_plan": none,
            "standing": "asked" if plan else (member.standing if out else "idle"),
            "note": none.reason if none else (member.note if out else ""),
            "evaluated": None,
            "delivered": min(member.delivered, event.round - 1),  # what it brought for this round was refused
            "trained": None,
            "round_s": None,
            "fetch_at": member.fetch_at if member.late else None,
        }
    )


def _former_plan(member: Member, round_: int) -> Plan | None:
    """The plan by which an agent may still bring an update of the round that was closed last."""
    if member.plan is not None and member.plan.round == round_:
        return None if member.delivered == round_ else member.plan
    kept = member.former_plan
    return kept if kept is not None and kept.round == round_ else None
