"""A run after the coordinator was away: which work is asked for again.

Pure. Agents are taken for offline until they say otherwise; each gets the task that it owes as soon as it is heard.
"""

from fedpipe_coordinator.late import aggregation
from fedpipe_coordinator.run_events import BroadcastAdapter, Export, RunAction
from fedpipe_coordinator.run_state import RunState


def resume(state: RunState, now: float) -> tuple[RunState, tuple[RunAction, ...]]:
    """Take up a stored run.

    Args:
        state: As it was stored.
        now: Monotonic seconds of this process; those in the state were of another one.
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
            "phase_began": now,
            "round_began": now,
            "began": now,
            "work_at": None,
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
