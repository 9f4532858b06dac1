"""The federation's own record: several processes write it, kills come in between, and somebody changes it."""

import contextlib
import json
import multiprocessing
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedpipe_coordinator.audit import federation_audit
from fedpipe_coordinator.audit.chronicle import Chronicle
from fedpipe_coordinator.audit.federation_audit import AUDIT, LOCK, NEWEST, AuditError, Entry, FederationAudit, harmless
from fedpipe_coordinator.audit.refusals import Refusals
from fedpipe_coordinator.audit.sources import AuditSources
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.records.line_files import append_lines
from fedpipe_coordinator.store import SqliteStore
from fedpipe_wire.hash_chain import chained, written

WHEN = datetime(2030, 1, 1, tzinfo=UTC)


def record(folder: Path) -> FederationAudit:
    return FederationAudit(folder, lambda: WHEN)


def findings(folder: Path) -> list[tuple[int, str]]:
    return [(each.line, each.what) for each in AuditSources(Home(folder)).verify_federation().findings]


def test_what_is_recorded_is_read_back_in_order(tmp_path: Path) -> None:
    audit = record(tmp_path)
    audit.append("enrolled", "st-mary", "st-mary was enrolled", {"fingerprint": "ab"})
    newest = audit.append_all([Entry("refused", "st-mary", "a"), Entry("revoked", "st-mary", "b")])
    first, second, third = audit.lines()
    assert {key: first[key] for key in ("number", "time", "kind", "who", "text", "data")} == {
        "number": 1,
        "time": "2030-01-01T00:00:00.000+00:00",
        "kind": "enrolled",
        "who": "st-mary",
        "text": "st-mary was enrolled",
        "data": {"fingerprint": "ab"},
    }
    assert [line["kind"] for line in (second, third)] == ["refused", "revoked"]
    assert (newest.number, newest.hash) == (3, third["hash"])
    assert "data" not in second
    assert findings(tmp_path) == []


def test_hostile_names_and_texts_are_bounded_and_cannot_break_a_line(tmp_path: Path) -> None:
    record(tmp_path).append("refused", "\x1b[31m" + "x" * 10_000, "a\nb\u2028" + "y" * 10_000)
    (line,) = record(tmp_path).lines()
    assert line["who"].startswith("\\x1b[31mxx")
    assert (len(line["who"]), len(line["text"])) == (131, 4003)
    assert findings(tmp_path) == []


@pytest.mark.parametrize("text", ["\x1b]0;evil\x07", "\u202e", "a/\nb", "\ud800", "é" * 500])
def test_text_from_elsewhere_is_shown_in_plain_ascii(text: str) -> None:
    shown = harmless(text, 100)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 103


def _append_many(folder: Path, who: str) -> None:
    for number in range(25):
        FederationAudit(folder).append("refused", who, f"{who} {number}")


def test_processes_that_append_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(tmp_path, name)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    lines = record(tmp_path).lines()
    assert [line["number"] for line in lines] == list(range(1, 76))
    for name in names:
        assert [line["text"] for line in lines if line["who"] == name] == [f"{name} {number}" for number in range(25)]
    assert findings(tmp_path) == []


class KilledError(BaseException):
    """Nothing handles it."""


def _kill_at(step: int, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    """Die before the n-th thing that is done to the disk; the last one done may be cut short."""
    steps = {"left": step}

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            if steps["left"] == 0:
                if function is append_lines and cut:
                    with args[0].open("ab") as file:
                        file.write(args[1][0].encode()[:cut])
                raise KilledError
            steps["left"] -= 1
            return function(*args)

        return wrapper

    for name in ("replace_bytes", "sync_folder", "append_lines"):
        monkeypatch.setattr(federation_audit, name, counted(getattr(federation_audit, name)))


@pytest.mark.parametrize("cut", [0, 1, 60])
@pytest.mark.parametrize("step", range(4))
def test_a_kill_at_any_point_leaves_a_record_that_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, cut: int
) -> None:
    record(tmp_path).append("run-began", "_coordinator", "first")
    entries = [Entry("refused", "a", "second"), Entry("refused", "a", "third")]
    with monkeypatch.context() as patched:
        _kill_at(step, patched, cut)
        with contextlib.suppress(KilledError):
            record(tmp_path).append_all(entries)
    assert findings(tmp_path) == [], "nothing that was written down is missing, if not yet in the file"
    record(tmp_path).append("refused", "a", "after the kill")
    texts = [line["text"] for line in record(tmp_path).lines()]
    assert texts in (["first", "after the kill"], ["first", "second", "third", "after the kill"])
    assert findings(tmp_path) == []


