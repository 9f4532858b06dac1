"""What the coordinator must not forget: runs, agents, and what is still to be written into the runs' records.

Owns what is written and when. A run is stored as the frozen value that the machine made of
it, so that what is read back is what was decided on; its agents' entries lie in rows of their own, because each holds a
whole plan and most steps change one of them.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from fedpipe_coordinator.runs.run_state import Member, RunState
from fedpipe_coordinator.store_interface import FEDERATION, Line, Newest, Store
from fedpipe_coordinator.store_schema import MIGRATIONS, SCHEMA_VERSION, StoreError
from fedpipe_profiles.device import DeviceProfile
from fedpipe_wire.database import Database, DatabaseError
from fedpipe_wire.moments import Moment, read_moment
from fedpipe_wire.replay import Heard, heard_from_json

__all__ = ["FEDERATION", "SCHEMA_VERSION", "Line", "Newest", "SqliteStore", "Store", "StoreError"]
Kept = TypeVar("Kept", RunState, Member, DeviceProfile)


_COUNTER_BLOCK = 1000
_LATEST_US = 1 << 62
"""A clock beyond this leaves no room to count."""


class SqliteStore:
    """A store in one SQLite file, in write-ahead mode with full synchronisation.

    Args:
        path: the file.
        moment: reads the clocks.
    """

    def __init__(self, path: Path, moment: Callable[[], Moment] = read_moment) -> None:
        """Open or make the store; one of an older version is brought up to date, with a copy of it kept beside.

        Raises:
            StoreError: if the file cannot be used, is damaged, or is of a later version.
        """
        self._path, self._moment = path, moment
        with _as_store_error():
            self._db = Database(path, MIGRATIONS, what="the coordinator's store")
        self._saved: dict[str, RunState] = {}
        self._heard: dict[str, Heard] = {}
        self._newest: dict[tuple[str, str], Newest] = {}
        self._counter = 0
        self._counter_end = 0

    def save_run(self, state: RunState, lines: Sequence[Line] = ()) -> None:
        """See `Store`. Only what changed since it was last saved is written."""
        before = self._saved.get(state.run)
        whole = before is None or not _same_but_members(before, state)
        known = {} if before is None else before.members
        changed = [m for name, m in state.members.items() if name not in known or not _same(known[name], m)]
        if not (whole or changed or lines):
            return
        with self._transaction():
            if whole:
                self._save_whole(state)
            for member in changed:
                self._db.execute(
                    "INSERT INTO members (run, agent, member) VALUES (?, ?, ?) "
                    "ON CONFLICT (run, agent) DO UPDATE SET member = excluded.member",
                    (state.run, member.name, member.model_dump_json()),
                )
            for line in lines:
                self._db.execute(
                    "INSERT OR IGNORE INTO lines (run, file, number, text) VALUES (?, ?, ?, ?)",
                    (state.run, line.file, line.number, line.text),
                )
                counter = _lines_of(state.run, line.file), line.number
                self._db.execute("INSERT OR REPLACE INTO counters (name, value) VALUES (?, ?)", counter)
                if line.hash is not None:
                    self._write_newest(state.run, line.file, Newest(line.number, line.hash))
            moment = self._moment()
            self._db.execute(
                "INSERT OR REPLACE INTO moments (run, boot, monotonic_s, wall_s) VALUES (?, ?, ?, ?)",
                (state.run, moment.boot, moment.monotonic_s, moment.wall_s),
            )
        self._saved[state.run] = state

    def runs(self) -> list[RunState]:
        """See `Store`."""
        found = []
        for run, text in self._execute("SELECT run, state FROM runs ORDER BY number"):
            rows = self._execute("SELECT member FROM members WHERE run = ? ORDER BY number", (run,))
            members = {member.name: member for member in (self._parse(Member, row[0]) for row in rows)}
            state = self._parse(RunState, text).model_copy(update={"members": members})
            self._saved[state.run] = state
            found.append(state)
        return found

    def moments(self) -> dict[str, Moment]:
        """See `Store`."""
        return {
            run: Moment(*rest) for run, *rest in self._execute("SELECT run, boot, monotonic_s, wall_s FROM moments")
        }

    def lines(self, run: str) -> list[Line]:
        """See `Store`."""
        rows = self._execute("SELECT file, number, text FROM lines WHERE run = ? ORDER BY file, number", (run,))
        return [Line(file, number, text) for file, number, text in rows]

    def forget_lines(self, run: str, file: str, number: int) -> None:
        """See `Store`."""
        self._execute("DELETE FROM lines WHERE run = ? AND file = ? AND number <= ?", (run, file, number))

    def save_profile(self, profile: DeviceProfile) -> None:
        """See `Store`."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO agents (agent, profile) VALUES (?, ?) "
                "ON CONFLICT (agent) DO UPDATE SET profile = excluded.profile",
                (profile.agent, profile.model_dump_json()),
            )

    def profiles(self) -> dict[str, DeviceProfile]:
        """See `Store`."""
        rows = self._execute("SELECT agent, profile FROM agents ORDER BY agent")
        return {agent: self._parse(DeviceProfile, text) for agent, text in rows}

    def next_counter(self) -> int:
        """See `Store`. Blocks of numbers are reserved, so that most calls need no write.

        None begins below the microseconds of the wall clock: agents have heard what was sent after a backup was made.
        """
        if self._counter == self._counter_end:
            now_us = min(int(self._moment().wall_s * 1e6), _LATEST_US)
            rows = self._execute(
                "INSERT INTO counters (name, value) VALUES ('message', ?) "
                "ON CONFLICT (name) DO UPDATE SET value = max(value + ?, excluded.value) RETURNING value",
                (max(0, now_us) + _COUNTER_BLOCK, _COUNTER_BLOCK),
            )
            self._counter_end = int(rows[0][0])
            self._counter = self._counter_end - _COUNTER_BLOCK
        self._counter += 1
        return self._counter

    def begin_epoch(self) -> int:
        """See `Store`."""
        (row,) = self._execute(
            "INSERT INTO counters (name, value) VALUES ('epoch', ?) "
            "ON CONFLICT (name) DO UPDATE SET value = max(value + 1, excluded.value) RETURNING value",
            (max(1, int(self._moment().wall_s)),),
        )
        return int(row[0])

    def last_line(self, run: str, file: str) -> int | None:
        """See `Store`."""
        rows = self._execute("SELECT value FROM counters WHERE name = ?", (_lines_of(run, file),))
        return int(rows[0][0]) if rows else None

    def newest(self, run: str, file: str) -> Newest | None:
        """See `Store`."""
        rows = self._execute("SELECT number, hash FROM newest WHERE run = ? AND file = ?", (run, file))
        return Newest(*rows[0]) if rows else None

    def keep_newest(self, run: str, file: str, newest: Newest) -> None:
        """See `Store`."""
        self._newest[run, file] = newest

    def heard(self) -> dict[str, Heard]:
        """See `Store`."""
        rows = self._execute("SELECT sender, counters FROM heard ORDER BY sender")
        try:
            return {sender: heard_from_json(text) for sender, text in rows}
        except ValueError as error:
            raise StoreError(
                f"the store {self._path} holds counters of messages that this version cannot read ({error}): use the "
                "version that wrote it, or restore it from a backup"
            ) from error

    def hear(self, heard: Mapping[str, Heard]) -> None:
        """See `Store`."""
        self._heard.update(heard)

    def flush(self) -> None:
        """See `Store`."""
        if self._heard or self._newest:
            with self._transaction():
                pass

    def close(self) -> None:
        """See `Store`."""
        self._db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """What is written in the block, and all that waits to be kept with something, in one."""
        with _as_store_error(), self._db.transaction():
            yield
            for (run, file), newest in self._newest.items():
                self._write_newest(run, file, newest)
            for sender, heard in self._heard.items():
                counters = (sender, heard.to_json())
                self._db.execute("INSERT OR REPLACE INTO heard (sender, counters) VALUES (?, ?)", counters)
        self._newest.clear()
        self._heard.clear()

    def _write_newest(self, run: str, file: str, newest: Newest) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO newest (run, file, number, hash) VALUES (?, ?, ?, ?)",
            (run, file, newest.number, newest.hash),
        )

    def _save_whole(self, state: RunState) -> None:
        self._db.execute(
            "INSERT INTO runs (run, number, state) VALUES (?, (SELECT COALESCE(MAX(number), 0) + 1 FROM runs), ?) "
            "ON CONFLICT (run) DO UPDATE SET state = excluded.state",
            (state.run, state.model_copy(update={"members": {}}).model_dump_json()),
        )

    def _parse(self, kind: type[Kept], text: str) -> Kept:
        try:
            return kind.model_validate_json(text)
        except ValidationError as error:
            raise StoreError(
                f"the store {self._path} holds a {kind.__name__} that this version cannot read "
                f"({error.error_count()} problems): use the version that wrote it, or restore it from a backup"
            ) from error

    def _execute(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with _as_store_error():
            return self._db.execute(sql, values)


def _lines_of(run: str, file: str) -> str:
    """The counter of a file's lines; names of runs hold no space."""
    return f"line {run} {file}"


def _same_but_members(one: RunState, other: RunState) -> bool:
    """Whether two values of a run are the same but for its agents."""
    fields = (name for name in RunState.model_fields if name != "members")
    return all(_same(getattr(one, name), getattr(other, name)) for name in fields)


def _same(one: object, other: object) -> bool:
    """Equal; values are frozen, and most are the very same."""
    return one is other or one == other


@contextlib.contextmanager
def _as_store_error() -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        raise StoreError(str(error)) from error
