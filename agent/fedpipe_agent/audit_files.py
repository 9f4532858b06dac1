"""The files of the record of what leaves this silo, and where it ends.

Owns what a crash may do to these files and what only a person can have done. Lines are synced before `audit.head` names
the last of them, and `audit.head` is there before the first line: so neither a kill nor a power cut takes away a line
that it names.
"""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpipe_agent.durable import write_durably
from fedpipe_wire.blob_partial import sync_folder
from fedpipe_wire.hash_chain import FIRST

FILE_NAME, HEAD = "audit.jsonl", "audit.head"
OLDER = "audit-*.jsonl"
"""Files that were full, in the order of their names."""
MAX_LINE_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Head:
    """What `audit.head` says.

    Attributes:
        line: The number of a line that must be there; 0 before the first.
        hash: Its hash.
        full: Its file was full with it and moved aside, so that it may have been taken elsewhere as a whole.
    """

    line: int
    hash: str
    full: bool = False

    def held_by(self, line: object) -> bool:
        """Whether a line is the one, or follows it where its file may have been taken elsewhere."""
        if not isinstance(line, dict):
            return False
        if self.full and (line.get("line"), line.get("prev")) == (self.line + 1, self.hash):
            return True
        return (line.get("line"), line.get("hash")) == (self.line, self.hash)


@dataclass(frozen=True, slots=True)
class End:
    """Where a record goes on.

    Attributes:
        line: The number of the last line that was made, as far as is known.
        hash: Its hash.
        told: For the next line, what is not as it was left: `missing_from` and `missing_to`, numbers of lines that are
            gone, or `head_gone`.
    """

    line: int
    hash: str
    told: dict[str, Any]


def files(folder: Path) -> list[Path]:
    """The files of a record, oldest first."""
    newest = folder / FILE_NAME
    return [*sorted(folder.glob(OLDER)), *([newest] if newest.exists() else [])]


def append(folder: Path, data: bytes) -> int:
    """Append lines to the newest file; its size afterwards, in bytes.

    Raises:
        OSError: if the disk does not take all of them; the file is as it was.
    """
    left = memoryview(data)
    with contextlib.closing(_Descriptor(folder)) as file:
        before = os.fstat(file.number).st_size
        try:
            while left:
                left = left[os.write(file.number, left) :]
        except OSError:
            with contextlib.suppress(OSError):  # what was written of them is written again
                os.ftruncate(file.number, before)
            raise
        return os.fstat(file.number).st_size


def write_head(folder: Path, head: Head) -> None:
    """Have a line named that must be there from now on.

    Raises:
        OSError: if it cannot be written; the former head is still there.
    """
    with contextlib.closing(_Descriptor(folder)) as file:
        os.fsync(file.number)
    full = {"full": True} if head.full else {}
    write_durably(folder / HEAD, json.dumps({"line": head.line, "hash": head.hash, **full}))


def move_aside(folder: Path, line: int) -> None:
    """The newest file is full; `line` is its last."""
    (folder / FILE_NAME).rename(folder / OLDER.replace("*", f"{line:012d}"))
    sync_folder(folder)


def read_head(folder: Path) -> Head | None:
    """What `audit.head` says; None where it is not there.

    Raises:
        ValueError: if it says nothing that can be understood.
        OSError: if it cannot be read.
    """
    path = folder / HEAD
    if not path.exists():
        return None
    with path.open("rb") as file:
        text = file.read(MAX_LINE_BYTES)
    try:
        head = json.loads(text)
        return Head(int(head["line"]), str(head["hash"]), bool(head.get("full")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path} names no line") from error


def find_end(folder: Path) -> End:
    """Where a record goes on, and what is not as it was left; a line that was cut short must be away already.

    Where lines that `audit.head` knows of are gone, the chain goes on from there, so that the gap shows for ever.
    """
    line, hash_ = _last(folder)
    try:
        head = read_head(folder)
    except ValueError:
        return End(line, hash_, {"head_gone": True})
    if head is None:
        return End(line, hash_, {"head_gone": True} if any(path.stat().st_size for path in files(folder)) else {})
    if head.line == 0 or _holds(folder, head):
        return End(line, hash_, {})
    if head.full and not files(folder):
        return End(head.line, head.hash, {})
    missing = {"missing_from": min(line + 1, head.line), "missing_to": head.line}
    return End(max(line, head.line), head.hash, missing)


def cut_torn_line(folder: Path) -> int:
    """Take away a line that a crash has cut short; how many bytes."""
    path = folder / FILE_NAME
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MAX_LINE_BYTES))
        tail = file.read()
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn:
            file.truncate(size - torn)
        return torn


class _Descriptor:
    """The newest file, open for appending without a buffer: what was refused must not be written by the close."""

    def __init__(self, folder: Path) -> None:
        self.number = os.open(folder / FILE_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        os.close(self.number)


def _last(folder: Path) -> tuple[int, str]:
    """Number and hash of the last line. Where it is damaged the chain begins anew, which shows as a break."""
    for path in reversed(files(folder)):
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LINE_BYTES))
            lines = file.read().splitlines()
        if not lines:
            continue
        try:
            line = json.loads(lines[-1])
            return int(line["line"]), str(line["hash"])
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return 0, FIRST
    return 0, FIRST


def _holds(folder: Path, head: Head) -> bool:
    """Whether the line is there; a head is written whenever a file is full, so it is in one of the newest two."""
    wanted = json.dumps(head.hash).encode()
    for path in files(folder)[-2:]:
        with path.open("rb") as file:
            while text := file.readline(MAX_LINE_BYTES):
                if wanted in text and head.held_by(_read(text)):
                    return True
    return False


def _read(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
