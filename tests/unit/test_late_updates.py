"""Updates that come after their round was closed: used once, by the next round, with less weight; or declined."""

from typing import Any

import pytest
from run_support import Drive, evaluated, failed, finish, shape, trained, training

from fedpipe_coordinator.records.run_folder import round_record
from fedpipe_coordinator.runs.membership import OFFLINE_GRACE_S
from fedpipe_coordinator.runs.resume import resume
from fedpipe_coordinator.runs.run_events import (
    AgentOffline,
    AgentOnline,
    Aggregate,
    Fetch,
    RunAction,
    SaveRound,
    Send,
    StopFetch,
    Ticked,
    UpdateDelayed,
    UpdateRejected,
    UpdateStored,
)
from fedpipe_coordinator.runs.run_state import LateShare, RunState
from fedpipe_wire.coordinator_messages import Ack

LATE = trained("b", 1)


def _closed_without_b(**rounds: Any) -> Drive:
    """Round 1 was closed with a's update only; b is back and trains still."""
    drive = training("a", "b", **{"number": 3, **rounds})
    finish(drive, "a")
    drive(AgentOffline("b"))
    drive(Ticked(), after_s=OFFLINE_GRACE_S + 1)
    drive(AgentOnline("b", "b-1"))
    assert drive.phase == "aggregating"
    return drive


def _until(drive: Drive, phase: str) -> None:
    if phase != "aggregating":
        drive.aggregate()
    if phase == "training":
        drive.plan()
    assert drive.phase == phase


def _acks(actions: tuple[RunAction, ...]) -> list[tuple[str, int, bool]]:
    return [
        (action.agent, action.message.round, action.message.accepted)
        for action in actions
        if isinstance(action, Send) and isinstance(action.message, Ack)
    ]


def _to_round_2(drive: Drive) -> None:
    if drive.phase == "aggregating":
        drive.aggregate()
    if drive.phase == "planning":
        drive.plan()


