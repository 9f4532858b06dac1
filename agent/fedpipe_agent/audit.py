"""The record of what leaves this silo: `audit.jsonl` in the state folder, one line per publication, chained by hashes.

Owns how lines come into the file. They are kept in memory until `flush`: a chunk costs its hash and little more.
A process that ends by itself leaves a line `stopped`; where `started` follows something else, the process before was
killed, and what it published within the last tick may be missing. `audit.head` names a line that must be there, so that
an end that was cut off shows as well, also after the next start.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedpipe_agent.audit_files import FILE_NAME, HEAD, Head, append, cut_torn_line, find_end, move_aside, write_head
from fedpipe_agent.errors import unusable
from fedpipe_wire.hash_chain import FIRST, chained

HEAD_EVERY_S = 600.0


class AuditRecord:
    """Used by the daemon's thread only; the state folder must be locked.

    Args:
        folder: the state folder.
        max_bytes: size at which the next file is begun.
        agent: whose record it is.
        now: the wall clock, with its zone.
        log: takes one line for the owner, where the record is not as it was left.

    Raises:
        StateFolderError: here and in all methods, if the disk refuses. What leaves must be recorded, so the agent ends.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        agent: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._folder, self._max_bytes, self._now = folder, max_bytes, now
        self._waiting: list[dict[str, Any]] = []
        self._noted, self._noted_at = -1, now()
        with self._telling():
            torn = cut_torn_line(folder)
            end = find_end(folder)
            if end.line == 0 and not end.told:
                write_head(folder, Head(0, FIRST))
        if end.told:
            log(_warning(folder, end.told))
        self._line, self._hash = end.line, end.hash
        self.add("started", agent=agent, **({"torn_bytes": torn} if torn else {}), **end.told)
        self.flush()
        with self._telling():
            self._note_head()

    def add(self, kind: str, **fields: object) -> None:
        """Have a line written at the next `flush`; its time is now."""
        self._waiting.append({"time": self._now().isoformat(timespec="milliseconds"), "kind": kind, **fields})

    def flush(self) -> None:
        """Write what waits; where the disk refuses, all of it waits on."""
        if not self._waiting:
            return
        number, newest, lines = self._line, self._hash, []
        for fields in self._waiting:
            number += 1
            line = chained({"line": number, **fields}, newest)
            newest = line["hash"]
            lines.append(json.dumps(line).encode() + b"\n")
        with self._telling():
            size = append(self._folder, b"".join(lines))
            self._line, self._hash = number, newest
            self._waiting.clear()
            if size >= self._max_bytes:
                self._note_head(full=True)
                move_aside(self._folder, self._line)
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

    def _note_head(self, *, full: bool = False) -> None:
        if self._noted == self._line:
            return
        write_head(self._folder, Head(self._line, self._hash, full))
        self._noted, self._noted_at = self._line, self._now()


def _warning(folder: Path, told: dict[str, Any]) -> str:
    advice = "Compare it with a backup and with the coordinator's record"
    if "head_gone" in told:
        return f"WARNING: {folder / HEAD} is gone or damaged: lines of {FILE_NAME} may have been taken away. {advice}"
    return (
        f"WARNING: lines {told['missing_from']} to {told['missing_to']} of {folder / FILE_NAME} are gone, or are "
        f"others than were written: somebody has changed the record, or put it back from a backup. {advice}"
    )
