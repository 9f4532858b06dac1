"""Many agents that come and go: a round begins when enough are there, however many were just lost."""

import pytest
from run_support import Drive, begin, finish, scored, survey, training

from fedpipe_coordinator.runs.membership import OFFLINE_GRACE_S
from fedpipe_coordinator.runs.resume import resume
from fedpipe_coordinator.runs.run_events import AgentOffline, AgentOnline, MakePlans, Ticked

NAMES = tuple(f"agent-{n:02}" for n in range(50))
STEADY = NAMES[:10]
HOLD_S = 2.0
"""How often one more of the flapping agents is lost, and the one before it is back."""


def _scored(**rounds: object) -> Drive:
    """All agents are scored, and the last score has not come yet."""
    drive = Drive(begin(**rounds))
    for name in NAMES:
        drive(AgentOnline(name, f"{name}-1"))
    for name in NAMES:
        drive.hear(name, survey())
    for name in NAMES[:-1]:
        drive.hear(name, scored())
    return drive


def _flap(drive: Drive, limit_s: float) -> float:
    """Agents come and go until plans are asked for; the seconds that it took."""
    began, asked = drive.now, len(drive.all(MakePlans))
    away = NAMES[-1]
    for turn in range(int(limit_s / HOLD_S)):
        if len(drive.all(MakePlans)) > asked:
            return drive.now - began
        back, away = away, NAMES[len(STEADY) + turn % (len(NAMES) - len(STEADY))]
        drive(AgentOffline(away), after_s=HOLD_S / 2)
        drive(AgentOnline(back, f"{back}-1"), after_s=HOLD_S / 2)
        drive(Ticked())
    pytest.fail(f"no plans were asked for in {limit_s} s")


def test_planning_begins_within_the_grace_while_agents_come_and_go() -> None:
    drive = _scored(min_agents=5)
    drive(AgentOffline(NAMES[-2]))
    drive.hear(NAMES[-1], scored())
    assert drive.phase == "planning"
    assert OFFLINE_GRACE_S <= _flap(drive, 100.0) <= OFFLINE_GRACE_S + HOLD_S
    assert set(STEADY) <= set(drive.all(MakePlans)[0].agents)


def test_the_next_round_does_not_wait_longer() -> None:
    drive = _scored(min_agents=5)
    drive.hear(NAMES[-1], scored())
    drive.plan()
    for name in NAMES:
        finish(drive, name)
    drive(AgentOffline(NAMES[-1]))
    drive.aggregate()
    assert _flap(drive, 100.0) <= OFFLINE_GRACE_S + HOLD_S


def test_after_a_restart_the_round_waits_for_those_who_were_there_and_no_longer() -> None:
    drive = _scored(min_agents=5)
    drive(AgentOffline(NAMES[-2]))
    drive.hear(NAMES[-1], scored())
    state, _ = resume(drive.state, 1000.0)
    again = Drive(state, 1000.0)
    for name in STEADY:
        again(AgentOnline(name, f"{name}-1"), after_s=0.1)
    assert not again.all(MakePlans)
    again(Ticked(), after_s=OFFLINE_GRACE_S - 2.0)
    assert not again.all(MakePlans)
    again(Ticked(), after_s=2.0)
    assert again.all(MakePlans) == [MakePlans(1, STEADY)]


def test_a_round_that_has_all_its_agents_waits_for_nobody() -> None:
    drive = training("a", "b", number=2)
    finish(drive, "a")
    finish(drive, "b")
    drive.aggregate()
    assert len(drive.all(MakePlans)) == 2
