"""The service where something is wrong: full or missing disks, reports that nobody can use, blobs nobody needs."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from office import TOPICS, Office
from run_support import device, evaluated, job, planned, ref, scored, survey, trained

from fedpipe_coordinator import work
from fedpipe_coordinator.exchange import TransferDone
from fedpipe_coordinator.housekeeping import needed_blobs
from fedpipe_coordinator.intake import SPOILT_FETCHES
from fedpipe_coordinator.merging import WorkError
from fedpipe_coordinator.records.run_folder import RecordsFullError, RunFolder
from fedpipe_coordinator.runs.run_events import Aggregate, MakePlans, Planned, Send, WorkDelayed, WorkFailed
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_coordinator.store import StoreError
from fedpipe_coordinator.worker import phase_failed
from fedpipe_wire import envelope
from fedpipe_wire.agent_messages import BlobMissing, Presence, Profile
from fedpipe_wire.blob_bits import BlobDiskError, encode_bitmap
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_outcomes import BlobFailed
from fedpipe_wire.blob_receiver import BlobReceiver
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.coordinator_messages import Ack, BlobRequest, EndTask, TrainTask, TurnedAway, Welcome
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.messages import SCHEMA_VERSION, encode
from fedpipe_wire.topics import Address


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    office = Office(tmp_path)

    def plans(state: RunState, action: MakePlans, *_: object) -> Planned:
        adapter = state.adapter or office.blobs.add_bytes(b"the first adapter of this run")
        return planned(state.model_copy(update={"adapter": adapter}), action)

    monkeypatch.setattr(work, "make_plans", plans)
    office.say(Profile(profile=device("a")))
    office.say(Presence(state="online", session="1"))
    office.heard()
    yield office
    office.stop()


def _training(office: Office, folder: Path | None = None) -> str:
    """A run whose one agent has its training task."""
    run = office.service.submit(job(), str(folder) if folder else None)
    office.say(survey().model_copy(update={"run": run}))
    office.say(scored().model_copy(update={"run": run}))
    office.settle()
    assert isinstance(office.heard()[-1], TrainTask)
    return run


def _state(office: Office, run: str) -> RunState:
    state = office.service.runs[run]
    stored = {state.run: state for state in office.store.runs()}
    assert stored[run] == state
    return state


# --- reports that nobody can use --------------------------------------------------------------------------------


def test_an_update_of_a_run_that_is_not_known_is_declined_and_its_agent_let_go(office: Office) -> None:
    offer = trained("a", 1)
    office.say(offer)
    ack, end = office.heard()
    assert isinstance(ack, Ack)
    assert (ack.accepted, ack.sha256, ack.run) == (False, offer.update.sha256, offer.run)
    assert "knows no run" in ack.reason
    assert isinstance(end, EndTask)
    assert offer.run in office.said[-1]


def test_a_message_of_a_later_schema_is_named_and_changes_nothing(office: Office) -> None:
    run = _training(office)
    before = _state(office, run)
    outside = envelope.Envelope(SCHEMA_VERSION + 1, "m", 99)
    message = encode(trained("a", 1).model_copy(update={"run": run}))
    office.agent.publish(TOPICS.up("a", "report"), message, properties=outside.properties())
    office.pump()
    assert f"schema {SCHEMA_VERSION + 1}" in office.said[-1]
    assert "upgrade the older side" in office.said[-1]
    assert _state(office, run) == before


@pytest.mark.parametrize(
    ("bitmap", "known", "said"),
    [
        (encode_bitmap(1, 1), False, "is not offered here"),
        (encode_bitmap(1, 99), True, "bitmap"),
        ("!", True, "bitmap"),
    ],
)
def test_a_request_for_chunks_that_cannot_be_met_is_named(
    office: Office, bitmap: str, *, known: bool, said: str
) -> None:
    run = _training(office)
    adapter = _state(office, run).adapter
    assert adapter is not None
    office.say(BlobMissing(sha256=adapter.sha256 if known else "0" * 64, bitmap=bitmap))
    assert said in office.said[-1]


def test_an_offer_over_its_plans_size_is_declined_before_a_byte_is_fetched(office: Office) -> None:
    run = _training(office)
    offer = trained("a", 1).model_copy(update={"run": run})
    large = offer.model_copy(update={"update": ref("a" * 64).model_copy(update={"size": 1 << 40})})
    office.say(large)
    office.settle()
    (ack,) = [message for message in office.heard() if isinstance(message, Ack)]
    assert not ack.accepted
    assert f"{1 << 40} bytes, its plan allows" in ack.reason


def test_an_update_whose_bytes_are_not_those_of_its_name_is_declined(office: Office) -> None:
    run = _training(office)
    offer = trained("a", 1).model_copy(update={"run": run})
    office.say(offer)
    done = TransferDone("a", offer.update.sha256, None, "bytes of another name (3 attempts)", spoilt=True)
    for _ in range(SPOILT_FETCHES - 1):
        office.service._transfer_done(done)
        assert not [message for message in office.heard() if isinstance(message, Ack)], "a broker may have done that"
        member = _state(office, run).members["a"]
        assert (member.standing, member.note) == ("offered", done.reason)
        assert member.fetch_at is not None
    office.service._transfer_done(done)
    (ack,) = [message for message in office.heard() if isinstance(message, Ack)]
    assert not ack.accepted
    assert "another name" in ack.reason


def test_bytes_that_never_match_their_name_are_said_to_be_spoilt(tmp_path: Path) -> None:
    now = [0.0]
    receiver = BlobReceiver(BlobStore(tmp_path, reserve_bytes=0), lambda: now[0], settings=BlobSettings(attempts=3))
    wrong = BlobRef(sha256="0" * 64, size=4, chunk_bytes=4)
    receiver.expect(wrong, "a")
    for _ in range(3):
        now[0] += 20.0
        receiver.tick(now[0])
        receiver.on_chunk(Address("a", "up", "blob", wrong.sha256, 0), b"evil")
    (failed,) = [outcome for outcome in receiver.take() if isinstance(outcome, BlobFailed)]
    assert (failed.spoilt, failed.hopeless) == (True, False)
    assert f"blob named {wrong.sha256} has bytes of" in failed.reason


# --- one identity -----------------------------------------------------------------------------------------------


def test_a_second_agent_of_a_name_is_turned_away_and_hears_no_task(office: Office) -> None:
    run = _training(office)
    before = _state(office, run)
    office.say(Presence(state="online", session="2", instance="elsewhere"))
    (turned,) = office.heard()
    assert isinstance(turned, TurnedAway)
    assert turned.session == "2"
    assert _state(office, run) == before
    assert "elsewhere" not in turned.reason
    office.say(Presence(state="offline", session="2", instance="elsewhere"))
    (turned,) = office.heard()
    assert isinstance(turned, TurnedAway)
    assert office.ask(op="agents")["agents"]["a"]["online"]
    assert office.ask(op="agents")["agents"]["a"]["turned_away"]
    assert sum("turned away" in line for line in office.said) == 1


def test_an_agent_is_welcomed_before_its_task(office: Office) -> None:
    _training(office)
    office.say(Presence(state="online", session="1"))
    assert [type(message) for message in office.heard()] == [Welcome, TrainTask]


# --- disks ------------------------------------------------------------------------------------------------------


def test_a_full_disk_delays_a_transfer_and_declines_nothing(office: Office) -> None:
    run = _training(office)
    offer = trained("a", 1).model_copy(update={"run": run})
    office.free_bytes = 10
    office.say(offer)
    assert not office.heard()
    member = _state(office, run).members["a"]
    assert (member.standing, member.trained) == ("offered", offer)
    assert "make room" in member.note
    office.free_bytes = 1 << 40
    office.say(offer)
    (request,) = office.heard()
    assert isinstance(request, BlobRequest)


@pytest.mark.parametrize(
    ("error", "delayed"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (BlobDiskError("needs 5 bytes, 4 are free"), True),
        (WorkError("merging failed (30): OSError: [Errno 28] No space left on device"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (ValueError("something else"), False),
    ],
)
def test_only_a_full_disk_delays_work(error: Exception, *, delayed: bool) -> None:
    wrapped = RuntimeError("around it")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        assert isinstance(phase_failed("aggregating")(each), WorkDelayed if delayed else WorkFailed)


def test_a_run_without_room_waits_and_says_so(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(work, "make_plans", full)
    run = office.service.submit(job(), None)
    office.say(survey().model_copy(update={"run": run}))
    office.say(scored().model_copy(update={"run": run}))
    office.settle()
    assert _state(office, run).phase == "planning"
    assert "No space left on device" in office.ask(op="status")["runs"][0]["note"]


def test_records_that_do_not_fit_are_written_when_there_is_room(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, now = RunFolder.append, [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def full(*_: object) -> None:
        raise RecordsFullError("the run's folder cannot be written: no space left")

    monkeypatch.setattr(RunFolder, "append", full)
    run = _training(office)
    office.say(evaluated(1).model_copy(update={"run": run}))
    office.settle()
    folder = RunFolder(office.folder / "runs" / run)
    assert folder.audit() == []
    assert "no space left" in office.ask(op="status")["runs"][0]["note"]
    assert sum("no space left" in line for line in office.said) == 1
    monkeypatch.setattr(RunFolder, "append", append)
    office.service._write_out()
    assert folder.audit() == []
    now[0] += 31
    office.service._write_out()
    kinds = [line["kind"] for line in folder.audit()]
    assert kinds[:2] == ["run-began", "joined"]
    assert kinds[-1] == "evaluated"
    assert [line["number"] for line in folder.audit()] == list(range(1, len(kinds) + 1))
    assert office.ask(op="status")["runs"][0]["note"] == ""
    assert office.store.lines(run) == []


def test_a_run_whose_own_folder_is_gone_ends_with_the_reason_and_the_next_begins(
    office: Office, tmp_path: Path
) -> None:
    run = _training(office, tmp_path / "elsewhere" / "run")
    office.settle()
    second = office.service.submit(job(), None)
    shutil.rmtree(tmp_path / "elsewhere")
    office.say(evaluated(1).model_copy(update={"run": run}))
    office.settle()
    state = _state(office, run)
    assert state.phase == "failed"
    assert f"{tmp_path / 'elsewhere' / 'run'} cannot be written" in state.note
    assert not (tmp_path / "elsewhere").exists()
    assert [type(message).__name__ for message in office.heard()] == ["EndTask", "SurveyTask"]
    assert office.service.runs[second].open
    office.stop()
    office.start()
    assert office.service.runs[second].open


def test_a_store_that_is_full_ends_the_service_and_nothing_is_acknowledged_that_is_not_kept(office: Office) -> None:
    run = _training(office)
    before = _state(office, run)
    ((pages,),) = office.store._db.execute("PRAGMA page_count")
    office.store._db.execute(f"PRAGMA max_page_count={pages}")
    after = before.model_copy(update={"note": "x" * 1_000_000})
    told = Send("a", Ack(run=run, round=1, sha256="0" * 64, accepted=True))
    with pytest.raises(StoreError, match="make room on its disk"):
        office.service._become(before, after, (told,))
    assert not [message for message in office.heard() if isinstance(message, Ack)]
    office.stop()
    office.start()
    assert office.service.runs[run].phase == "training"


def test_what_was_stored_and_not_written_out_is_in_the_file_after_a_restart(office: Office) -> None:
    run = office.service.submit(job(), None)
    office.say(survey().model_copy(update={"run": run}))
    folder = RunFolder(office.folder / "runs" / run)
    assert folder.audit() == []
    office.service._actor.worker.close()  # as a kill: nothing is written out
    office.store.close()
    office.start()
    office.service._write_out()
    assert [line["kind"] for line in folder.audit()][:3] == ["run-began", "joined", "surveyed"]


def test_a_run_that_ended_untold_is_told_after_a_restart(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kill comes between the report and the summary, which is written last."""
    run = office.service.submit(job(), None)
    folder = office.folder / "runs" / run
    write = RunFolder.write_summary

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write_summary", killed)
    with pytest.raises(KeyboardInterrupt):
        office.ask(op="stop", run=run)
    assert not (folder / "summary.json").exists()
    monkeypatch.setattr(RunFolder, "write_summary", write)
    office.store.close()
    office.start()
    assert json.loads((folder / "summary.json").read_text())["phase"] == "stopped"
    assert (folder / "report.html").exists()
    assert [line["kind"] for line in RunFolder(folder).audit()] == ["run-began", "joined", "run-stopped"]


