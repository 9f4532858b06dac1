"""A run after a restart of the coordinator: taken up where it was, with the agents that were there."""

import pytest
from run_support import Drive, begin, finish, name_of, ref, tasks, trained, training

from fedpipe_coordinator.runs.membership import OFFLINE_GRACE_S
from fedpipe_coordinator.runs.resume import rebase, resume
from fedpipe_coordinator.runs.run_events import (
    AgentOnline,
    Aggregate,
    BroadcastAdapter,
    Export,
    MakePlans,
    StopAsked,
    Ticked,
    UpdateStored,
)
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_wire.coordinator_messages import EvaluateTask, TrainTask
from fedpipe_wire.moments import Moment


def test_a_restarted_coordinator_offers_the_adapter_and_takes_the_round_up() -> None:
    drive = training("a", "b")
    finish(drive, "b")
    drive.hear("a", trained("a", 1))
    state, actions = resume(drive.state, 1e6)
    adapter = drive.state.adapter
    assert adapter is not None
    assert actions == (BroadcastAdapter(adapter, 1),)
    again = Drive(state, 1e6)
    again(Ticked(), after_s=1)
    ((_, task),) = tasks(again(AgentOnline("a", "a-1")))
    assert isinstance(task, TrainTask)
    assert tasks(again(AgentOnline("b", "b-1"))) == []
    finish(again, "a")
    names = {agent: trained(agent, 1).update.sha256 for agent in ("a", "b")}
    assert again.all(Aggregate) == [Aggregate(1, names)]
    assert len(again.member("a").measurements) == 2


def test_a_restart_while_aggregating_aggregates_the_same_updates() -> None:
    drive = training("a", "b")
    finish(drive, "a")
    finish(drive, "b")
    (asked,) = drive.all(Aggregate)
    state, actions = resume(drive.state, 1e6)
    assert actions == (asked,)
    again = Drive(state, 1e6, list(actions))
    again.aggregate()
    assert not again.all(MakePlans)
    again(AgentOnline("a", "a-1"))
    assert not again.all(MakePlans)
    again(AgentOnline("b", "b-1"))
    assert again.all(MakePlans) == [MakePlans(2, ("a", "b"))]


def test_a_restart_while_planning_waits_for_all_that_were_there() -> None:
    drive = training("a", "b")
    finish(drive, "a")
    finish(drive, "b")
    drive.aggregate()
    state, _ = resume(drive.state, 1e6)
    again = Drive(state, 1e6)
    again(AgentOnline("b", "b-1"), after_s=1)
    again(AgentOnline("a", "a-1"), after_s=1)
    assert again.all(MakePlans) == [MakePlans(2, ("a", "b"))]


def test_what_was_aggregated_is_named_by_its_updates() -> None:
    drive = training("a")
    finish(drive, "a")
    start = drive.state.adapter
    drive.aggregate()
    assert start is not None
    updates = [("a", trained("a", 1).update.sha256)]
    assert drive.state.adapter == ref(name_of("adapter", start.sha256, updates))


def test_a_restart_while_evaluating_asks_for_the_last_adapters_metrics() -> None:
    drive = training("a", number=1)
    finish(drive, "a")
    drive.aggregate()
    state, actions = resume(drive.state, 1e6)
    assert drive.state.adapter is not None
    assert actions == (BroadcastAdapter(drive.state.adapter, 2),)
    ((_, task),) = tasks(Drive(state, 1e6)(AgentOnline("a", "a-1")))
    assert isinstance(task, EvaluateTask)


def test_a_restart_while_exporting_exports_again() -> None:
    drive = training("a", number=1)
    finish(drive, "a")
    drive.aggregate()
    drive(Ticked(), 1e4)
    assert drive.phase == "exporting"
    _, actions = resume(drive.state, 1e6)
    assert actions == (Export(),)


def test_a_run_that_is_over_stays_as_it_is() -> None:
    drive = training("a")
    drive(StopAsked())
    assert resume(drive.state, 1e6) == (drive.state, ())


# --- time -------------------------------------------------------------------------------------------------------

DAY = 86_400.0


def _after(drive: Drive, away_s: float, boot: str = "next") -> Drive:
    """The same run in another process, after the coordinator was away."""
    then = Moment("this", drive.now, 1e9)
    now = Moment(boot, drive.now + away_s if boot == "this" else 7.0, 1e9 + away_s)
    state = rebase(RunState.model_validate_json(drive.state.model_dump_json()), then, now)
    state, actions = resume(state, now.monotonic_s)
    return Drive(state, now.monotonic_s, list(actions))


@pytest.mark.parametrize("boot", ["this", "next"])
def test_a_round_lasts_as_long_as_it_did_also_while_the_coordinator_was_away(boot: str) -> None:
    drive = training("a", "b")
    drive.hear("a", trained("a", 1), after_s=30.0)
    again = _after(drive, 45.0, boot)
    for agent in ("a", "b"):
        again(AgentOnline(agent, f"{agent}-1"), after_s=1.0)
    again(UpdateStored("a", 1, trained("a", 1).update.sha256), after_s=3.0)
    finish(again, "b")
    again.aggregate()
    assert again.state.pending is not None
    assert again.state.pending.wall_s == pytest.approx(80.0)
    assert again.member("b").round_s == pytest.approx(80.0)


@pytest.mark.parametrize("boot", ["this", "next"])
def test_a_deadline_that_passed_meanwhile_leaves_the_grace_to_be_heard(boot: str) -> None:
    drive = training("a", "b")
    finish(drive, "a")
    again = _after(drive, DAY, boot)
    again(AgentOnline("b", "b-1"), after_s=1.0)
    again(Ticked(), after_s=OFFLINE_GRACE_S - 1.0)
    assert again.phase == "training"
    finish(again, "b")
    assert set(again.all(Aggregate)[-1].updates) == {"a", "b"}


def test_a_deadline_that_passed_meanwhile_passes_after_the_grace() -> None:
    drive = training("a", "b")
    finish(drive, "a")
    again = _after(drive, DAY)
    again(AgentOnline("b", "b-1"), after_s=1.0)
    again(Ticked(), after_s=OFFLINE_GRACE_S + 1.0)
    assert set(again.all(Aggregate)[-1].updates) == {"a"}


def test_a_deadline_that_has_not_passed_does_not_begin_anew() -> None:
    drive = training("a", "b")
    finish(drive, "a")
    drive(Ticked(), after_s=100.0)
    again = _after(drive, 5.0)  # of 145 s
    again(AgentOnline("b", "b-1"), after_s=1.0)
    again(Ticked(), after_s=38.0)
    assert again.phase == "training"
    again(Ticked(), after_s=2.0)
    assert again.phase == "aggregating"


def test_a_run_of_which_nobody_knows_when_it_was_stored_begins_its_phase_anew() -> None:
    drive = training("a", "b")
    now = Moment("next", 50.0, 1e9)
    state = rebase(drive.state, None, now)
    assert (state.phase_began, state.round_began) == (50.0, 50.0)


def test_a_run_that_waited_for_the_one_before_it_goes_on_waiting() -> None:
    waiting = begin()
    assert rebase(waiting, Moment("this", 10.0, 1e9), Moment("next", 5.0, 1e9 + DAY)).phase_began == 5.0


def test_the_times_of_a_run_that_is_over_are_left_as_they_are() -> None:
    drive = training("a")
    drive(StopAsked())
    assert rebase(drive.state, Moment("this", 10.0, 1e9), Moment("next", 5.0, 1e9)) is drive.state
