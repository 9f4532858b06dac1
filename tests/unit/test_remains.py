"""A run that is over weighs little, and still answers what is asked of it."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from office import Office
from run_support import LABELS, Drive, device, evaluated, finish, job, planned, scored, survey, trained, training

from fedpipe_coordinator import work
from fedpipe_coordinator.control import ControlRequest
from fedpipe_coordinator.housekeeping import needed_blobs
from fedpipe_coordinator.operations import describe, handle
from fedpipe_coordinator.records.retelling import retell
from fedpipe_coordinator.records.run_folder import RunFolder
from fedpipe_coordinator.runs.remains import TOLD_AGAIN, remains, still_told
from fedpipe_coordinator.runs.run_events import AgentOnline, Heard, MakePlans, Planned, StopAsked, UpdateStored
from fedpipe_coordinator.runs.run_machine import step
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_wire.agent_messages import Presence, Profile
from fedpipe_wire.coordinator_messages import Ack, EndTask

HEAVY = ("curves", "contribution", "survey", "measurements", "plan", "trained", "late")


def _over(how: str) -> Drive:
    """A run of two agents that has aggregated one round."""
    drive = training("a", "b", number=1 if how == "done" else 3, labels=LABELS)
    finish(drive, "a")
    finish(drive, "b")
    drive.aggregate()
    if how == "done":
        for agent in ("a", "b"):
            drive.hear(agent, evaluated(2))
        drive.export()
    else:
        drive(StopAsked())
    assert drive.phase == how
    return drive


# --- the value --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["done", "stopped"])
def test_what_is_asked_of_a_run_that_is_over_remains(tmp_path: Path, how: str) -> None:
    whole = _over(how).state
    left = remains(whole)
    assert describe(left) == describe(whole)
    assert RunFolder(tmp_path).summary(left, {}) == RunFolder(tmp_path).summary(whole, {})
    assert remains(left) == left
    assert RunState.model_validate_json(left.model_dump_json()) == left
    for agent, member in whole.members.items():
        assert member.taken
        for event in (
            AgentOnline(agent, "another session"),
            Heard(agent, trained(agent, 1)),  # it was taken, and its agent did not hear so
            Heard(agent, trained(agent, 1, "another")),
        ):
            assert step(left, event, 1.0)[1] == step(whole, event, 1.0)[1]


@pytest.mark.parametrize("how", ["done", "stopped"])
def test_what_nobody_asks_for_does_not(how: str) -> None:
    whole = _over(how).state
    left = json.loads(remains(whole).model_dump_json(exclude={"job"}))
    entries = [left, *left["members"].values()]
    assert not [key for entry in entries for key in HEAVY if entry.get(key)]
    assert len(json.dumps(left["members"]["a"])) < 1000


def test_the_adapter_of_a_run_that_did_not_get_to_its_export_is_kept() -> None:
    done, stopped = _over("done").state, _over("stopped").state
    assert stopped.adapter is not None
    assert needed_blobs([remains(stopped), remains(done)]) == {stopped.adapter.sha256}


def test_a_run_that_goes_on_is_left_whole() -> None:
    state = training("a").state
    assert remains(state) is state


def test_an_agent_is_told_of_the_last_runs_that_it_took_part_in() -> None:
    over = _over("stopped").state
    runs = [over.model_copy(update={"run": f"run-{n}"}) for n in range(10)]
    runs[8] = runs[8].model_copy(update={"members": {}})
    runs.append(training("a").state)
    told = still_told(runs, "a")
    assert len(told) == TOLD_AGAIN
    assert told[-2:] == ["run-7", "run-9"]
    assert still_told(runs, "stranger") == []


# --- the service ------------------------------------------------------------------------------------------------


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    office = Office(tmp_path)
    adapter = office.blobs.add_bytes(b"the first adapter of all runs")

    def plans(state: RunState, action: MakePlans, *_: object) -> Planned:
        return planned(state.model_copy(update={"adapter": adapter}), action)

    monkeypatch.setattr(work, "make_plans", plans)
    office.say(Profile(profile=device("a")))
    office.say(Presence(state="online", session="1"))
    yield office
    office.stop()


def _says(office: Office, run: str, *messages: Any) -> None:
    for message in messages:
        office.say(message.model_copy(update={"run": run}))
    office.settle()


def _stopped(office: Office) -> str:
    """A run that was stopped after its agent's update was taken and while it aggregated."""
    run = office.service.submit(job(number=2), None)
    _says(office, run, survey(), scored())
    _says(office, run, evaluated(1), trained("a", 1))
    office.service._apply(run, UpdateStored("a", 1, trained("a", 1).update.sha256))
    office.ask(op="stop", run=run)
    office.settle()
    office.heard()
    return run


