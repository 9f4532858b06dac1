"""Contributions that agents measured again after training, and the plan that follows them.

Part of the pure machine of `run_machine.py`. Such curves are checked as the first ones were, count once a round and for
half; nothing that is wrong with them costs an agent its update.
"""

from fedpipe_coordinator.runs.base_model import curve_problem
from fedpipe_coordinator.runs.step import Step
from fedpipe_coordinator.runs.tasks import refresh_due
from fedpipe_profiles.contribution import Contribution, average_contributions, moved_share, refreshed
from fedpipe_wire.agent_messages import Trained

TOLD = 3
"""How many of the weights whose share moved most are named."""


def without_curves(message: Trained) -> tuple[Trained, Contribution | None]:
    """A report of training apart from its curves: what is kept, compared and stored of it needs none."""
    if message.contribution is None:
        return message, None
    return message.model_copy(update={"contribution": None}), message.contribution


def on_refresh(work: Step, name: str, measured: Contribution | None) -> None:
    """Take an agent's new curves in, beside those that it had; the first of a round count."""
    state, member = work.state, work.state.members[name]
    if measured is None or member.refreshed >= state.round or member.contribution is None or state.shape is None:
        return
    adapter = state.job.adapter
    problem = (
        curve_problem(measured, state.shape, adapter.rank_ladder[-1], adapter.contribution)
        if refresh_due(state)
        else "it was not asked for"
    )
    if problem is not None:
        count = member.refused_refreshes + 1
        work.put(member.model_copy(update={"refreshed": state.round, "refused_refreshes": count}))
        text = f"{name}'s refreshed contribution is not used: {problem}"
        work.note("refresh-refused", text, agent=name, data={"refused": count})
        return
    curves = refreshed(member.contribution, measured)
    moved = _half_moved(member.contribution, curves)
    work.put(member.model_copy(update={"refreshed": state.round, "contribution": curves}))
    work.update(curves_moved=True)
    text = f"{name} scored its weights again on {measured.examples} examples: {moved:.1%} of its contribution moved"
    work.note("refreshed", text, agent=name, data={"examples": measured.examples, "moved": moved})


def _half_moved(before: Contribution, after: Contribution) -> float:
    return sum(abs(change) for change in moved_share(before.curves, after.curves).values()) / 2


def follow(work: Step) -> None:
    """Average the contributions anew if any moved, so that the next plan follows them."""
    state = work.state
    if not state.curves_moved:
        return
    known = [member.contribution for member in work.members() if member.contribution is not None]
    if not known:
        return
    curves = average_contributions(known)
    moved = moved_share(state.curves, curves)
    most = sorted(moved, key=lambda name: (-abs(moved[name]), name))[:TOLD]
    whole = sum(abs(change) for change in moved.values()) / 2
    work.update(curves=curves, curves_moved=False)
    work.note(
        "contributions",
        f"{whole:.1%} of the contribution moved, most of {', '.join(f'{n} ({moved[n]:+.1%})' for n in most)}",
        data={"curves": curves, "moved": moved},
    )
