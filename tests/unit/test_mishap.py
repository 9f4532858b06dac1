"""A defect that an agent's message brings to light costs that agent its place, not everybody the coordinator."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from office import Office
from run_support import device, finish, job, scored, survey, trained, training

from fedpipe_coordinator.runs import membership, mishap, run_machine
from fedpipe_coordinator.runs.run_events import AgentOnline, Aggregate, Heard, MakePlans, Ticked, Unfit, WorkFailed
from fedpipe_coordinator.store import StoreError
from fedpipe_wire.agent_messages import Presence, Profile
from fedpipe_wire.coordinator_messages import EndTask


def broken(*_: Any) -> Any:
    raise OverflowError("integer division result too large for a float")


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    office.say(Profile(profile=device("a")))
    office.say(Presence(state="online", session="1"))
    yield office
    office.stop()


def _run(office: Office, min_agents: int = 2) -> str:
    return office.service.submit(job(min_agents=min_agents), None)


def test_a_message_that_makes_the_machine_fail_costs_its_agent_the_run(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(office)
    office.heard()
    monkeypatch.setattr(membership, "on_surveyed", broken)
    office.say(survey().model_copy(update={"run": run}))
    state = office.service.runs[run]
    assert state.open
    assert state.members["a"].standing == "refused"
    (end,) = [message for message in office.heard() if isinstance(message, EndTask)]
    assert "message 'survey' of a" in end.reason
    assert "integer division result too large for a float" in end.reason
    assert any("OverflowError" in line and "test_mishap.py" in line for line in office.said)
    kinds = [event["event"] for event in office.service.keeper.told(run)]
    assert "excluded" in kinds


def test_a_run_that_can_do_nothing_any_more_fails_and_the_next_one_begins(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = _run(office), _run(office)
    move_on = run_machine._move_on
    monkeypatch.setattr(run_machine, "_move_on", lambda work: broken() if work.state.run == first else move_on(work))
    office.service._tick(0.0)
    assert office.service.runs[first].phase == "failed"
    assert "OverflowError" in office.service.runs[first].note
    assert office.service.runs[second].open


def test_what_is_no_messages_fault_ends_the_process() -> None:
    def full(_: object) -> None:
        raise StoreError("the disk is full")

    with pytest.raises(StoreError):
        mishap.let_hear(full, Ticked(), print)


def test_a_failure_to_fail_is_not_hidden() -> None:
    heard: list[object] = []

    def never(event: object) -> None:
        heard.append(event)
        raise KeyError("gone")

    with pytest.raises(KeyError):
        mishap.let_hear(never, AgentOnline("a", "1"), lambda _: None)
    assert [type(event) for event in heard] == [AgentOnline, Unfit, WorkFailed]


def test_who_is_left_out_after_its_update_was_acknowledged_is_in_the_aggregation_and_in_no_later_round() -> None:
    drive = training("a", "b", number=3)
    finish(drive, "a")
    drive(Unfit("a", "what it said cannot be worked with"))
    assert drive.notes("excluded")
    finish(drive, "b")
    assert sorted(drive.all(Aggregate)[0].updates) == ["a", "b"]
    drive.aggregate()
    assert drive.all(MakePlans)[-1].agents == ("b",)


@pytest.mark.parametrize("standing", ["asked", "offered", "gone", "answered", "refused", "failed", "idle"])
def test_an_agent_may_be_left_out_whatever_it_does(standing: str) -> None:
    drive = training("a", "b", number=3)
    if standing == "offered":
        drive.hear("a", trained("a", 1))
    else:
        member = drive.member("a").model_copy(update={"standing": standing})
        drive.state = drive.state.with_member(member)
    drive(Unfit("a", "what it said cannot be worked with"))
    assert drive.member("a").standing == "refused"
    assert drive.asked("a", EndTask)
    drive(Heard("a", scored()))
    finish(drive, "b")
    drive.aggregate()
    assert drive.all(MakePlans)[-1].agents == ("b",)