# --- blobs ------------------------------------------------------------------------------------------------------


def test_what_no_run_needs_is_removed_whole_or_in_part_and_what_is_received_stays(office: Office) -> None:
    run = _training(office)
    offer = trained("a", 1).model_copy(update={"run": run})
    office.say(offer)
    left = office.blobs.add_bytes(b"left by a run before")
    blobs = office.folder / "blobs"
    for name in ("1" * 64, "2" * 64):
        (blobs / f"{name}.part").write_bytes(b"x")
        (blobs / f"{name}.map").write_bytes(b"x")
    stray = offer.update.model_copy(update={"sha256": "3" * 64})
    office.service._exchange.fetch("a", stray)
    office.service._collect()
    adapter = _state(office, run).adapter
    assert adapter is not None
    # what was removed has lost its name, and its space is freed in another thread
    assert {path.name for path in blobs.iterdir() if path.suffix != ".gone"} == {
        adapter.sha256,
        *(f"{name}.{kind}" for name in (offer.update.sha256, "3" * 64) for kind in ("part", "map")),
    }
    assert not office.blobs.has(left.sha256)
    assert needed_blobs([_state(office, run)]) == {adapter.sha256, offer.update.sha256}


def test_nothing_is_collected_while_the_worker_makes_something(office: Office) -> None:
    new: list[Any] = []
    release_r, release_w = os.pipe()

    def make() -> WorkFailed:
        new.append(office.blobs.add_bytes(b"an adapter that no run names yet"))
        os.read(release_r, 1)
        return WorkFailed("nothing", "")

    office.service._actor.worker.do("no run", make, lambda _: WorkFailed("nothing", ""))
    while not new:
        pass
    office.service._collect()
    assert office.blobs.has(new[0].sha256)
    os.write(release_w, b"x")
    office.settle()
    office.service._tick(0.0)
    assert not office.blobs.has(new[0].sha256)
    os.close(release_r)
    os.close(release_w)


def test_a_folder_of_blobs_that_was_removed_is_made_again_and_an_update_waits_with_the_reason(office: Office) -> None:
    run = _training(office)
    shutil.rmtree(office.folder / "blobs")
    office.service._collect()
    assert any("old blobs stay" in line for line in office.said)
    offer = trained("a", 1).model_copy(update={"run": run})
    (office.folder / "blobs").write_text("in its place")
    office.say(offer)
    assert "a: " in office.ask(op="status")["runs"][0]["note"]
    assert "cannot make the folder" in office.ask(op="status")["runs"][0]["note"]
    (office.folder / "blobs").unlink()
    office.heard()
    office.say(offer)
    (request,) = office.heard()
    assert isinstance(request, BlobRequest)
    state = _state(office, run)
    aggregate = Aggregate(1, {"a": offer.update.sha256})
    with pytest.raises(WorkError, match=f"global adapter {office.folder / 'blobs'}.*damaged or gone"):
        work.aggregate(state, aggregate, office.blobs, office.folder)
