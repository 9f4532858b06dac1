"""A run after a restart of the coordinator: taken up where it was, with the agents that were there."""

from run_support import Drive, finish, name_of, ref, tasks, trained, training

from fedpipe_coordinator.resume import resume
from fedpipe_coordinator.run_events import (
    AgentOnline,
    Aggregate,
    BroadcastAdapter,
    Export,
    MakePlans,
    StopAsked,
    Ticked,
)
from fedpipe_wire.messages import EvaluateTask, TrainTask


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