def _watched(office: Office, run: str) -> list[dict[str, Any]]:
    """All that a watcher hears who comes now; the run must be over."""
    request = ControlRequest({"op": "watch", "run": run})
    handle(office.service, request)
    return _drained(request.replies)


def _drained(queue: SimpleQueue[dict[str, Any] | None]) -> list[dict[str, Any]]:
    found = []
    while (event := queue.get_nowait()) is not None:
        found.append(event)
    return found


def test_memory_and_store_hold_what_remains_once_a_run_is_over(office: Office, tmp_path: Path) -> None:
    run = _stopped(office)
    assert office.service.runs[run] == remains(office.service.runs[run])
    assert office.store.runs() == [office.service.runs[run]]
    with closing(sqlite3.connect(tmp_path / "coordinator.db")) as db:
        ((size,),) = db.execute("SELECT SUM(LENGTH(member)) FROM members").fetchall()
    assert size < 1000
    summary = json.loads((tmp_path / "runs" / run / "summary.json").read_text())
    assert summary["phase"] == "stopped"
    assert "is stored" in (tmp_path / "runs" / run / "report.html").read_text()


def test_an_update_that_was_taken_is_acknowledged_long_after(office: Office) -> None:
    run = _stopped(office)
    office.stop()
    office.start()
    office.heard()
    _says(office, run, trained("a", 1), trained("a", 1, "another"))
    assert [ack.accepted for ack in office.heard() if isinstance(ack, Ack)] == [True, False]
    office.say(Presence(state="online", session="1"))
    assert [end.run for end in office.heard() if isinstance(end, EndTask)] == [run]


def test_a_whole_run_in_an_older_store_is_cut_down_at_the_start(office: Office) -> None:
    run = _stopped(office)
    whole = training("a")
    whole(StopAsked())
    office.service.keeper.store(whole.state.model_copy(update={"run": run}), ())
    office.stop()
    office.start()
    assert office.store.runs() == [remains(office.store.runs()[0])]


def test_who_watches_late_hears_what_who_watched_from_the_beginning_heard(office: Office) -> None:
    run = office.service.submit(job(number=2), None)
    early = ControlRequest({"op": "watch", "run": run})
    handle(office.service, early)
    _says(office, run, survey(), scored())
    _says(office, run, evaluated(1), trained("a", 1))
    between = ControlRequest({"op": "watch", "run": run})
    handle(office.service, between)
    office.service._apply(run, UpdateStored("a", 1, trained("a", 1).update.sha256))
    office.ask(op="stop", run=run)
    heard = _drained(early.replies)
    assert [event["event"] for event in heard][-1] == "run-stopped"
    assert _drained(between.replies) == heard
    assert _watched(office, run) == heard
    office.stop()
    office.start()
    assert _watched(office, run) == heard


def test_a_folder_that_was_taken_away_leaves_nothing_to_tell(office: Office, tmp_path: Path) -> None:
    run = _stopped(office)
    (tmp_path / "runs" / run / "audit.jsonl").write_text("changed by hand\n")
    assert _watched(office, run) == []


def test_what_is_said_of_a_run_after_a_restart_is_numbered_on(office: Office, tmp_path: Path) -> None:
    run = _stopped(office)
    office.stop()
    office.start()
    _says(office, run, trained("a", 1, "another"))
    lines = [json.loads(line) for line in (tmp_path / "runs" / run / "audit.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1]["kind"] == "late"


def test_rounds_are_told_where_they_were_said() -> None:
    def note(kind: str, round_: int) -> dict[str, Any]:
        return {"kind": kind, "text": "", "agent": None, "round": round_}

    audit = [
        note("planned", 1),
        note("aggregated", 1),
        note("planned", 2),
        note("round-repeated", 2),
        note("aggregated", 2),
        note("aggregated", 3),
        note("run-done", 3),
    ]
    told = [(event["event"], event["round"]) for event in retell(audit, [{"round": n} for n in (1, 2, 3)])]
    assert [at for at, (kind, _) in enumerate(told) if kind == "round"] == [3, 6, 8]
    assert [round_ for kind, round_ in told if kind == "round"] == [1, 2, 3]
