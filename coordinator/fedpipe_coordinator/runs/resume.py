"""A run after the coordinator was away: what its times mean now, and which work is asked for again.

Pure. Agents are taken for offline until they say otherwise; each gets the task that it owes as soon as it is heard.
The time that the coordinator was away counts, but no deadline passes before agents had the grace to be heard.
"""

from fedpipe_coordinator.runs.late import aggregation
from fedpipe_coordinator.runs.run_events import BroadcastAdapter, Export, RunAction
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_wire.moments import Moment, rebased

_TIMES = ("phase_began", "round_began", "missed_since")
"""What of a run's times lies in the past; the rest is set anew by `resume`."""


def rebase(state: RunState, then: Moment | None, now: Moment, epoch: int = 0) -> RunState:
    """A stored run, its times in the monotonic seconds of this process.

    Args:
        state: As it was stored.
        then: When it was stored; None where an earlier version did not write that down: its phase then begins anew.
        now: This moment.
        epoch: Of this start of the coordinator.
    """
    if not state.open:
        return state
    state = state.model_copy(update={"epoch": max(epoch, state.epoch)})
    if then is None or not state.members:  # who waited for the run before it, or for agents, goes on waiting
        return state.model_copy(update=dict.fromkeys(_known(state), now.monotonic_s))
    return state.model_copy(update={name: rebased(at_s, then, now) for name, at_s in _known(state).items()})


def _known(state: RunState) -> dict[str, float]:
    """The times that a run has."""
    times = {name: getattr(state, name) for name in _TIMES}
    return {name: at_s for name, at_s in times.items() if at_s is not None}


def resume(state: RunState, now: float) -> tuple[RunState, tuple[RunAction, ...]]:
    """Take up a stored run.

    Args:
        state: As `rebase` gives it.
        now: Monotonic seconds of this process.
    """
    if not state.open:
        return state, ()
    members = {
        name: member.model_copy(
            update={
                "online": False,
                "offline_since": now,
                "fetch_at": None,
            }
        )
        for name, member in state.members.items()
    }
    fresh = state.model_copy(
        update={
            "members": members,
            "planning_asked": False,
            "resumed_at": now,
            "work_at": None,
            "missing": (),
            "note": "",
        }
    )
    if state.phase == "aggregating":
        return fresh, (aggregation(fresh),)
    if state.phase == "exporting":
        return fresh, (Export(),)
    if state.phase in ("training", "evaluating") and state.adapter is not None:
        # agents may still be fetching it, and nobody but this process can send it
        return fresh, (BroadcastAdapter(state.adapter, state.round + (state.phase == "evaluating")),)
    return fresh, ()
