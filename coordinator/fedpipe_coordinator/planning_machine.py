"""How a round begins: who takes part, when plans are asked for, and what becomes of them.

Part of the pure machine of `run_machine.py`.
"""

import hashlib
import math

from fedpipe_coordinator.membership import is_lost
from fedpipe_coordinator.run_events import BroadcastAdapter, MakePlans, Planned
from fedpipe_coordinator.run_state import RunState
from fedpipe_coordinator.step import Step
from fedpipe_coordinator.tasks import ask_again


def begin_planning(work: Step, round_: int) -> None:
    """Go to the planning of a round; the plans are asked for as soon as enough agents are there."""
    work.update(round=round_)
    work.to("planning")
    wait_for_agents(work)


def wait_for_agents(work: Step) -> None:
    """Ask for plans once `min_agents` are online and scored; give up after `rounds.wait_s`.

    Who was lost a moment ago is waited for until the grace is over: after a restart of the coordinator all are, and a
    round must not begin with those alone that were heard first.
    """
    state = work.state
    scored = [member for member in work.members() if member.contribution is not None]
    if state.planning_asked or any(not member.online and not is_lost(member, work.now) for member in scored):
        return
    ready = [member.name for member in scored if member.online]
    if len(ready) >= state.job.rounds.min_agents:
        work.update(planning_asked=True)
        work.do(MakePlans(state.round, draw_agents(state, ready)))
    elif work.now - state.phase_began > state.job.rounds.wait_s:
        work.fail(
            f"round {state.round} cannot begin: {len(ready)} agents are online, "
            f"rounds.min_agents is {state.job.rounds.min_agents}. Start the missing agents and run the job again",
            nobody_came=True,
        )


def draw_agents(state: RunState, ready: list[str]) -> tuple[str, ...]:
    """The agents of a round: a share `rounds.fraction` of those that are ready, drawn by (seed, round, name)."""
    count = max(state.job.rounds.min_agents, math.ceil(state.job.rounds.fraction * len(ready)))

    def lot(name: str) -> bytes:
        return hashlib.sha256(f"{state.job.job.seed}/{state.round}/{name}".encode()).digest()

    return tuple(sorted(sorted(ready, key=lot)[:count]))


def on_planned(work: Step, event: Planned) -> None:
    """The plans are made: broadcast the adapter and give every agent its task."""
    if work.state.phase != "planning" or event.round != work.state.round:
        return
    if len(event.plans) < min(work.state.job.rounds.min_agents, len(event.plans) + len(event.none)):
        reasons = "; ".join(f"{name}: {none.reason}" for name, none in sorted(event.none.items()))
        work.fail(
            f"{len(event.plans)} agents can carry a plan, {work.state.job.rounds.min_agents} are needed. {reasons}"
        )
        return
    work.update(
        planning_asked=False,
        deadline_s=event.deadline_s,
        adapter=event.adapter,
        round_began=work.now,
    )
    work.to("training")
    for member in work.members():
        name = member.name
        plan, none = event.plans.get(name), event.none.get(name)
        out = member.contribution is None and member.standing in ("refused", "failed")
        work.put(
            member.model_copy(
                update={
                    "plan": plan or member.plan,
                    "no_plan": none,
                    "standing": "asked" if plan else (member.standing if out else "idle"),
                    "note": none.reason if none else (member.note if out else ""),
                    "evaluated": None,
                    "trained": None,
                    "round_s": None,
                }
            )
        )
    work.note(
        "planned",
        f"round {event.round}: {len(event.plans)} plans, deadline {event.deadline_s:.0f} s",
        data={
            "deadline_s": event.deadline_s,
            "plans": {
                name: plan.model_dump(mode="json", exclude={"components"}) | {"ranks": plan.ranks}
                for name, plan in event.plans.items()
            },
            "none": {name: none.model_dump(mode="json") for name, none in event.none.items()},
        },
    )
    work.do(BroadcastAdapter(event.adapter, event.round))
    for name in sorted({*event.plans, *event.none}):
        ask_again(work, name)
