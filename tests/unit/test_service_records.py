"""The coordinator and the folders of its runs: harmed, gone, or refusing at the very end."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from office import Office
from run_support import device, evaluated, job, scored, survey

from fedpipe_coordinator.records.run_folder import RecordError, RunFolder
from fedpipe_wire.agent_messages import Presence, Profile


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The coordinator's clock."""
    times = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: times[0])
    return times


@pytest.fixture
def office(tmp_path: Path, now: list[float]) -> Iterator[Office]:
    """With one agent there."""
    del now
    (tmp_path / "home").mkdir()
    office = Office(tmp_path / "home")
    office.say(Profile(profile=device("a")))
    office.say(Presence(state="online", session="1"))
    yield office
    office.stop()


def _training(office: Office, folder: Path | None = None) -> str:
    run = office.service.submit(job(), str(folder) if folder else None)
    office.say(survey().model_copy(update={"run": run}))
    office.say(scored().model_copy(update={"run": run}))
    office.settle()
    assert office.service.runs[run].phase == "training"
    return run


def _folder(office: Office, run: str) -> Path:
    return office.folder / "runs" / run


def _kinds(office: Office, run: str) -> list[str]:
    return [line["kind"] for line in RunFolder(_folder(office, run)).audit()]


def _status(office: Office, run: str) -> dict[str, Any]:
    (found,) = (entry for entry in office.ask(op="status")["runs"] if entry["run"] == run)
    return dict(found)


# --- lines that cannot be read ----------------------------------------------------------------------------------


def test_a_harmed_audit_record_is_set_aside_at_the_start_and_the_run_goes_on(office: Office) -> None:
    run = _training(office)
    path = _folder(office, run) / "audit.jsonl"
    harmed = path.read_bytes().replace(b'"kind": "surveyed"', b'"kind"\xff')
    office.stop()
    path.write_bytes(harmed)
    office.start()
    assert _status(office, run)["phase"] == "training"
    office.settle()
    kinds = _kinds(office, run)
    assert "surveyed" not in kinds
    assert kinds.count("records-damaged") == 1
    numbers = [line["number"] for line in RunFolder(_folder(office, run)).audit()]
    assert numbers == sorted(set(numbers))
    assert path.with_name("audit.jsonl.damaged-1").read_bytes() == harmed
    assert any("audit.jsonl.damaged-1" in line for line in office.said)


@pytest.mark.parametrize("garbage", [b"garbage\n", b"{}\n", b"[" * 99_999 + b"\n"])
def test_garbage_in_the_records_does_not_keep_a_run_from_ending(office: Office, garbage: bytes) -> None:
    run = _training(office)
    for name in ("rounds.jsonl", "audit.jsonl"):
        with (_folder(office, run) / name).open("ab") as file:
            file.write(garbage)
    assert office.ask(op="stop", run=run) == {"run": run}
    summary = json.loads((_folder(office, run) / "summary.json").read_text())
    assert summary["phase"] == "stopped"
    assert "run-stopped" in (_folder(office, run) / "report.html").read_text()
    assert _kinds(office, run).count("records-damaged") == 2
    assert (_folder(office, run) / "rounds.jsonl.damaged-1").read_bytes() == garbage


def test_lines_that_are_json_and_no_rounds_of_ours_cost_the_page_and_nothing_else(office: Office) -> None:
    run = _training(office)
    with (_folder(office, run) / "rounds.jsonl").open("ab") as file:
        file.write(b'{"round": 1, "agents": [7]}\n')
    office.ask(op="stop", run=run)
    assert json.loads((_folder(office, run) / "summary.json").read_text())["phase"] == "stopped"
    assert any("report.html is not written" in line for line in office.said)


def test_a_folder_in_the_place_of_a_record_ends_its_run_and_no_other(office: Office, now: list[float]) -> None:
    run = _training(office)
    second = office.service.submit(job(), None)
    path = _folder(office, run) / "audit.jsonl"
    path.rename(path.with_name("away"))
    path.mkdir()
    office.say(evaluated(1).model_copy(update={"run": run}))
    office.settle()
    assert _status(office, run)["phase"] == "failed"
    assert str(path.parent) in _status(office, run)["note"]
    assert office.service.runs[second].phase == "surveying"
    office.stop()
    office.start()
    assert _status(office, second)["phase"] == "surveying"
    path.rmdir()
    now[0] += 31
    office.settle()
    assert json.loads((path.parent / "summary.json").read_text())["phase"] == "failed"