@pytest.mark.parametrize("offered", ["aggregating", "planning", "training"])
@pytest.mark.parametrize("stored", ["at once", "in training"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_late_update_counts_once_in_the_next_round(offered: str, stored: str, *, restart: bool) -> None:
    drive = _closed_without_b()
    first = drive.state.adapter
    _until(drive, offered)
    assert drive.hear("b", LATE)[-1:] == (Fetch("b", 1, LATE.update),)
    drive.hear("b", LATE)
    assert len(drive.notes("late-offered")) == 1
    if stored == "in training":
        _to_round_2(drive)
    actions = drive(UpdateStored("b", 1, LATE.update.sha256))
    assert _acks(actions) == [("b", 1, True)]
    assert drive(UpdateStored("b", 1, LATE.update.sha256)) == ()
    assert _acks(drive.hear("b", LATE)) == [("b", 1, True)]
    _to_round_2(drive)
    (entry,) = drive.member("b").late
    assert (entry.plan.round, entry.base, entry.stored) == (1, first, True)
    finish(drive, "a")
    finish(drive, "b")
    if restart:
        drive.state, again = resume(RunState.model_validate_json(drive.state.model_dump_json()), 1e6)
        drive.now = 1e6
        assert again == (drive.all(Aggregate)[-1],)
    last = drive.all(Aggregate)[-1]
    assert last == Aggregate(
        2, {name: trained(name, 2).update.sha256 for name in ("a", "b")}, {"b": LATE.update.sha256}
    )
    drive.aggregate()
    assert drive.member("b").late == ()
    assert drive.state.pending is not None
    assert drive.state.pending.late == (
        LateShare(agent="b", round=1, examples=12, weight=0.5, sha256=LATE.update.sha256),
    )


@pytest.mark.parametrize("offered", ["aggregating", "planning", "training"])
def test_records_tell_of_a_late_update_in_both_rounds(offered: str) -> None:
    drive = _closed_without_b(number=2)
    _until(drive, offered)
    drive.hear("b", LATE)
    drive(UpdateStored("b", 1, LATE.update.sha256))
    _to_round_2(drive)
    finish(drive, "a")
    finish(drive, "b")
    drive.aggregate()
    for agent in ("a", "b"):
        drive.hear(agent, evaluated(3))
    first, second = (round_record(each.result, each.metric, shape(), 1) for each in drive.all(SaveRound))
    assert [(agent["agent"], agent["status"], agent["examples"]) for agent in first["agents"]] == [
        ("a", "accepted", 12),
        ("b", "late", 12),
    ]
    assert [agent["status"] for agent in second["agents"]] == ["accepted", "accepted"]
    assert first["late"] == []
    assert second["late"] == [{"agent": "b", "round": 1, "examples": 12, "weight": 0.5}]
    (note,) = drive.notes("late-accepted")
    assert note.data == {"sha256": LATE.update.sha256, "bytes": LATE.update.size, "round": 1, "weight": 0.5}


def test_an_update_that_was_on_its_way_when_its_agent_left_is_fetched_when_it_is_back() -> None:
    drive = training("a", "b", number=3)
    drive.hear("b", LATE)
    drive(AgentOffline("b"))
    drive(Ticked(), after_s=OFFLINE_GRACE_S + 1)
    finish(drive, "a")
    assert not drive.asked("b", Ack)
    assert Fetch("b", 1, LATE.update) in drive(AgentOnline("b", "b-2"))
    drive(UpdateStored("b", 1, LATE.update.sha256))
    _to_round_2(drive)
    finish(drive, "a")
    assert drive.phase == "training"
    drive.hear("b", failed(2))
    assert drive.all(Aggregate)[-1].late == {"b": LATE.update.sha256}


def test_late_updates_alone_are_no_quorum() -> None:
    drive = _closed_without_b(min_agents=1)
    drive.hear("b", LATE)
    drive(UpdateStored("b", 1, LATE.update.sha256))
    _to_round_2(drive)
    drive.hear("a", failed(2))
    drive.hear("b", failed(2))
    assert drive.notes("round-repeated")
    assert len(drive.all(Aggregate)) == 1
    drive.plan()
    finish(drive, "a")
    drive.hear("b", failed(2))
    assert drive.all(Aggregate)[-1] == Aggregate(2, {"a": trained("a", 2).update.sha256}, {"b": LATE.update.sha256})


def test_an_agent_one_round_behind_in_every_round_counts_in_every_next_one() -> None:
    """Its update of a round comes while that one is aggregated, and the one before is in that aggregation."""
    drive = _closed_without_b()
    drive.hear("b", LATE)
    drive(UpdateStored("b", 1, LATE.update.sha256))
    _to_round_2(drive)
    finish(drive, "a")
    drive(AgentOffline("b"))
    drive(Ticked(), after_s=OFFLINE_GRACE_S + 1)
    drive(AgentOnline("b", "b-1"))
    assert drive.phase == "aggregating"
    second = trained("b", 2)
    drive.hear("b", second)
    drive(UpdateStored("b", 2, second.update.sha256))
    assert resume(drive.state, 1.0)[1] == (drive.all(Aggregate)[-1],)
    drive.aggregate()
    drive.plan()
    finish(drive, "a")
    finish(drive, "b")
    assert [each.late for each in drive.all(Aggregate)] == [
        {},
        {"b": LATE.update.sha256},
        {"b": second.update.sha256},
    ]


def test_what_is_two_rounds_old_is_declined() -> None:
    drive = _closed_without_b()
    _to_round_2(drive)
    finish(drive, "a")
    drive.hear("b", failed(2))
    assert drive.phase == "aggregating"
    assert _acks(drive.hear("b", LATE)) == [("b", 1, False)]


def test_a_late_update_that_does_not_arrive_before_the_next_round_is_closed_is_declined() -> None:
    drive = _closed_without_b()
    drive.hear("b", LATE)
    _to_round_2(drive)
    finish(drive, "a")
    drive.hear("b", failed(2))
    assert StopFetch("b", LATE.update.sha256) in drive.actions
    ack = drive.asked("b", Ack)[-1]
    assert (ack.accepted, ack.round) == (False, 1)
    assert "before round 2 was closed" in ack.reason
    assert drive(UpdateStored("b", 1, LATE.update.sha256)) == ()


def test_after_the_last_aggregation_was_asked_for_nothing_is_late_but_over() -> None:
    drive = _closed_without_b(number=1)
    assert _acks(drive.hear("b", LATE)) == [("b", 1, False)]
    assert "no round follows" in drive.asked("b", Ack)[-1].reason


def test_a_round_that_turns_out_to_be_the_last_takes_no_late_update() -> None:
    drive = training("a", "b", number=9, patience=1)
    drive.hear("a", evaluated(1, 1.0))
    finish(drive, "a")
    finish(drive, "b")
    drive.aggregate()
    drive.plan()
    drive.hear("a", evaluated(2, 2.0))
    finish(drive, "a")
    drive(AgentOffline("b"))
    drive(Ticked(), after_s=OFFLINE_GRACE_S + 1)
    assert drive.phase == "aggregating"
    assert _acks(drive.hear("b", trained("b", 2))) == [("b", 2, False)]
    drive.aggregate()
    assert drive.phase == "evaluating"


def test_a_second_update_of_a_round_that_is_over_replaces_only_one_that_is_not_here() -> None:
    drive = _closed_without_b()
    drive.hear("b", LATE)
    other = trained("b", 1, "again")
    actions = drive.hear("b", other)
    assert StopFetch("b", LATE.update.sha256) in actions
    assert Fetch("b", 1, other.update) in actions
    drive(UpdateStored("b", 1, other.update.sha256))
    assert _acks(drive.hear("b", LATE)) == [("b", 1, False)]
    assert "another update of it was taken" in drive.asked("b", Ack)[-1].reason
    assert _acks(drive.hear("a", trained("a", 1, "another"))) == [("a", 1, False)]


def test_who_delivered_in_time_and_sits_a_round_out_cannot_bring_a_second_update() -> None:
    drive = training("a", "b", number=3, min_agents=1)
    finish(drive, "a")
    finish(drive, "b")
    drive.aggregate()
    drive.plan({"b": 0})
    assert drive.member("b").standing == "idle"
    assert _acks(drive.hear("b", trained("b", 1, "another"))) == [("b", 1, False)]


def test_a_late_update_that_fails_its_check_is_declined_and_one_whose_transfer_died_is_not() -> None:
    drive = _closed_without_b()
    drive.hear("b", LATE)
    assert drive(UpdateDelayed("b", 1, LATE.update.sha256, "nothing came")) == ()
    assert Fetch("b", 1, LATE.update) in drive(Ticked(), after_s=31)
    actions = drive(UpdateRejected("b", 1, LATE.update.sha256, "up.lora_A: not finite"))
    assert _acks(actions) == [("b", 1, False)]
    assert drive.member("b").late == ()
    assert drive.phase == "aggregating"
