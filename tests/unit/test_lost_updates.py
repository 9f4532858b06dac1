"""Blobs that a disk has damaged between two processes: none is aggregated or sent, and what is lost is told."""

import pytest
from run_support import Drive, aggregated, evaluated, finish, ref, trained, training

from fedpipe_coordinator.runs.resume import resume
from fedpipe_coordinator.runs.run_events import (
    AdapterChecked,
    AgentOnline,
    Aggregate,
    BroadcastAdapter,
    Damaged,
    Fetch,
    MakePlans,
    Ticked,
    UpdateDelayed,
    UpdateRejected,
    UpdateStored,
)
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_wire.coordinator_messages import Ack


def _closed(min_agents: int = 1) -> Drive:
    """A round that is closed with the updates of a and b."""
    drive = training("a", "b", number=3, min_agents=min_agents)
    finish(drive, "a")
    finish(drive, "b")
    assert drive.phase == "aggregating"
    return drive


def _sha(agent: str) -> str:
    return trained(agent, 1).update.sha256


def test_a_damaged_update_that_its_agent_still_holds_is_aggregated_after_all() -> None:
    drive = _closed()
    (whole,) = drive.all(Aggregate)
    drive(Damaged(1, (("a", _sha("a")),)))
    assert drive.all(Fetch)[-1] == Fetch("a", 1, trained("a", 1).update)
    assert drive.notes("damaged")[0].agent == "a"
    drive(UpdateStored("a", 1, _sha("a")))
    assert drive.all(Aggregate) == [whole, whole]
    assert not drive.notes("update-lost")


@pytest.mark.parametrize("outcome", [UpdateDelayed, UpdateRejected])
def test_a_damaged_update_that_is_gone_is_declined_aloud_and_the_others_count(outcome: type[UpdateDelayed]) -> None:
    drive = _closed()
    drive(Damaged(1, (("a", _sha("a")),)))
    drive(outcome("a", 1, _sha("a"), "nobody sent it"))
    assert drive.all(Aggregate)[-1] == Aggregate(1, {"b": _sha("b")})
    (note,) = drive.notes("update-lost")
    assert "acknowledged and is lost by this disk: nobody sent it" in note.text
    answers = [ack.accepted for ack in drive.asked("a", Ack)]
    assert answers == [True, False]
    drive.hear("a", trained("a", 1))
    assert drive.asked("a", Ack)[-1].accepted is False, "it must not be called taken any more"
    drive.aggregate()
    assert drive.all(MakePlans)[-1] == MakePlans(2, ("a", "b"))


def test_a_round_that_lost_its_quorum_is_done_again_by_those_that_lost() -> None:
    drive = _closed(min_agents=2)
    drive(Damaged(1, (("a", _sha("a")),)))
    drive(UpdateDelayed("a", 1, _sha("a"), "nobody sent it"))
    assert drive.phase == "planning"
    drive(Ticked(), after_s=60.0)
    assert drive.all(MakePlans)[-1] == MakePlans(1, ("a",))
    drive.plan()
    again = trained("a", 1, "anew")
    drive.hear("a", again)
    drive(UpdateStored("a", 1, again.update.sha256))
    assert drive.all(Aggregate)[-1] == Aggregate(1, {"a": again.update.sha256, "b": _sha("b")})


def test_a_restart_while_an_update_is_asked_for_again_looks_at_all_of_them_once_more() -> None:
    drive = _closed()
    drive(Damaged(1, (("a", _sha("a")),)))
    state, actions = resume(RunState.model_validate_json(drive.state.model_dump_json()), 1e6)
    assert actions == tuple(drive.all(Aggregate))
    assert state.missing == ()


def test_a_late_update_is_lost_with_the_adapter_that_it_was_trained_from() -> None:
    drive = training("a", "b", number=3)
    finish(drive, "a")
    drive.hear("b", trained("b", 1))
    drive(Ticked(), after_s=1000.0)
    drive.hear("b", evaluated(1))
    if drive.phase == "training":
        drive(UpdateDelayed("b", 1, _sha("b"), "slow"))
        drive(Ticked(), after_s=1000.0)
    assert drive.phase == "aggregating"
    drive.aggregate()
    drive(UpdateStored("b", 1, _sha("b")))
    drive(AgentOnline("b", "b-1"))
    drive.plan()
    for name in drive.all(MakePlans)[-1].agents:
        finish(drive, name)
    (action,) = drive.all(Aggregate)[-1:]
    assert action.late == {"b": _sha("b")}
    drive(Damaged(2, (), (("b", _sha("b")),)))
    assert drive.all(Aggregate)[-1] == Aggregate(2, action.updates)
    assert "trained from" in drive.notes("update-lost")[0].text
    drive.aggregate()


def test_what_is_damaged_in_a_round_that_is_over_changes_nothing() -> None:
    drive = _closed()
    drive(aggregated(drive.state, drive.all(Aggregate)[-1]))
    before = drive.state
    assert drive(Damaged(1, (("a", _sha("a")),))) == ()
    assert drive.state == before


def test_an_adapter_of_an_earlier_process_is_sent_once_it_was_checked() -> None:
    drive = training("a", "b")
    adapter = drive.state.adapter
    assert adapter is not None
    assert drive(AdapterChecked(adapter, 1)) == (BroadcastAdapter(adapter, 1),)
    assert drive(AdapterChecked(ref("0" * 64), 1)) == ()
