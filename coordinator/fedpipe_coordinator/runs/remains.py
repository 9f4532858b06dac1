"""What is kept of a run that is over, and to whom it still matters.

Pure. A run that goes on carries every agent's plan, scores and measurements. Of one that is over only this is asked:
how it ended (`fedpipe status`, and its summary should that have to be written again), which updates were taken (an
agent that did not hear the acknowledgement offers its update again), and who took part (an agent that comes back is
told that the run is over). `fedpipe export` reads the run's folder. So this much is kept in memory and in the store,
from the moment that summary and report are written; a run that ended before this was so is cut down at the next start.
"""

from collections.abc import Iterable

from fedpipe_coordinator.runs.run_state import Member, RunState

TOLD_AGAIN = 4
"""Of so many runs that are over an agent is told when it comes back; it holds on to the last one at most."""


def remains(state: RunState) -> RunState:
    """What is kept of a run; of one that goes on, all. Applied twice it changes nothing more."""
    if state.open:
        return state
    members = {
        name: Member(
            name=name,
            online=False,
            standing=member.standing,
            taken=member.taken,
            delivered=member.delivered,
        )
        for name, member in state.members.items()
    }
    return state.model_copy(
        update={
            "members": members,
            "curves": {},
            "shape": None,
            "former": None,
            "pending": None,
            # One that was exported lies in the run's folder.
            "adapter": None if state.phase == "done" else state.adapter,
        }
    )


def still_told(runs: Iterable[RunState], agent: str) -> list[str]:
    """The runs whose end an agent may not have heard of, the latest that it took part in."""
    return [state.run for state in runs if not state.open and agent in state.members][-TOLD_AGAIN:]
