"""The federation's own record, `audit.jsonl` in its folder: who was let in and out, what was refused, which runs were.

Owns the file's form and how lines get into it, from the coordinator and from commands that run beside it: one at a
time, chained by their hashes, each whole or not at all. Lines are written down beside the file first, in
`audit.newest`; what a kill keeps from the file, whoever writes next puts there. So lines that are missing at the end
were removed by somebody.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedpipe_coordinator.audit.stored_end import keep_end, read_end
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.home_lock import holder
from fedpipe_coordinator.records.line_files import Keys, append_lines, last_line, read_lines, replace_bytes, set_aside
from fedpipe_coordinator.store_interface import Newest
from fedpipe_wire.blob_partial import sync_folder
from fedpipe_wire.hash_chain import FIRST, chained, written
from fedpipe_wire.sealing import COORDINATOR

AUDIT = "audit.jsonl"
NEWEST = "audit.newest"
LOCK = "audit.lock"
KEYS: Keys = {"number": int, "time": str, "kind": str, "who": str, "text": str}
"""What a line has at least."""
WAIT_S = 10.0
"""How long to wait for another process that is writing."""
_MAX_TEXT = 4000
_POLL_S = 0.01


class AuditError(Exception):
    """The federation's record cannot be written or read; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Something to be recorded.

    Attributes:
        kind: Stable, for programs: `enrolled`, `renewed`, `revoked`, `refused`, and so on.
        who: Whom it is about, or who did it: an agent's name, or the coordinator's.
        text: For people.
        data: More for programs; what JSON holds.
    """

    kind: str
    who: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)


NEWEST_GONE = "newest-gone"
"""A line by which the record says that nothing told whether lines before it are missing."""
_NEWEST_GONE = Entry(
    "newest-gone", COORDINATOR, f"{NEWEST} was gone or damaged: lines before this one may have been taken away"
)


def harmless(text: str, longest: int = _MAX_TEXT) -> str:
    """Text from elsewhere in plain ASCII, all else as escapes, and of bounded length."""
    shown = ascii(text[: longest + 1])[1:-1]
    return shown if len(shown) <= longest else f"{shown[:longest]}..."


class FederationAudit:
    """Appends to the record of a federation's folder. Any number of processes may do so.

    Args:
        folder: The federation's.
        clock: The time that lines are stamped with.
    """

    def __init__(self, folder: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.folder, self._clock = folder, clock
        self.path = folder / AUDIT

    def append(self, kind: str, who: str, text: str, data: Mapping[str, Any] | None = None) -> None:
        """Record one thing; it is on disk when this returns.

        Raises:
            AuditError: if it cannot be recorded.
        """
        store = Home(self.folder).store
        newest = self.append_all([Entry(kind, who, text, data or {})], known=read_end(store))
        if holder(self.folder) is None:  # else the coordinator keeps it, with what it writes next
            keep_end(store, newest)

    def append_all(self, entries: Sequence[Entry], *, wait_s: float = WAIT_S, known: Newest | None = None) -> Newest:
        """Record several things in their order; the newest line afterwards.

        Args:
            entries: what.
            wait_s: how long to wait for another process that is writing.
            known: a line that must be there. Where it is not, the chain goes on from it, and shows the gap.

        Raises:
            AuditError: if they cannot be recorded, none of them, or not now, for another process is writing.
        """
        with self._writing(wait_s):
            gone = [_NEWEST_GONE] if self._newest_gone() else []
            newest = self._finish()
            if known is not None and not self._holds(known):
                newest = Newest(max(newest.number, known.number), known.hash)
            lines = []
            for entry in [*gone, *entries]:
                line = chained(self._line(entry, newest.number + 1), newest.hash)
                newest = Newest(line["number"], line["hash"])
                lines.append(written(line))
            if lines:
                replace_bytes(self.folder / NEWEST, "".join(f"{line}\n" for line in lines).encode())
                sync_folder(self.folder)
                append_lines(self.path, lines)
            return newest

    def mend(self) -> str | None:
        """Take out lines that cannot be read, with a copy of the file beside, and record that; what happened, if so.

        Raises:
            AuditError: if the file cannot be read or written.
        """
        with self._writing(WAIT_S):
            self._finish()
            done = set_aside(self.path, KEYS)
        if done is None:
            return None
        copy, bad = done
        text = f"{bad} lines of {self.path} could not be read and were taken out. The file as it was is {copy.name}"
        self.append("records-damaged", "", text, {"file": AUDIT, "lines": bad, "copy": copy.name})
        return text

    def lines(self) -> list[dict[str, Any]]:
        """What is recorded so far, as far as it can be read.

        Raises:
            AuditError: if the file cannot be.
        """
        with self._telling():
            return read_lines(self.path, KEYS)

    def snapshot(self) -> tuple[bytes, bytes]:
        """The file and what was written down beside it, as they are while nobody writes.

        Raises:
            AuditError: if they cannot be read, or another process writes all the time.
        """
        with self._telling(), contextlib.ExitStack() as stack:
            if (self.folder / LOCK).exists():
                stack.enter_context(_lock(self.folder / LOCK, WAIT_S, os.O_RDONLY))
            return tuple(path.read_bytes() if path.exists() else b"" for path in (self.path, self.folder / NEWEST))  # type: ignore[return-value]  # a generator of two

    def _line(self, entry: Entry, number: int) -> dict[str, Any]:
        stamp = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
        line = {"number": number, "time": stamp, "kind": entry.kind, "who": harmless(entry.who, 128)}
        text = entry.text if len(entry.text) <= _MAX_TEXT else f"{entry.text[:_MAX_TEXT]}..."
        return line | {"text": text} | ({"data": dict(entry.data)} if entry.data else {})

    def _newest_gone(self) -> bool:
        """Whether somebody has taken away what every line was written down in first."""
        last = last_line(self.path, KEYS)
        return last is not None and "hash" in last and not read_lines(self.folder / NEWEST, KEYS)

    def _holds(self, known: Newest) -> bool:
        lines = [*read_lines(self.path, KEYS), *read_lines(self.folder / NEWEST, KEYS)]
        return any((line["number"], line.get("hash")) == (known.number, known.hash) for line in lines)

    def _finish(self) -> Newest:
        """Put into the file what an earlier process was kept from putting there; the newest line."""
        last = last_line(self.path, KEYS)
        in_file = Newest(0, FIRST) if last is None else Newest(last["number"], str(last.get("hash", FIRST)))
        noted = read_lines(self.folder / NEWEST, KEYS)
        if not noted:
            return in_file
        missing = [line for line in noted if line["number"] > in_file.number]
        if missing and missing[0].get("prev") == in_file.hash:
            append_lines(self.path, [written(line) for line in missing])
        # Where the file has lost more than that, the chain goes on from what was written, and shows the gap.
        # So it does where somebody has added lines to the file.
        return Newest(noted[-1]["number"], str(noted[-1].get("hash", FIRST)))

    @contextlib.contextmanager
    def _writing(self, wait_s: float) -> Iterator[None]:
        with self._telling(), _lock(self.folder / LOCK, wait_s, os.O_RDWR | os.O_CREAT):
            yield

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise AuditError(
                f"the federation's record {self.path} cannot be used: {error.strerror or error}. Make room there, and "
                "make it readable and writable for this user"
            ) from error


@contextlib.contextmanager
def _lock(path: Path, wait_s: float, flags: int) -> Iterator[None]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise AuditError(
                        f"another process has been writing to the record beside {path} for {wait_s:g} s: see whether "
                        "one of FedPipe's commands is stopped, and try again"
                    ) from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)
