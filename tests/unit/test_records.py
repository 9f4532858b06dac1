"""A run's folder: what is in its files after anything that may happen to them."""

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_support import PEAK, RUN, Drive, begin, evaluated, metrics, scored, shape, survey, trained

from fedpipe_coordinator.records.record_trail import RecordTrail
from fedpipe_coordinator.records.run_folder import RunFolder, round_record, write_atomically
from fedpipe_coordinator.runs.run_events import AgentOnline, Note, SaveRound, UpdateStored
from fedpipe_coordinator.runs.run_state import RoundResult
from fedpipe_coordinator.store import SqliteStore
from fedpipe_wire.hash_chain import FIRST

WHEN = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)


def _result() -> RoundResult:
    """Round 1 of a run in which a trained and b could carry no plan."""
    drive = Drive(begin(number=1))
    for agent in ("a", "b"):
        drive(AgentOnline(agent, f"{agent}-1"))
    for agent in ("a", "b"):
        drive.hear(agent, survey())
    for agent in ("a", "b"):
        drive.hear(agent, scored())
    drive.plan({"b": 0})
    drive.hear("a", trained("a", 1), 5.0)
    drive(UpdateStored("a", 1, trained("a", 1).update.sha256), 2.0)
    drive.aggregate()
    drive.hear("a", evaluated(2))
    (saved,) = drive.all(SaveRound)
    return saved.result


def test_a_round_record_has_what_was_planned_beside_what_was_measured() -> None:
    record = round_record(_result(), metrics(0.5), shape(), 4321)
    assert {key: record[key] for key in ("round", "wall_s", "deadline_s", "metric", "truncation_tail")} == {
        "round": 1,
        "wall_s": 7.0,
        "deadline_s": 100.0,
        "metric": {"loss": 0.5, "accuracy": 0.5, "examples": 4},
        "truncation_tail": 0.01,
    }
    a, b = record["agents"]
    # up is (32, 8) at rank 2, out is (8, 8) at rank 1, the head 3 * 8 + 3
    assert a["trainable_parameters"] == 2 * (32 + 8) + 1 * (8 + 8) + 27
    assert a["ranks"] == {"up": 2, "out": 1}
    assert (a["predicted_peak_bytes"], a["measured_peak_bytes"]) == (PEAK, PEAK)
    assert (a["predicted_round_s"], a["measured_round_s"]) == (20.0, 7.0)
    assert (a["examples"], a["planned_examples"], a["up_bytes"], a["down_bytes"]) == (12, 12, 1000, 4321)
    assert a["status"] == "accepted"
    assert b == {"agent": "b", "status": "idle", "note": "too small"}


def test_a_recorded_round_is_known_by_its_number(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    record = round_record(_result(), None, shape(), 1)
    folder.append("rounds.jsonl", [json.dumps(record)])
    assert RunFolder(tmp_path / "run").rounds() == [record]
    assert RunFolder(tmp_path / "run").last_number("rounds.jsonl", "round") == 1
    assert record["metric"] is None


OF_AUDIT = {"number": 1, "time": "t", "kind": "failed", "round": 0, "agent": None, "text": ""}
LINES = st.dictionaries(st.text(max_size=5), st.text(max_size=30), max_size=3).map(lambda line: {**line, **OF_AUDIT})


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(LINES, max_size=5), last=LINES, cut=st.integers(1, 10_000))
def test_a_line_that_a_kill_cut_short_does_not_spoil_the_others(
    tmp_path: Path, values: list[dict[str, Any]], last: dict[str, Any], cut: int
) -> None:
    folder = RunFolder(tmp_path)
    path = tmp_path / "audit.jsonl"
    path.unlink(missing_ok=True)
    for value in values:
        folder.append("audit.jsonl", [json.dumps(value)])
    whole = path.read_bytes() if path.exists() else b""
    folder.append("audit.jsonl", [json.dumps(last, ensure_ascii=False)])
    line = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + line[: cut % len(line)])
    assert folder.audit() == values
    folder.append("audit.jsonl", [json.dumps(last, ensure_ascii=False)])
    assert folder.audit() == [*values, last]


def test_a_cut_line_longer_than_what_is_read_at_once_is_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    one, two = {**OF_AUDIT, "text": "one"}, {**OF_AUDIT, "text": "two"}
    folder.append("audit.jsonl", [json.dumps(one)])
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b"x" * 20_000)
    folder.append("audit.jsonl", [json.dumps(two)])
    assert folder.audit() == [one, two]


@pytest.mark.parametrize(
    "text", ["line\u2028end", "next\x85line", "a\nb\rc\x0b\x0c\x1c", "\x00\x1b[31m", "ä\U0001f4a9"]
)
def test_texts_of_agents_do_not_break_the_lines(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        trail = RecordTrail(store, lambda _: folder, lambda: WHEN)
        noted = Note("failed", text, "a", 3, {"kind": text}), Note("run-done", "done")
        notes = [trail.note("r", note) for note in noted]
    folder.append("audit.jsonl", [line.text for line in notes])
    assert folder.last_number("audit.jsonl", "number") == 2
    first, second = folder.audit()
    assert second.pop("prev") == first.pop("hash")
    assert first.pop("prev") == FIRST
    assert first == {
        "number": 1,
        "time": "2030-01-01T12:00:00.000+00:00",
        "kind": "failed",
        "round": 3,
        "agent": "a",
        "text": text,
        "data": {"kind": text},
    }
    assert "data" not in second


def test_the_summary_has_the_documented_keys(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append("rounds.jsonl", [json.dumps(round_record(_result(), metrics(), shape(), 1))])
    summary = folder.write_summary(begin().model_copy(update={"note": "a </script> note"}), {"adapter": "out/adapter"})
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (summary["schema"], summary["run"], summary["job"]) == (1, RUN, "tiny")
    assert summary["exports"] == {"adapter": "out/adapter", "merged": None}
    assert summary["initial_metric"] is None
    assert [record["round"] for record in summary["rounds"]] == [1]


def test_the_summary_reads_back_as_it_was_said(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    said = {
        "round": 1,
        "numbers": [0.1, 1e-300, 2**60, -0.0, float("inf")],
        "text": "ä\u2028\x00\U0001f4a9",
        "none": None,
        "agents": [],
    }
    folder.append("rounds.jsonl", [json.dumps(said)])
    folder.write_summary(begin(), {})
    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert json.loads(text)["rounds"] == [said]
    assert text.startswith('{\n  "schema": ')


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).audit() == []
