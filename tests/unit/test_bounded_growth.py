"""What an agent may say without end does not grow the coordinator's memory, store or records without end."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
from office import Office
from run_support import device, job, scored, survey, trained

from fedpipe_coordinator import work
from fedpipe_coordinator.exchange import Said
from fedpipe_coordinator.records.note_limits import NOTES_A_ROUND, USUAL
from fedpipe_coordinator.records.retelling import Event
from fedpipe_coordinator.records.run_folder import RunFolder
from fedpipe_coordinator.watchers import MOST_WAITING, Watchers
from fedpipe_wire.agent_messages import Failed, Presence, Profile, Progress, Refused
from fedpipe_wire.blob_bits import BlobDiskError
from fedpipe_wire.coordinator_messages import Ack

LATE_NOTES = NOTES_A_ROUND["late"]


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """With one agent there."""
    office = Office(tmp_path)
    office.say(Profile(profile=device("a")))
    office.say(Presence(state="online", session="1"))
    yield office
    office.stop()


def _training(office: Office) -> str:
    run = office.service.submit(job(), None)
    office.say(survey().model_copy(update={"run": run}))
    office.say(scored().model_copy(update={"run": run}))
    office.settle()
    assert office.service.runs[run].phase == "training"
    office.heard()
    return run


def _late(office: Office, run: str) -> int:
    office.settle()
    return sum(line["kind"] == "late" for line in RunFolder(office.folder / "runs" / run).audit())


def _progress(office: Office, run: str) -> None:
    said = Progress(run=run, round=1, stage="training", done=1, of=2)
    office.service._reception.hear(Said("a", said, ""))


def test_progress_of_runs_that_nobody_follows_is_kept_nowhere(office: Office) -> None:
    run = _training(office)
    office.ask(op="stop", run=run)
    _progress(office, "warm")
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(5000):
        _progress(office, f"unknown-{number}")
        _progress(office, run)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 100_000


def test_a_watcher_that_takes_nothing_misses_progress_and_nothing_else() -> None:
    watchers, queue = Watchers(), SimpleQueue[Event | None]()
    watchers.follow("r", queue, (), over=False)
    for number in range(3 * MOST_WAITING):
        watchers.say("r", {"event": "progress", "number": number})
    assert queue.qsize() == MOST_WAITING
    watchers.say("r", {"event": "aggregated"})
    watchers.end("r")
    assert queue.qsize() == MOST_WAITING + 2


@pytest.mark.parametrize("kind", ["refused", "failed", "trained"])
def test_reports_that_are_not_owed_are_noted_a_few_times_in_a_round_and_all_answered(office: Office, kind: str) -> None:
    run = _training(office)
    for number in range(40):
        match kind:
            case "refused":
                office.say(Refused(run=run, round=99, reason=f"{number}"))
            case "failed":
                office.say(Failed(run=run, round=99, kind="internal", message=f"{number}"))
            case _:
                office.say(trained("a", 99).model_copy(update={"run": run}))
    assert _late(office, run) == LATE_NOTES
    declined = [message for message in office.heard() if isinstance(message, Ack) and not message.accepted]
    assert len(declined) == (40 if kind == "trained" else 0)
    office.ask(op="stop", run=run)
    for _ in range(40):
        office.say(trained("a", 99).model_copy(update={"run": run}))
    assert _late(office, run) <= 2 * LATE_NOTES


@pytest.mark.parametrize("kind", ["offline", "trained"])
def test_what_an_agent_repeats_is_noted_a_few_times_in_a_round_and_then_counted(office: Office, kind: str) -> None:
    run, often = _training(office), 3 * USUAL
    for number in range(often):
        if kind == "offline":
            office.say(Presence(state="offline", session="1"))
            office.say(Presence(state="online", session="1"))
        else:
            office.say(trained("a", 1, number).model_copy(update={"run": run}))
    office.settle()
    assert kind in [line["kind"] for line in RunFolder(office.folder / "runs" / run).audit()]
    office.ask(op="stop", run=run)
    office.settle()
    lines = list(RunFolder(office.folder / "runs" / run).audit())
    kept = sum(line["kind"] == kind for line in lines)
    counted = [line["data"]["count"] for line in lines if line["kind"] == "not-kept" and line["data"]["kind"] == kind]
    assert kept == USUAL
    assert len(counted) == 1
    assert kept + counted[0] == often
    assert all(line["agent"] == "a" for line in lines if line["kind"] == "not-kept")


def test_work_that_waits_for_room_is_noted_once_whatever_is_free(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, tries = [1000.0], [0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def full(*_: object) -> None:
        tries[0] += 1
        raise BlobDiskError(f"the first global adapter needs 5000 bytes, {4000 + tries[0]} are free: make room")

    monkeypatch.setattr(work, "make_plans", full)
    run = office.service.submit(job(), None)
    office.say(survey().model_copy(update={"run": run}))
    office.say(scored().model_copy(update={"run": run}))
    office.settle()
    for _ in range(5):
        now[0] += 31
        office.service._tick(now[0])
        office.settle()
    assert tries[0] > 3
    assert f"{4000 + tries[0]} are free" in office.ask(op="status")["runs"][0]["note"]
    kinds = [line["kind"] for line in RunFolder(office.folder / "runs" / run).audit()]
    assert kinds.count("work-delayed") == 1
