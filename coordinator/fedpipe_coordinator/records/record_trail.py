"""The lines of the runs' records, on their way from the store into the files: each exactly once, and in order.

Owns their numbers and, in the audit record, their chain. A line is stored together with the step that it tells of; it
is appended to its file afterwards, many at a time, and forgotten by the store once the file is synced. After a kill in
between, the number of the file's last whole line says which lines are in it. The store keeps the newest line's number
and hash: where the file's end was taken away, the chain goes on from there and shows the gap.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from fedpipe_coordinator.records.retelling import Event, event_of, retell
from fedpipe_coordinator.records.run_folder import AUDIT, ROUNDS, RunFolder
from fedpipe_coordinator.runs.run_events import Note
from fedpipe_coordinator.store import Line, Newest, Store
from fedpipe_wire.hash_chain import FIRST, chained, written

_KEYS = {AUDIT: "number", ROUNDS: "round"}


class RecordTrail:
    """Lines of all runs. Used by one thread.

    Args:
        store: where lines wait.
        folder: a run's folder.
        clock: the time that lines are stamped with, with its zone.
    """

    def __init__(self, store: Store, folder: Callable[[str], RunFolder], clock: Callable[[], datetime]) -> None:
        self._store, self._folder, self._clock = store, folder, clock
        self._waiting: dict[str, list[Line]] = {}
        self._last: dict[str, Newest] = {}

    def open(self, run: str) -> None:
        """Take up the lines of a run that an earlier process did not write out, or could not."""
        folder = self._folder(run)
        written = {file: folder.last_number(file, key) for file, key in _KEYS.items()}
        left = self._store.lines(run)
        self._waiting[run] = [line for line in left if line.number > written[line.file]]
        self._last[run] = self._newest(run)

    def missing(self, run: str) -> int:
        """How many lines of the audit record the store does not know of: with them it has lost what they tell."""
        known = self._store.last_line(run, AUDIT)
        return 0 if known is None else max(0, self._folder(run).last_number(AUDIT, _KEYS[AUDIT]) - known)

    def note(self, run: str, note: Note) -> Line:
        """The next line of a run's audit record; it counts once it is stored."""
        if run not in self._last:  # its records were complete; an agent spoke of it again
            self._last[run] = self._newest(run)
        last = self._last[run]
        number = last.number + 1
        stamp = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
        said = {"number": number, "time": stamp, "kind": note.kind, "round": note.round, "agent": note.agent}
        line = chained(said | {"text": note.text} | ({"data": note.data} if note.data else {}), last.hash)
        self._last[run] = Newest(number, line["hash"])
        return Line(AUDIT, number, written(line), line["hash"])

    def _newest(self, run: str) -> Newest:
        """The last line of a run's audit record, wherever it is; it need not be chained in one of an older version."""
        stored = self._store.newest(run, AUDIT)
        last = self._folder(run).last_line(AUDIT)
        in_file = Newest(0, FIRST) if last is None else Newest(last["number"], str(last.get("hash", FIRST)))
        if stored is not None and stored.number >= in_file.number:
            return stored
        # The store went back in time, which is said; or it was written by a version that made no chain.
        waiting = [line.number for line in self._store.lines(run) if line.file == AUDIT]
        known = self._store.last_line(run, AUDIT) or 0
        return Newest(max(in_file.number, known, *waiting, 0), in_file.hash)

    def round(self, record: dict[str, Any]) -> Line:
        """The line of a round that is complete; stored twice it is kept once."""
        return Line(ROUNDS, int(record["round"]), json.dumps(record, ensure_ascii=False))

    def event(self, line: Line) -> Event:
        """What watchers are told of a line."""
        return event_of(json.loads(line.text))

    def told(self, run: str) -> list[Event]:
        """All that watchers were told of a run so far, but for progress; what cannot be read is left out."""
        return list(retell(self._lines(run, AUDIT), self._lines(run, ROUNDS)))

    def stored(self, run: str, lines: list[Line]) -> None:
        """These lines are in the store, and wait for `write_out`."""
        self._waiting.setdefault(run, []).extend(lines)

    def waiting(self) -> list[str]:
        """Runs with lines that are not in their files."""
        return [run for run, lines in self._waiting.items() if lines]

    def write_out(self, run: str) -> bool:
        """Append what waits to the run's files, synced; whether a round was among it.

        Raises:
            RecordError: if the folder does not take it; nothing is lost.
            StoreError: if the store cannot be written.
        """
        lines, folder = self._waiting.get(run, []), self._folder(run)
        for file in _KEYS:
            new = [line for line in lines if line.file == file]
            if new:
                folder.append(file, [line.text for line in new])
                self._waiting[run] = [line for line in self._waiting[run] if line.file != file]
                self._store.forget_lines(run, file, new[-1].number)
        return any(line.file == ROUNDS for line in lines)

    def drop(self, run: str) -> None:
        """Nobody is to read what waits any more.

        Raises:
            StoreError: if the store cannot be written.
        """
        for line in self._waiting.pop(run, []):
            self._store.forget_lines(run, line.file, line.number)

    def _lines(self, run: str, file: str) -> list[dict[str, Any]]:
        """A file's lines and those that wait for it."""
        try:
            written = self._folder(run).lines(file)
        except OSError:  # somebody has changed it, or taken it away
            written = []
        return written + [json.loads(line.text) for line in self._waiting.get(run, ()) if line.file == file]
