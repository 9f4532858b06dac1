"""Runs one after the other: the service on a broker in memory, driven by one thread, without heavy work."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from office import Office
from run_support import device, job

from fedpipe_coordinator.exchange import TransferDone
from fedpipe_wire.agent_messages import Presence, Profile


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    office.say(Profile(profile=device("a")))
    office.say(Presence(state="online", session="1"))
    assert office.told() == [("welcome", "1")]
    yield office
    office.stop()


def test_a_second_run_waits_for_the_first(office: Office) -> None:
    first = office.service.submit(job(), None)
    second = office.service.submit(job(), None)
    assert office.told() == [("survey-task", first)]
    office.ask(op="stop", run=first)
    assert office.told() == [("end-task", first), ("survey-task", second)]
    assert [(run["run"], run["phase"]) for run in office.ask(op="status")["runs"]] == [
        (second, "surveying"),
        (first, "stopped"),
    ]


def test_stopping_a_run_that_waits_leaves_the_one_at_work_its_blobs(office: Office) -> None:
    first = office.service.submit(job(), None)
    second = office.service.submit(job(), None)
    adapter = office.blobs.add_bytes(b"the adapter of the first run")
    office.service.runs[first] = office.service.runs[first].model_copy(update={"adapter": adapter})
    left = office.blobs.add_bytes(b"left by a run before")
    office.ask(op="stop", run=second)
    assert office.blobs.has(adapter.sha256)
    assert not office.blobs.has(left.sha256)
    assert office.service.runs[first].open
    assert office.told() == [("survey-task", first)]


def test_runs_are_taken_up_in_their_order_after_a_restart(office: Office) -> None:
    first = office.service.submit(job(), None)
    second = office.service.submit(job(), None)
    office.told()
    office.stop()
    office.start()
    assert office.told() == [("welcome", "1"), ("survey-task", first)]
    office.ask(op="stop", run=first)
    assert office.told() == [("end-task", first), ("survey-task", second)]


def test_an_agent_that_connects_anew_is_asked_again(office: Office) -> None:
    run = office.service.submit(job(), None)
    office.told()
    office.say(Presence(state="online", session="1"))
    assert office.told() == [("welcome", "1"), ("survey-task", run)]


def test_a_profile_under_another_agents_name_is_not_taken(office: Office) -> None:
    office.say(Profile(profile=device("b")))
    assert set(office.store.profiles()) == {"a"}
    assert any("'b'" in line for line in office.said)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"op": "stop", "run": "none"}, "no run 'none'"),
        ({"op": "watch", "run": "none"}, "no run 'none'"),
        ({"op": "run", "job": {"job": 3}}, "the job is not valid"),
        ({"op": "dance"}, "unknown request 'dance'"),
        ({}, "unknown request None"),
    ],
)
def test_requests_that_cannot_be_met_are_answered_in_words(office: Office, request_: dict[str, Any], said: str) -> None:
    assert said in office.ask(**request_)["error"]


def test_a_run_is_stopped_once(office: Office) -> None:
    run = office.ask(op="run", job=job().model_dump(mode="json"))["run"]
    assert office.ask(op="stop", run=run) == {"run": run}
    assert "over already: stopped" in office.ask(op="stop", run=run)["error"]
    assert office.ask(op="agents")["agents"]["a"]["online"]
    summary = json.loads((office.folder / "runs" / run / "summary.json").read_text())
    assert summary["phase"] == "stopped"
    assert (office.folder / "runs" / run / "report.html").exists()


def test_a_folder_that_cannot_hold_a_run_is_refused_before_the_run_is(office: Office, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    answer = office.ask(op="run", job=job().model_dump(mode="json"), folder=str(tmp_path / "a-file" / "run"))
    assert "cannot be written" in answer["error"]
    assert office.service.runs == {}
    assert office.store.runs() == []


def test_a_folder_that_holds_a_run_takes_no_second_one(office: Office, tmp_path: Path) -> None:
    request = {"op": "run", "job": job().model_dump(mode="json"), "folder": str(tmp_path / "run")}
    first = office.ask(**request)["run"]
    office.ask(op="stop", run=first)
    answer = office.ask(**request)
    assert "holds a run already" in answer["error"]
    assert list(office.service.runs) == [first]


def test_an_end_that_was_stored_and_not_told_is_told_after_a_restart(office: Office, tmp_path: Path) -> None:
    run = office.service.submit(job(), str(tmp_path / "run"))
    office.ask(op="stop", run=run)
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "report.html").unlink()
    office.stop()
    office.start()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["phase"] == "stopped"
    assert (tmp_path / "run" / "report.html").exists()


def test_what_time_alone_brings_to_a_transfer_is_acted_on(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = TransferDone("a", "0" * 64, None, "nothing came for 120 s")
    seen: list[tuple[object, ...]] = []

    def note(*what: object) -> None:
        seen.append(what)
        office.service.request_stop()

    monkeypatch.setattr(office.service, "_transfer_done", note)
    monkeypatch.setattr(office.service._exchange, "start", lambda: None)
    monkeypatch.setattr(office.service._exchange, "finished", lambda: iter([] if seen else [given_up]))
    office.service.serve()
    assert seen == [(given_up,)]


def test_a_second_agent_of_a_name_is_told_of_once_however_often_it_asks(office: Office) -> None:
    older, newer = Presence(state="online", session="1"), Presence(state="online", session="2")
    office.said.clear()
    for _ in range(3):
        office.say(newer)
        office.say(older)  # as it does when it hears that another was turned away
    (line,) = office.said
    assert line.startswith("turned away: agent a is here as session 1, and session 2 asks for the same name")
    assert office.ask(op="agents")["agents"]["a"]["turned_away"] == [line.removeprefix("turned away: ")]
