"""The record of what left the silo: it has all of it, and whatever is done to it shows."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from agent_desk import AGENT
from agent_in_process import new_machine, use_stub_trainer
from run_support import RUN
from small_disk import fill, small_disk
from typer.testing import CliRunner

from fedpipe_agent.audit import HEAD_EVERY_S, AuditRecord
from fedpipe_agent.audit_reading import lines_of, verify
from fedpipe_agent.audited_transport import AuditedTransport
from fedpipe_agent.cli import app
from fedpipe_agent.errors import AuditError, StateFolderError
from fedpipe_wire.hash_chain import chained, check
from fedpipe_wire.memory import MemoryBroker, MemoryTransport
from fedpipe_wire.transport import Received


def written(folder: Path, lines: int = 6, *, max_bytes: int = 1 << 20, closed: bool = True) -> list[dict[str, Any]]:
    """A record of one process, with so many messages."""
    record = AuditRecord(folder, max_bytes, "a")
    for number in range(lines):
        record.add("message", topic="t", bytes=number, sha256="0" * 64, type="trained", run=f"r{number % 2}")
        record.flush()
    if closed:
        record.close()
    return list(lines_of(folder))


# --- what is in it ----------------------------------------------------------------------------------------------


class Wiretap:
    """Everything that reaches the broker from the agent."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.transport = MemoryTransport(broker, "wiretap")
        self.transport.subscribe("#")
        self.transport.start()
        self.heard: list[Received] = []

    def listen(self) -> None:
        while not self.transport.events.empty():
            event = self.transport.events.get()
            if isinstance(event, Received) and f"/agents/{AGENT}/up/" in event.topic:
                self.heard.append(event)


def test_every_byte_that_reaches_the_broker_has_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_stub_trainer(tmp_path, monkeypatch)
    machine, desk = new_machine(tmp_path / "machine")
    tap = Wiretap(machine.broker)
    machine.run(desk)
    machine.close()
    tap.listen()
    lines = [line for line in lines_of(machine.folder / "state") if line["kind"] in ("message", "chunk", "probe")]
    heard = [(each.topic, len(each.payload), hashlib.sha256(each.payload).hexdigest()) for each in tap.heard]
    assert sorted(heard) == sorted((line["topic"], line["bytes"], line["sha256"]) for line in lines)
    ids = {each.properties["id"] for each in tap.heard if each.properties}
    assert ids == {line["id"] for line in lines if line["kind"] == "message"}
    chunks = {(line["blob"], line["chunk"]) for line in lines if line["kind"] == "chunk"}
    assert {blob for blob, _ in chunks} == set(desk.taken.values())
    found = verify(machine.folder / "state")
    assert (found.publications, found.kills) == (len(lines) + 1, []), "and the will of its one connection"
    assert found.published_bytes > sum(len(each.payload) for each in tap.heard)


def test_the_lines_of_a_run_are_its_messages_and_the_chunks_of_its_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_stub_trainer(tmp_path, monkeypatch)
    machine, desk = new_machine(tmp_path / "machine")
    machine.run(desk)
    machine.close()
    lines = list(lines_of(machine.folder / "state", RUN))
    assert {line["kind"] for line in lines} == {"message", "chunk"}
    assert {line["type"] for line in lines if line["kind"] == "message"} >= {"trained", "evaluated"}
    assert {line["blob"] for line in lines if line["kind"] == "chunk"} == set(desk.taken.values())
    assert not list(lines_of(machine.folder / "state", "another-run"))


def test_what_the_broker_does_not_take_is_not_said_to_have_left(tmp_path: Path) -> None:
    record = AuditRecord(tmp_path, 1 << 20, "a")
    transport = AuditedTransport(MemoryTransport(MemoryBroker(), "a"), record)
    assert transport.publish("t/blob/x/0", b"payload") is None
    record.close()
    assert [line["kind"] for line in lines_of(tmp_path)] == ["started", "stopped"]


# --- what is done to it -----------------------------------------------------------------------------------------