# --- folders that are gone --------------------------------------------------------------------------------------


def test_a_run_whose_folder_is_removed_ends_and_names_it_and_tells_its_end_there(office: Office) -> None:
    run = _training(office)
    second = office.service.submit(job(), None)
    shutil.rmtree(office.folder / "runs")
    office.say(evaluated(1).model_copy(update={"run": run}))
    office.settle()
    note = _status(office, run)["note"]
    assert f"{_folder(office, run)} cannot be written: it is not there any more" in note
    assert "Run the job again" in note
    assert json.loads((_folder(office, run) / "summary.json").read_text())["note"] == note
    assert office.service.runs[second].open or "not there any more" in office.service.runs[second].note


def test_work_in_a_folder_that_is_removed_names_it(office: Office) -> None:
    run = office.service.submit(job(), None)
    office.say(survey().model_copy(update={"run": run}))
    shutil.rmtree(_folder(office, run))
    office.say(scored().model_copy(update={"run": run}))
    office.settle()
    assert _status(office, run)["phase"] == "failed"
    assert f"planning: the run's folder {_folder(office, run)} cannot be written" in _status(office, run)["note"]


def test_the_folder_of_a_run_that_is_over_is_not_made_again_once_its_owner_removed_it(office: Office) -> None:
    run = _training(office)
    office.ask(op="stop", run=run)
    office.settle()
    shutil.rmtree(_folder(office, run))
    office.service.keeper.store(office.service.runs[run], ())
    office.stop()
    office.start()
    office.settle()
    assert not _folder(office, run).exists()


# --- a folder that refuses at the end ---------------------------------------------------------------------------


def _refuse(monkeypatch: pytest.MonkeyPatch, name: str) -> Callable[[], None]:
    """Let a method of every run's folder fail until the function that comes back is called."""
    before = getattr(RunFolder, name)

    def refuse(*_: object, **__: object) -> None:
        raise RecordError("the run's folder cannot be written: Operation not permitted")

    monkeypatch.setattr(RunFolder, name, refuse)
    return lambda: monkeypatch.setattr(RunFolder, name, before)


def _stopped_unwritten(
    office: Office, monkeypatch: pytest.MonkeyPatch, refused: str
) -> tuple[str, Path, Callable[[], None]]:
    """A run that was stopped while its folder refuses something; the folder, and what lets it take all again."""
    run = _training(office)
    path = _folder(office, run)
    (path / "adapter").mkdir()
    restore = _refuse(monkeypatch, refused)
    office.ask(op="stop", run=run)
    return run, path, restore


@pytest.mark.parametrize("refused", ["append", "write_summary", "writing", "make_again"])
def test_an_end_that_could_not_be_written_is_written_later(
    office: Office, now: list[float], monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    run, path, restore = _stopped_unwritten(office, monkeypatch, refused)
    assert "Operation not permitted" in _status(office, run)["note"]
    now[0] += 31
    office.settle()
    assert not (path / "summary.json").exists() or json.loads((path / "summary.json").read_text())["phase"] != "stopped"
    restore()
    office.settle()
    assert not (path / "report.html").exists() or refused == "write_summary"
    now[0] += 31
    office.settle()
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["phase"], summary["exports"]["adapter"]) == ("stopped", str(path / "adapter"))
    assert (path / "report.html").exists()
    assert _kinds(office, run)[-1] == "run-stopped"
    assert _status(office, run)["note"] == ""
    assert sum("Operation not permitted" in line for line in office.said) == 1


@pytest.mark.parametrize("refused", ["append", "write_summary"])
def test_an_end_that_could_not_be_written_is_written_after_a_restart(
    office: Office, now: list[float], monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    run, path, restore = _stopped_unwritten(office, monkeypatch, refused)
    office.stop()
    office.start()  # which does not succeed either
    office.stop()
    restore()
    office.start()
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["phase"], summary["exports"]["adapter"]) == ("stopped", str(path / "adapter"))
    assert _kinds(office, run)[-1] == "run-stopped"
    now[0] += 31
    before = (path / "summary.json").stat().st_mtime_ns
    office.settle()
    assert (path / "summary.json").stat().st_mtime_ns == before
