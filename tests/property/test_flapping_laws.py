"""Whenever enough agents are there, a round begins within the grace, whatever the others do."""

from hypothesis import given, settings
from hypothesis import strategies as st
from run_support import Drive, finish, training

from fedpipe_coordinator.runs.membership import OFFLINE_GRACE_S
from fedpipe_coordinator.runs.resume import resume
from fedpipe_coordinator.runs.run_events import AgentOffline, AgentOnline, MakePlans, Ticked

STEADY = ("s1", "s2")
FLAPPING = ("f1", "f2", "f3")
STEP_S = 4.0


def _planning(*, restarted: bool) -> Drive:
    """A run that begins its second round with one agent lost; after a restart, with all lost but the steady ones."""
    drive = training(*STEADY, *FLAPPING, number=3, min_agents=len(STEADY))
    for name in (*STEADY, *FLAPPING):
        finish(drive, name)
    if not restarted:
        drive(AgentOffline(FLAPPING[0]))
    drive.aggregate()
    if restarted:
        drive.state, _ = resume(drive.state, drive.now)
        for name in STEADY:
            drive(AgentOnline(name, f"{name}-1"))
    assert drive.phase == "planning"
    return drive


@settings(max_examples=100, deadline=None)
@given(
    comings=st.lists(st.tuples(st.sampled_from(FLAPPING), st.booleans(), st.floats(0.0, STEP_S)), max_size=60),
    restarted=st.booleans(),
)
def test_a_round_begins_within_the_grace_while_enough_agents_are_there(
    comings: list[tuple[str, bool, float]], *, restarted: bool
) -> None:
    drive = _planning(restarted=restarted)
    began = drive.now
    for name, there, after_s in comings:
        if len(drive.all(MakePlans)) > 1:
            break
        # Somebody is always away, and was lost a moment ago.
        drive(AgentOnline(name, f"{name}-1") if there else AgentOffline(name), after_s)
        assert drive.now - began <= OFFLINE_GRACE_S + STEP_S
    else:
        drive(Ticked(), after_s=OFFLINE_GRACE_S + 1.0)
    assert drive.all(MakePlans)[-1].round == 2
    assert set(STEADY) <= set(drive.all(MakePlans)[-1].agents)