def _text(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def _set(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(b"".join(lines))


def _edit(path: Path) -> None:
    lines = _text(path)
    line = json.loads(lines[3])
    line["bytes"] += 1
    _set(path, [*lines[:3], json.dumps(line).encode() + b"\n", *lines[4:]])


def _forge_all(path: Path) -> None:
    """One line taken out, and its neighbour made to fit: what comes after does not."""
    lines = _text(path)
    line = json.loads(lines[4])
    line["prev"] = json.loads(lines[2])["hash"]
    _set(path, [*lines[:3], json.dumps(line).encode() + b"\n", *lines[5:]])


def _cut_with_head(path: Path) -> None:
    _set(path, _text(path)[:-1])
    path.with_name("audit.head").unlink()


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "a line edited": (_edit, r"audit\.jsonl, line 4: it was changed.*\(3 lines before it are whole\)"),
    "a line removed": (lambda p: _set(p, _text(p)[:3] + _text(p)[4:]), "line 4: .* taken out"),
    "a line removed and the next one mended": (_forge_all, "line 4: it was changed"),
    "the first line removed": (lambda p: _set(p, _text(p)[1:]), ""),
    "lines swapped": (lambda p: _set(p, [*_text(p)[:2], _text(p)[3], _text(p)[2], *_text(p)[4:]]), "line 3"),
    "a line doubled": (lambda p: _set(p, [*_text(p)[:3], *_text(p)[2:]]), "line 4"),
    "a line of noise": (lambda p: _set(p, [*_text(p)[:3], b"\xff\n", *_text(p)[3:]]), "line 4"),
    "a line without end": (lambda p: _set(p, [*_text(p)[:3], b"[" * 200_000, b"\n", *_text(p)[3:]]), "line 4"),
    "the last line removed": (lambda p: _set(p, _text(p)[:-1]), "ends at line 7, and audit.head names line 8"),
    "the last line cut": (lambda p: _set(p, [*_text(p)[:-1], _text(p)[-1][:20]]), "ends at line 7"),
    "everything removed": (Path.unlink, "ends at line 0"),
    "the last line removed and the head": (_cut_with_head, "audit.head is gone"),
    "the head of noise": (lambda p: p.with_name("audit.head").write_text("x"), "audit.head is damaged"),
}


@pytest.mark.parametrize("name", HARM)
def test_whatever_is_done_to_the_record_shows(tmp_path: Path, name: str) -> None:
    harm, told = HARM[name]
    written(tmp_path)
    assert verify(tmp_path).lines == 8
    harm(tmp_path / "audit.jsonl")
    if told:
        with pytest.raises(AuditError, match=told):
            verify(tmp_path)
        AuditRecord(tmp_path, 1 << 20, "a").close()
        with pytest.raises(AuditError):
            verify(tmp_path)
    else:  # older lines may be kept elsewhere: it is said that they are not here
        assert verify(tmp_path).first == 2


def test_the_chain_goes_on_over_files_and_restarts_and_one_that_is_gone_is_told(tmp_path: Path) -> None:
    for _ in range(2):
        written(tmp_path, lines=10, max_bytes=1000)
    files = sorted(tmp_path.glob("audit-*.jsonl"))
    assert len(files) > 3
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert all(file.stat().st_size < 2000 for file in files)
    assert check(lines_of(tmp_path)) is None
    found = verify(tmp_path)
    assert [line["line"] for line in lines_of(tmp_path)] == [*range(1, found.lines + 1)] == [*range(1, 25)]
    middle = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(AuditError, match=r"line 1: .*taken out"):
        verify(tmp_path)
    files[1].write_bytes(middle)
    files[0].unlink()
    assert verify(tmp_path).first > 1


def test_a_kill_shows_and_loses_only_what_was_not_written(tmp_path: Path) -> None:
    written(tmp_path, closed=False)
    record = AuditRecord(tmp_path, 1 << 20, "a")
    record.add("message", topic="lost", bytes=1)
    del record  # killed before its next tick
    written(tmp_path)
    found = verify(tmp_path)
    assert [line["kind"] for line in lines_of(tmp_path) if line["line"] in found.kills] == ["started", "started"]
    assert not [line for line in lines_of(tmp_path) if line.get("topic") == "lost"]


def test_a_line_that_a_crash_has_cut_is_taken_away_and_told_and_the_chain_goes_on(tmp_path: Path) -> None:
    written(tmp_path, closed=False)
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"line": 9, "time"')
    assert verify(tmp_path).lines == 7, "one that is being written is none yet"
    written(tmp_path)
    (torn,) = [line["torn_bytes"] for line in lines_of(tmp_path) if "torn_bytes" in line]
    assert torn == len(b'{"line": 9, "time"')
    assert verify(tmp_path).kills == [8]


def test_a_damaged_record_does_not_keep_the_agent_from_working_and_stays_broken(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "audit.jsonl"
    _set(path, [*_text(path)[:-1], b"{}\n"])
    written(tmp_path)
    with pytest.raises(AuditError, match="line 8"):
        verify(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 4, 7])
def test_lines_taken_away_while_the_agent_is_stopped_show_after_any_number_of_starts(tmp_path: Path, kept: int) -> None:
    written(tmp_path)
    path = tmp_path / "audit.jsonl"
    _set(path, _text(path)[:kept])
    said: list[str] = []
    for _ in range(2):
        AuditRecord(tmp_path, 1 << 20, "a", log=said.append).close()
        with pytest.raises(AuditError, match=rf"line {kept + 1}: "):
            verify(tmp_path)
    assert [f"lines {kept + 1} to 8 of" in line for line in said] == [True], "told once, kept for ever"
    assert [line["line"] for line in lines_of(tmp_path)][kept:] == [9, 10, 11, 12]


def test_an_end_that_was_made_anew_shows_after_the_next_start(tmp_path: Path) -> None:
    lines = written(tmp_path)
    path = tmp_path / "audit.jsonl"
    forged = chained({**lines[6], "bytes": 0}, lines[5]["hash"])
    more = [chained({**lines[7], "line": 8}, forged["hash"])]
    more.append(chained({"line": 9, "kind": "message"}, more[-1]["hash"]))
    _set(path, _text(path)[:6] + [json.dumps(line).encode() + b"\n" for line in (forged, *more)])
    written(tmp_path)
    with pytest.raises(AuditError, match="line 10: it was changed"):
        verify(tmp_path)


def test_a_head_that_was_gone_at_a_start_is_told_for_ever(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "audit.head").unlink()
    said: list[str] = []
    AuditRecord(tmp_path, 1 << 20, "a", log=said.append).close()
    written(tmp_path)
    with pytest.raises(AuditError, match=r"line 9: when the agent started here, audit\.head was gone"):
        verify(tmp_path)
    assert "audit.head is gone" in said[0]


class KilledError(BaseException):
    """Nothing handles it."""


@pytest.mark.parametrize("max_bytes", [1 << 20, 600])
@pytest.mark.parametrize("step", range(48))
def test_a_kill_between_any_two_writes_is_no_false_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, max_bytes: int
) -> None:
    """Killed before the n-th thing that is done to the disk, of a first process and of a second one."""
    left = step

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError
            return function(*arguments, **named)

        return wrapper

    with monkeypatch.context() as patched:
        for name in ("write", "open", "fsync"):
            patched.setattr(os, name, counted(getattr(os, name)))
        patched.setattr(Path, "rename", counted(Path.rename))
        patched.setattr(Path, "replace", counted(Path.replace))
        with contextlib.suppress(KilledError):
            for _ in range(2):
                written(tmp_path, lines=3, max_bytes=max_bytes, closed=False)
    said: list[str] = []
    verify(tmp_path)
    AuditRecord(tmp_path, max_bytes, "a", log=said.append).close()
    verify(tmp_path)
    assert said == []