def _ten(folder: Path) -> Path:
    for number in range(10):
        record(folder).append("refused", "a", f"line {number + 1}")
    return folder / AUDIT


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda lines: [lines[0].replace(b"line 1", b"line 9"), *lines[1:]], (1, "edited")),
        (lambda lines: lines[:3] + lines[4:], (4, "out-of-place")),
        (lambda lines: lines[1:], (1, "out-of-place")),
        (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], (4, "out-of-place")),
        (lambda lines: [*lines[:5], lines[2], *lines[5:]], (6, "out-of-place")),
        (lambda lines: [*lines[:5], b"{}", *lines[5:]], (6, "edited")),
        (lambda lines: [*lines[:5], b"\xff", *lines[5:]], (6, "unreadable")),
        (lambda lines: lines[:7], (8, "out-of-place")),
        (lambda lines: lines[:0], (1, "out-of-place")),
    ],
)
def test_whatever_is_done_to_a_line_is_found_and_placed(
    tmp_path: Path, harm: Callable[[list[bytes]], list[bytes]], found: tuple[int, str]
) -> None:
    path = _ten(tmp_path)
    assert findings(tmp_path) == []
    path.write_bytes(b"".join(line + b"\n" for line in harm(path.read_bytes().splitlines())))
    assert findings(tmp_path)[0] == found
    record(tmp_path).append("refused", "a", "and it goes on")
    assert findings(tmp_path), "what was done shows for ever"


def test_the_last_line_alone_comes_back_for_it_is_written_down_beside(tmp_path: Path) -> None:
    path = _ten(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert findings(tmp_path) == []
    record(tmp_path).append("refused", "a", "next")
    assert path.read_bytes().splitlines(keepends=True)[:10] == lines
    assert findings(tmp_path) == []


def test_a_line_that_somebody_added_is_found_before_and_after_the_next_one(tmp_path: Path) -> None:
    path = _ten(tmp_path)
    last = json.loads(path.read_bytes().splitlines()[-1])
    forged = chained({**last, "number": 11, "text": "all is well"}, last["hash"])
    with path.open("a") as file:
        file.write(written(forged) + "\n")
    assert findings(tmp_path) == [(11, "added")]
    record(tmp_path).append("refused", "a", "next")
    assert findings(tmp_path) == [(12, "out-of-place")]


def test_lines_that_cannot_be_read_are_taken_out_and_the_record_says_so(tmp_path: Path) -> None:
    path = _ten(tmp_path)
    harmed = path.read_bytes().replace(b'"line 4"', b"garbage", 1)
    path.write_bytes(harmed)
    assert findings(tmp_path) == [(4, "unreadable"), (5, "out-of-place")]
    text = record(tmp_path).mend()
    assert text is not None
    assert "1 lines" in text
    assert path.with_name("audit.jsonl.damaged-1").read_bytes() == harmed
    assert record(tmp_path).lines()[-1]["kind"] == "records-damaged"
    (finding,) = AuditSources(Home(tmp_path)).verify_federation().findings
    assert (finding.line, finding.what, finding.explained_by) == (4, "out-of-place", 11)
    assert "numbers 4 to 4 are missing" in finding.text
    assert record(tmp_path).mend() is None


def test_a_record_whose_notes_beside_it_are_gone_goes_on_and_says_so_for_ever(tmp_path: Path) -> None:
    _ten(tmp_path)
    (tmp_path / NEWEST).unlink()
    assert findings(tmp_path) == [(10, "gone")]
    for _ in range(2):
        record(tmp_path).append("refused", "a", "next")
        assert findings(tmp_path) == [(11, "gone")]
    assert [(line["number"], line["kind"]) for line in record(tmp_path).lines()][10:] == [
        (11, "newest-gone"),
        (12, "refused"),
        (13, "refused"),
    ]


@pytest.mark.parametrize("by", ["command", "coordinator"])
def test_lines_of_commands_cut_off_with_the_notes_put_back_are_found_for_ever(tmp_path: Path, by: str) -> None:
    SqliteStore(Home(tmp_path).store).close()
    path = _ten(tmp_path)
    assert findings(tmp_path) == []
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:7]))
    (tmp_path / NEWEST).write_bytes(lines[6])
    assert findings(tmp_path) == [(7, "edited")]
    for _ in range(2):
        if by == "command":
            record(tmp_path).append("refused", "a", "next")
        else:
            store = SqliteStore(Home(tmp_path).store)
            chronicle = Chronicle(record(tmp_path), store, Refusals(lambda: 0.0), pytest.fail)
            chronicle.started("tests")
            chronicle.stopped()
            store.close()
        assert findings(tmp_path) == [(8, "out-of-place")]


def test_notes_that_were_edited_to_hold_half_a_character_are_found_and_stop_nobody(tmp_path: Path) -> None:
    path = _ten(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    (tmp_path / NEWEST).write_bytes(lines[-1].replace(b"line 10", b"\\ud800"))
    assert (10, "edited") in findings(tmp_path)
    record(tmp_path).append("refused", "a", "next")
    assert (10, "edited") in findings(tmp_path)


def test_a_process_that_is_stopped_while_it_writes_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    record(tmp_path).append("refused", "a", "one")
    with federation_audit._lock(tmp_path / LOCK, 1.0, os.O_RDWR), pytest.raises(AuditError, match="another process"):
        record(tmp_path).append_all([Entry("refused", "a", "two")], wait_s=0.05)
    assert len(record(tmp_path).lines()) == 1


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"nowhere.*Make room"):
        record(tmp_path / "nowhere").append("refused", "a", "one")
