"""Files of lines on disks that refuse, and with lines that nobody wrote."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from small_disk import fill, small_disk

from fedpipe_coordinator.records.run_folder import AUDIT, ROUNDS, RecordsFullError, RunFolder

GOOD: list[dict[str, Any]] = [{"round": number, "agents": [], "text": "x" * 900} for number in (1, 2, 3)]


def _line(number: int, length: int) -> str:
    return json.dumps({"round": number, "agents": [], "text": "x" * length})


@pytest.mark.parametrize("length", [10, 1000, 1900, 3000, 5000, 20_000])
def test_a_full_disk_takes_a_line_whole_or_not_at_all(tmp_path: Path, length: int) -> None:
    """The file's last page has some room, the disk none: part of a line fits."""
    with small_disk(tmp_path / "small", 1) as disk:
        folder = RunFolder(disk / "run")
        folder.claim()
        folder.append(ROUNDS, [_line(1, 3000)])
        filler = fill(disk)
        taken = [1]
        for number in range(2, 6):
            try:
                folder.append(ROUNDS, [_line(number, length)])
            except RecordsFullError:
                break
            taken.append(number)
        else:
            assert length == 10
        filler.unlink()
        folder.append(ROUNDS, [_line(99, length)])
        assert [line["round"] for line in folder.rounds()] == [*taken, 99]
        assert folder.set_aside(ROUNDS) is None


def test_a_disk_that_takes_a_part_at_a_time_gets_all_of_it_and_one_that_fails_then_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.append(ROUNDS, [_line(1, 100)])
    synced: list[int] = []

    def refuse(handle: int) -> None:
        synced.append(handle)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    before = (tmp_path / ROUNDS).read_bytes()
    with pytest.raises(RecordsFullError, match="No space left on device"):
        folder.append(ROUNDS, [_line(2, 100)])
    assert synced
    assert (tmp_path / ROUNDS).read_bytes() == before


@pytest.mark.parametrize(
    "bad",
    [
        b"\xff\x00garbage",
        b"",
        b"not json",
        b"{",
        b"17",
        b"[1]",
        b"null",
        b"{}",
        b'{"round": "2", "agents": []}',
        b'{"round": 2}',
        b'{"agents": []}',
        b"[" * 100_000,
        b"\x00" * 5000,
    ],
)
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_line_that_cannot_be_read_is_set_aside_and_the_others_stay(tmp_path: Path, bad: bytes, at: int) -> None:
    folder = RunFolder(tmp_path)
    lines = [json.dumps(line).encode() for line in GOOD]
    lines.insert(at, bad)
    harmed = b"\n".join(lines) + b"\n"
    (tmp_path / ROUNDS).write_bytes(harmed)
    assert folder.rounds() == GOOD
    assert folder.last_number(ROUNDS, "round") == 3
    said = folder.set_aside(ROUNDS)
    assert said is not None
    assert said[0].startswith(f"1 lines of {tmp_path / ROUNDS} cannot be read")
    assert (tmp_path / "rounds.jsonl.damaged-1").read_bytes() == harmed
    assert (tmp_path / ROUNDS).read_bytes() == b"".join(json.dumps(line).encode() + b"\n" for line in GOOD)
    assert folder.set_aside(ROUNDS) is None
    (tmp_path / ROUNDS).write_bytes(bad + b"\n")
    assert "rounds.jsonl.damaged-2" in str(folder.set_aside(ROUNDS))
    assert folder.rounds() == []


def test_a_file_that_is_gone_or_empty_has_nothing_to_set_aside(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.set_aside(AUDIT) is None
    (tmp_path / AUDIT).touch()
    assert folder.set_aside(AUDIT) is None
    assert [path.name for path in tmp_path.iterdir()] == [AUDIT]
