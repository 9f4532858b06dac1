"""Runs' records, as `fedpipe audit` judges them: what is whole, what was changed, and what an agent says beside."""

import hashlib
import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from federation import Ended
from office import Office
from run_support import device, job, scored, survey

from fedpipe_agent.audit import AuditRecord
from fedpipe_agent.audit_files import files
from fedpipe_agent.audited_transport import AuditedTransport
from fedpipe_coordinator import work
from fedpipe_coordinator.audit.comparison import compare, read_sent
from fedpipe_coordinator.audit.sources import AuditSources
from fedpipe_coordinator.audit.verification import Known, Verdict, verify
from fedpipe_coordinator.cli import main
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.merging import WorkError
from fedpipe_coordinator.store import Newest
from fedpipe_wire.agent_messages import Presence, Profile
from fedpipe_wire.hash_chain import FIRST, chained, written
from fedpipe_wire.memory import MemoryBroker, MemoryTransport

Command = Callable[..., Ended]


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    def plans(*_: object) -> None:
        raise WorkError("no plans here")

    monkeypatch.setattr(work, "make_plans", plans)
    office = Office(tmp_path)
    office.say(Profile(profile=device("a")))
    office.say(Presence(state="online", session="1"))
    yield office
    office.stop()


@pytest.fixture
def fedpipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process."""

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fedpipe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    return run


def some_run(office: Office) -> str:
    """A run with some lines in its record, that failed."""
    run = office.service.submit(job(), None)
    office.say(survey().model_copy(update={"run": run}))
    office.say(scored().model_copy(update={"run": run}))
    office.settle()
    assert office.service.runs[run].phase == "failed"
    return run


def record_of(office: Office, run: str) -> Path:
    return office.folder / "runs" / run / "audit.jsonl"


def judge(office: Office, run: str, *, asked: bool = True) -> Verdict:
    sources = AuditSources(Home(office.folder))
    (stored,) = [each for each in sources.runs() if each.run == run]
    return sources.verify_run(stored, asked=asked)


def findings(office: Office, run: str) -> list[tuple[int, str]]:
    return [(each.line, each.what) for each in judge(office, run).findings]


def test_a_run_is_whole_while_it_goes_on_and_when_it_is_over(office: Office) -> None:
    run = office.service.submit(job(), None)
    office.say(survey().model_copy(update={"run": run}))
    assert (findings(office, run), judge(office, run, asked=False).findings) == ([], ()), "all waits in the store"
    office.settle()
    assert findings(office, run) == []
    office.say(scored().model_copy(update={"run": run}))
    assert findings(office, run) == [], "some lines are in the file, some wait"
    office.settle()
    verdict = judge(office, run)
    assert (verdict.findings, verdict.unchained, verdict.notices) == ((), 0, ())
    assert verdict.lines == len(record_of(office, run).read_bytes().splitlines()) > 3


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda lines: [*lines[:1], lines[1].replace(b'"joined"', b'"gone"'), *lines[2:]], (2, "edited")),
        (lambda lines: [*lines[:1], lines[1].replace(b'", "', b'","', 1), *lines[2:]], (2, "edited")),
        (lambda lines: lines[:1] + lines[2:], (2, "out-of-place")),
        (lambda lines: [lines[1], lines[0], *lines[2:]], (1, "out-of-place")),
        (lambda lines: lines[:-1], (-1, "removed")),
        (lambda lines: lines[:0], (1, "removed")),
    ],
)
def test_what_is_done_to_a_run_s_lines_is_found_in_its_file_and_line(
    office: Office, harm: Callable[[list[bytes]], list[bytes]], found: tuple[int, str]
) -> None:
    run = some_run(office)
    path = record_of(office, run)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(line + b"\n" for line in harm(lines)))
    place, what = found
    first = judge(office, run).findings[0]
    assert (first.line, first.what) == (len(lines) if place < 0 else place, what)
    assert first.file == str(path)


def test_all_lines_made_anew_from_one_on_are_found_by_the_hash_that_the_store_keeps(office: Office) -> None:
    run = some_run(office)
    path = record_of(office, run)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    newest = FIRST
    for line in lines:
        line["text"] = line["text"].replace("a", "b")
        made = chained(line, newest)
        line.update(made)
        newest = made["hash"]
    path.write_text("".join(written(line) + "\n" for line in lines))
    assert findings(office, run) == [(len(lines), "edited")]


def test_a_record_that_lost_its_end_goes_on_and_shows_the_gap_for_ever(office: Office) -> None:
    run = office.service.submit(job(), None)
    office.settle()
    path = record_of(office, run)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    office.stop()
    office.start()
    office.ask(op="stop", run=run)
    office.settle()
    found = judge(office, run).findings
    assert [(each.line, each.what, each.explained_by) for each in found] == [(len(lines), "out-of-place", None)]
    assert f"numbers {len(lines)} to {len(lines)} are missing" in found[0].text


def test_lines_that_were_taken_out_for_they_could_not_be_read_are_explained(office: Office) -> None:
    run = office.service.submit(job(), None)
    office.say(survey().model_copy(update={"run": run}))
    office.settle()
    path = record_of(office, run)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"garbage\n", *lines[2:]]))
    office.stop()
    office.start()
    office.ask(op="stop", run=run)
    office.settle()
    (found,) = judge(office, run).findings
    assert (found.line, found.what) == (2, "out-of-place")
    damaged = [json.loads(line) for line in path.read_bytes().splitlines() if b"records-damaged" in line]
    assert found.explained_by == damaged[0]["number"]
    assert any("cannot be read" in notice for notice in judge(office, run).notices)


def test_lines_of_an_older_version_are_unchained_and_no_error(office: Office) -> None:
    run = office.service.submit(job(), None)
    office.settle()
    path = record_of(office, run)
    office.stop()
    old = [json.loads(line) for line in path.read_bytes().splitlines()]
    path.write_text(
        "".join(json.dumps({k: v for k, v in line.items() if k not in ("prev", "hash")}) + "\n" for line in old)
    )
    with closing(sqlite3.connect(Home(office.folder).store)) as db, db:
        db.execute("DELETE FROM newest")
    office.start()
    office.ask(op="stop", run=run)
    office.settle()
    verdict = judge(office, run)
    assert (verdict.findings, verdict.unchained) == ((), len(old))
    assert verdict.notices[0].startswith(f"unchained before line {len(old) + 1}")
    assert [json.loads(line)["number"] for line in path.read_bytes().splitlines()][-1] == verdict.lines
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *lines]))
    assert findings(office, run) == [(1, "out-of-place")], "lines cannot be put before the chain as older ones"


def test_a_chain_cannot_be_taken_off_to_change_what_it_held() -> None:
    lines = [chained({"number": 1, "kind": "a", "text": "one"})]
    lines.append(chained({"number": 2, "kind": "a", "text": "two"}, lines[0]["hash"]))
    bare = {key: value for key, value in lines[0].items() if key not in ("prev", "hash")} | {"text": "other"}
    data = "".join(written(line) + "\n" for line in (bare, lines[1])).encode()
    verdict = verify("f", data, Known(Newest(2, lines[1]["hash"])))
    assert [(each.line, each.what) for each in verdict.findings] == [(2, "out-of-place")]
    bare_all = "".join(written({**bare, "number": at}) + "\n" for at in (1, 2)).encode()
    verdict = verify("f", bare_all, Known(Newest(2, lines[1]["hash"])))
    assert [each.what for each in verdict.findings] == ["edited"]


def test_a_run_s_folder_that_is_gone_is_a_finding_where_the_run_is_asked_for(office: Office) -> None:
    run = some_run(office)
    shutil.rmtree(record_of(office, run).parent)
    assert findings(office, run) == [(1, "gone")]
    assert [each.what for each in judge(office, run, asked=False).findings] == ["gone"]


def test_a_folder_that_its_owner_named_may_be_elsewhere_unless_the_run_is_asked_for(
    office: Office, tmp_path: Path, fedpipe: Command
) -> None:
    (office.folder / "federation.toml").touch()
    run = office.service.submit(job(), str(tmp_path / "named"))
    office.settle()
    assert fedpipe("audit", "verify", "--home", office.folder).code == 0
    shutil.rmtree(tmp_path / "named")
    verdict = judge(office, run, asked=False)
    assert (verdict.findings, len(verdict.notices)) == ((), 1)
    assert [each.what for each in judge(office, run).findings] == ["gone"]


def test_runs_that_the_store_does_not_know_are_found_by_what_tells_of_them(office: Office, fedpipe: Command) -> None:
    (office.folder / "federation.toml").touch()
    there, gone = some_run(office), some_run(office)
    assert fedpipe("audit", "verify", "--home", office.folder).code == 0
    office.stop()
    for path in office.folder.glob("coordinator.db*"):
        path.unlink()
    shutil.rmtree(record_of(office, gone).parent)
    for restarted in (False, True):
        if restarted:  # a coordinator that makes a new store changes nothing about it
            office.start()
        found = fedpipe("audit", "verify", "--home", office.folder, "--format", "json")
        assert found.code == ExitCode.AUDIT_BROKEN
        kinds = {each["file"]: [f["what"] for f in each["findings"]] for each in json.loads(found.out)["records"]}
        assert kinds[str(record_of(office, there))] == kinds[str(record_of(office, gone))] == ["unknown"]
        assert fedpipe("audit", "verify", gone, "--home", office.folder).code == ExitCode.AUDIT_BROKEN


def test_a_store_that_is_no_store_is_an_error_of_the_store(tmp_path: Path, fedpipe: Command) -> None:
    (tmp_path / "federation.toml").touch()
    (tmp_path / "coordinator.db").write_bytes(b"no database at all, for sure" * 100)
    ended = fedpipe("audit", "verify", "--home", tmp_path)
    assert ended.code == ExitCode.STORE_UNUSABLE
    assert "restore it from a backup" in ended.said


def test_the_command_names_file_and_line_and_ends_with_its_code(office: Office, fedpipe: Command) -> None:
    (office.folder / "federation.toml").touch()
    whole = fedpipe("audit", "verify", "--home", office.folder, "--format", "json")
    assert whole.json()["whole"]
    assert [each["file"] for each in whole.json()["records"]] == [str(office.folder / "audit.jsonl")]
    path = office.folder / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"started", b"stopped"))
    ended = fedpipe("audit", "verify", "--home", office.folder)
    assert ended.code == ExitCode.AUDIT_BROKEN
    assert f"{path}:1: line 1 was changed" in ended.out.replace("\n", "")
    assert fedpipe("audit", "verify", "nothing", "--home", office.folder).code == ExitCode.USAGE


# --- beside an agent's record -----------------------------------------------------------------------------------

UPDATE, OTHER = "a" * 64, "b" * 64
UP = "fedpipe/tests/agents/st-mary/up"


def of_agent(*entries: dict[str, Any]) -> bytes:
    newest, texts = FIRST, []
    for number, entry in enumerate(entries, 1):
        line = chained({"line": number, **entry}, newest)
        newest = line["hash"]
        texts.append(json.dumps(line) + "\n")
    return "".join(texts).encode()


def message(name: str, channel: str = "report") -> dict[str, Any]:
    line = {"kind": "message", "topic": f"{UP}/{channel}", "bytes": 100, "sha256": "0" * 64, "id": name}
    return line | {"n": 5, "type": "trained", "blob": UPDATE}


def chunk(sha256: str, number: int, size: int = 60) -> dict[str, Any]:
    line = {"kind": "chunk", "topic": f"{UP}/blob/{sha256}/{number}", "bytes": size, "sha256": "1" * 64}
    return line | {"blob": sha256, "chunk": number}


def noted(kind: str, **data: Any) -> dict[str, Any]:
    return {"number": 7, "kind": kind, "agent": "st-mary", "text": "", "data": data}


def differences(sent: bytes, *lines: dict[str, Any]) -> list[tuple[str, str]]:
    found = compare("st-mary", read_sent(sent), {"run-1": lines})
    return [(each.kind, each.what) for each in found.differences]


def test_two_records_that_agree_have_no_differences() -> None:
    sent = of_agent(message("m1"), chunk(UPDATE, 0), chunk(UPDATE, 1), message("m2", "presence"))
    lines = [noted("trained", message_id="m1"), noted("accepted", sha256=UPDATE, bytes=120, message_id="m1")]
    found = compare("st-mary", read_sent(sent), {"run-1": lines})
    assert (found.differences, found.agreed, found.unnamed) == ((), 2, {"up/presence": 1})
    assert differences(sent, *lines, {**noted("accepted", sha256=OTHER), "agent": "another"}) == []


def test_what_the_coordinator_took_and_the_agent_never_sent_is_named() -> None:
    sent = of_agent(message("m1"), chunk(UPDATE, 0))
    assert differences(
        sent, noted("accepted", sha256=OTHER, bytes=60, message_id="m1"), noted("trained", message_id="x")
    ) == [
        ("not-sent", OTHER),
        ("not-sent", "x"),
        ("not-taken", UPDATE),
    ]
    assert differences(sent, noted("accepted", sha256=UPDATE, bytes=61, message_id="m1")) == [("shorter", UPDATE)]


def test_what_was_sent_and_not_taken_is_named_with_the_reason() -> None:
    sent = of_agent(message("m1"), chunk(UPDATE, 0))
    found = compare("st-mary", read_sent(sent), {"run-1": [noted("rejected", sha256=UPDATE, reason="not finite")]})
    (difference,) = found.differences
    assert (difference.kind, difference.run) == ("not-taken", "run-1")
    assert "not finite" in difference.text


def test_what_an_agent_refused_and_what_only_measured_its_link_was_not_sent() -> None:
    refused = {**message("m9"), "kind": "refused", "text": "\u00e4\u202e"}
    probe = {**chunk(OTHER, 0), "kind": "probe"}
    sent = read_sent(of_agent({"kind": "started", "agent": "st-mary"}, refused, probe, {"kind": "started"}))
    assert (dict(sent.blobs), sent.messages, sent.agents, sent.broken) == ({}, {}, set(), [])
    assert sent.kills == 1


def test_a_later_part_of_an_agent_s_record_can_be_compared_and_a_folder_of_all(
    tmp_path: Path, fedpipe: Command
) -> None:
    (tmp_path / "federation.toml").touch()
    lines = of_agent(message("m1"), chunk(UPDATE, 0), message("m2")).splitlines(keepends=True)
    (tmp_path / "audit-000000000002.jsonl").write_bytes(b"".join(lines[:2]))
    (tmp_path / "audit.jsonl").write_bytes(lines[2])
    assert read_sent(lines[2]).broken == []
    assert read_sent(b"".join([lines[0], lines[2]])).broken == [2]
    ended = fedpipe("audit", "compare", tmp_path, "--home", tmp_path, "--format", "json")
    assert (ended.json()["agent"], ended.json()["unnamed"]) == ("st-mary", {"up/report": 2})
    assert [each["what"] for each in ended.json()["differences"]] == [UPDATE]


def test_an_agent_s_record_that_was_changed_is_said_to_be(tmp_path: Path, fedpipe: Command) -> None:
    (tmp_path / "federation.toml").touch()
    path = tmp_path / "agent.jsonl"
    path.write_bytes(of_agent(message("m1"), message("m2")).replace(b"m1", b"m3"))
    ended = fedpipe("audit", "compare", path, "--home", tmp_path)
    assert ended.code == ExitCode.AUDIT_DIFFERS
    assert "line 1 of" in ended.said
    path.write_bytes(of_agent(message("m1")))
    assert fedpipe("audit", "compare", path, "--home", tmp_path).code == 0
    path.write_bytes(b"\xff\n[]\n{}\n" + of_agent({"topic": 5}, {"topic": "fedpipe/x"}))
    assert fedpipe("audit", "compare", path, "--home", tmp_path).code == ExitCode.USAGE


def test_a_record_that_an_agent_wrote_agrees_with_what_the_coordinator_took(tmp_path: Path, fedpipe: Command) -> None:
    """Written by the agent's own code, through its session with a broker, over several files and a kill."""
    (tmp_path / "federation.toml").touch()
    state = tmp_path / "state"
    state.mkdir()
    blob = hashlib.sha256(b"update").hexdigest()
    said = {"type": "trained", "run": "run-1", "update": {"sha256": blob}}
    for start in range(2):
        record = AuditRecord(state, 600, "st-mary")
        transport = AuditedTransport(MemoryTransport(MemoryBroker(), "st-mary"), record)
        transport.start()
        for number in range(3):
            transport.publish(f"{UP}/blob/{blob}/{number}", b"x" * 60)
            properties = {"id": f"m{start}{number}", "n": str(number)}
            transport.publish(f"{UP}/report", json.dumps(said).encode(), properties=properties)
            record.flush()
    sent = read_sent(b"".join(path.read_bytes() for path in files(state)))
    assert (sent.agents, sent.broken, sent.kills, sent.blobs[blob]) == ({"st-mary"}, [], 1, 360)
    lines = [noted("trained", message_id="m00"), noted("accepted", sha256=blob, bytes=360, message_id="m12")]
    found = compare("st-mary", sent, {"run-1": lines})
    assert (found.agreed, found.differences, found.unnamed) == (2, (), {"up/report": 4})
    ended = fedpipe("audit", "compare", state, "--home", tmp_path, "--format", "json")
    assert (ended.json()["agent"], ended.json()["broken"], ended.json()["kills"]) == ("st-mary", [], 1)
