"""The record of what leaves this silo: `audit.jsonl` in the state folder, one line per publication, chained by hashes.

Owns how lines come into the file. They are kept in memory until `flush`: a chunk costs its hash and little more.
A process that ends by itself leaves a line `stopped`; where `started` follows something else, the process before was
killed, and what it published within the last tick may be missing. `audit.head` names a line that must be there, so that
an end that was cut off shows as well.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from fedpipe_agent.durable import write_durably
from fedpipe_agent.errors import unusable
from fedpipe_wire.blob_partial import sync_folder
from fedpipe_wire.hash_chain import START, chained

FILE_NAME, HEAD = "audit.jsonl", "audit.head"
OLDER = "audit-*.jsonl"
"""Files that were full, in the order of their names."""
MAX_LINE_BYTES = 65_536
HEAD_EVERY_S = 600.0


class AuditRecord:
    """Used by the daemon's thread only; the state folder must be locked.

    Args:
        folder: the state folder.
        max_bytes: size at which the next file is begun.
        agent: whose record it is.
        now: the wall clock, with its zone.

    Raises:
        StateFolderError: here and in all methods, if the disk refuses. What leaves must be recorded, so the agent ends.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        agent: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder, self._max_bytes, self._now = folder, max_bytes, now
        self._waiting: list[dict[str, Any]] = []
        self._noted_at = now()
        with self._telling():
            torn = _cut_torn_line(folder / FILE_NAME)
            self._line, self._hash = _last(folder)
        self.add("started", agent=agent, **({"torn_bytes": torn} if torn else {}))
        self.flush()
        with self._telling():
            self._note_head()

    def add(self, kind: str, **fields: object) -> None:
        """Have a line written at the next `flush`; its time is now."""
        self._waiting.append({"time": self._now().isoformat(timespec="milliseconds"), "kind": kind, **fields})

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        lines = []
        for fields in waiting:
            self._line += 1
            line = chained({"line": self._line, **fields}, self._hash)
            self._hash = line["hash"]
            lines.append(json.dumps(line).encode() + b"\n")
        with self._telling():
            with self._open() as file:
                file.write(b"".join(lines))
                size = file.tell()
            if size >= self._max_bytes:
                self._rotate()
            elif (self._now() - self._noted_at).total_seconds() >= HEAD_EVERY_S:
                self._note_head()

    def close(self) -> None:
        """Write that this process ends by itself, and all before it."""
        self.add("stopped")
        self.flush()
        with self._telling():
            self._note_head()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unusable(self._folder, error) from error

    def _rotate(self) -> None:
        self._note_head()
        (self._folder / FILE_NAME).rename(self._folder / OLDER.replace("*", f"{self._line:012d}"))
        sync_folder(self._folder)

    def _open(self) -> IO[bytes]:
        descriptor = os.open(self._folder / FILE_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return os.fdopen(descriptor, "ab")

    def _note_head(self) -> None:
        with self._open() as file:
            os.fsync(file.fileno())
        self._noted_at = self._now()
        write_durably(self._folder / HEAD, json.dumps({"line": self._line, "hash": self._hash}))


def files(folder: Path) -> list[Path]:
    """The files of a record, oldest first."""
    newest = folder / FILE_NAME
    return [*sorted(folder.glob(OLDER)), *([newest] if newest.exists() else [])]


def _cut_torn_line(path: Path) -> int:
    """Take away a line that a crash has cut short; how many bytes."""
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
        except (ValueError, KeyError, TypeError, RecursionError):
            return 0, START
    return 0, START