@pytest.mark.parametrize("closed", [True, False])
def test_older_files_may_be_moved_away_at_any_time(tmp_path: Path, *, closed: bool) -> None:
    for lines in range(3, 9):
        folder = tmp_path / str(lines)
        folder.mkdir()
        written(folder, lines=lines, max_bytes=600, closed=closed)
        for path in folder.glob("audit-*.jsonl"):
            path.unlink()
        said: list[str] = []
        AuditRecord(folder, 600, "a", log=said.append).close()
        assert (said, verify(folder).first > 1) == ([], True)


def test_a_full_disk_leaves_the_record_whole_and_what_waits_is_written_later(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as folder:
        record = AuditRecord(folder, 1 << 20, "a")
        for number in range(100):
            record.add("message", topic="t" * 100, bytes=number)
        filler = fill(folder, but_bytes=8192)
        before = (folder / "audit.jsonl").read_bytes()
        with pytest.raises(StateFolderError, match="No space left"):
            record.flush()
        assert (folder / "audit.jsonl").read_bytes() == before
        verify(folder)
        filler.unlink()
        record.close()
        assert verify(folder).publications == 100
        assert [line["line"] for line in lines_of(folder)] == list(range(1, 103))


def test_the_end_of_a_long_process_is_noted_now_and_then(tmp_path: Path) -> None:
    clock = [datetime(2030, 1, 1, tzinfo=UTC)]
    record = AuditRecord(tmp_path, 1 << 20, "a", lambda: clock[0])
    for _ in range(3):
        clock[0] += timedelta(seconds=HEAD_EVERY_S)
        record.add("message")
        record.flush()
    _set(tmp_path / "audit.jsonl", _text(tmp_path / "audit.jsonl")[:-1])
    with pytest.raises(AuditError, match=r"ends at line 3, and audit.head names line 4"):
        verify(tmp_path)


def test_a_disk_that_takes_no_line_ends_the_agent(tmp_path: Path) -> None:
    record = AuditRecord(tmp_path, 1 << 20, "a")
    record.add("message")
    (tmp_path / "audit.jsonl").unlink()
    (tmp_path / "audit.jsonl").symlink_to("/dev/full")
    with pytest.raises(StateFolderError, match=r"No space left.*Make room"):
        record.flush()


# --- the commands -----------------------------------------------------------------------------------------------


def _ask(folder: Path, *arguments: str) -> Any:
    config = folder / "agent.toml"
    config.write_text('name = "a"\n')
    return CliRunner().invoke(app, ["audit", *arguments, "--config", str(config)])


def test_verify_and_show_print_for_people_and_programs(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    written(tmp_path / "state", closed=False)
    written(tmp_path / "state")
    said = _ask(tmp_path, "verify")
    assert said.exit_code == 0
    assert "whole: 15 lines, 12 publications" in said.output
    assert "before line 8 the agent was killed" in said.output
    assert json.loads(_ask(tmp_path, "verify", "--format", "json").output)["published_bytes"] == 30
    lines = _ask(tmp_path, "show", "--run", "r1", "--format", "json").output.splitlines()
    assert [json.loads(line)["run"] for line in lines] == ["r1"] * 6
    assert len(_ask(tmp_path, "show").output.splitlines()) == 15
    _edit(tmp_path / "state" / "audit.jsonl")
    broken = _ask(tmp_path, "verify")
    assert isinstance(broken.exception, AuditError)


def test_a_hostile_topic_is_shown_harmlessly(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    record = AuditRecord(tmp_path / "state", 1 << 20, "a")
    record.add("refused", topic="\x1b[2J\n\u202e" + "x" * 10_000, fault="topic", bytes=1)
    record.close()
    said = _ask(tmp_path, "show").output
    assert len(said.splitlines()) == 3
    assert not {"\x1b", "\u202e"} & set(said)
    assert max(map(len, said.splitlines())) < 400


def test_no_record_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    assert "whole: 0 lines" in _ask(tmp_path, "verify").output
