"""What the coordinator must not forget: runs, agents, and what is still to be written into the runs' records.

Owns the store's interface and its SQLite implementation. A run is stored as the frozen value that the machine made of
it, so that what is read back is what was decided on; its agents' entries lie in rows of their own, because each holds a
whole plan and most steps change one of them.
"""

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from fedpipe_coordinator.run_state import Member, RunState
from fedpipe_profiles.device import DeviceProfile
from fedpipe_wire.database import Database, DatabaseError
from fedpipe_wire.moments import Moment, read_moment

Kept = TypeVar("Kept", RunState, Member, DeviceProfile)


class StoreError(Exception):
    """The store cannot be opened, read or written; the message says which file and what to do."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of one of a run's files of records; numbers of a file only rise. `text` is JSON, without a line end."""

    file: str
    number: int
    text: str


class Store(Protocol):
    """Where runs and agents are kept. One thread owns it."""

    def save_run(self, state: RunState, lines: Sequence[Line] = ()) -> None:
        """Keep a run as it is now together with new lines of its records, durably, both or neither."""
        ...

    def runs(self) -> list[RunState]:
        """All runs, in the order in which they were first saved."""
        ...

    def moments(self) -> dict[str, Moment]:
        """When each run was last saved, where that is known: by it the run's times can be told after a restart."""
        ...

    def lines(self, run: str) -> list[Line]:
        """The lines of a run that were not forgotten, in their order in each file."""
        ...

    def forget_lines(self, run: str, file: str, number: int) -> None:
        """The lines of a file up to a number lie in it durably."""
        ...

    def save_profile(self, profile: DeviceProfile) -> None:
        """Keep an agent's newest profile."""
        ...

    def profiles(self) -> dict[str, DeviceProfile]:
        """The newest profile of every agent ever seen."""
        ...

    def next_counter(self) -> int:
        """A number that was never given before, also before a restart."""
        ...

    def begin_epoch(self) -> int:
        """The number of this start, above all earlier ones, also where the store was restored from a backup.

        For that it is not below the seconds of the wall clock.
        """
        ...

    def last_line(self, run: str, file: str) -> int | None:
        """The number of the last line ever saved of a file; None where it was not written down."""
        ...

    def close(self) -> None:
        """Free the store."""
        ...


def _make(connection: sqlite3.Connection) -> None:
    """Schema 1: a run is one value."""
    connection.execute("CREATE TABLE runs (run TEXT PRIMARY KEY, number INTEGER NOT NULL, state TEXT NOT NULL)")
    connection.execute("CREATE TABLE agents (agent TEXT PRIMARY KEY, profile TEXT NOT NULL)")
    connection.execute("CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)")


def _split_members(connection: sqlite3.Connection) -> None:
    """Schema 2: a run's agents, and lines of its records that are not in their files yet, have rows of their own."""
    connection.execute(
        "CREATE TABLE members (number INTEGER PRIMARY KEY, run TEXT NOT NULL, agent TEXT NOT NULL, "
        "member TEXT NOT NULL, UNIQUE (run, agent))"
    )
    connection.execute(
        "CREATE TABLE lines (run TEXT NOT NULL, file TEXT NOT NULL, number INTEGER NOT NULL, text TEXT NOT NULL, "
        "PRIMARY KEY (run, file, number)) WITHOUT ROWID"
    )
    for run, text in connection.execute("SELECT run, state FROM runs").fetchall():
        try:
            state = json.loads(text)
            members = dict(state["members"])
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"the coordinator's store holds a run that this version cannot read ({run}: {error}): "
                "use the version that wrote it, or restore it from a backup"
            ) from error
        for agent, member in members.items():
            connection.execute(
                "INSERT INTO members (run, agent, member) VALUES (?, ?, ?)", (run, agent, json.dumps(member))
            )
        connection.execute("UPDATE runs SET state = ? WHERE run = ?", (json.dumps({**state, "members": {}}), run))


def _add_moments(connection: sqlite3.Connection) -> None:
    """Schema 3: when a run was saved. Of those saved before, nobody knows."""
    connection.execute(
        "CREATE TABLE moments (run TEXT PRIMARY KEY, boot TEXT NOT NULL, monotonic_s REAL NOT NULL, "
        "wall_s REAL NOT NULL)"
    )


MIGRATIONS = (_make, _split_members, _add_moments)
SCHEMA_VERSION = len(MIGRATIONS)
_COUNTER_BLOCK = 1000


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
        with _as_store_error(), self._db.transaction():
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
        self._execute(
            "INSERT INTO agents (agent, profile) VALUES (?, ?) "
            "ON CONFLICT (agent) DO UPDATE SET profile = excluded.profile",
            (profile.agent, profile.model_dump_json()),
        )

    def profiles(self) -> dict[str, DeviceProfile]:
        """See `Store`."""
        rows = self._execute("SELECT agent, profile FROM agents ORDER BY agent")
        return {agent: self._parse(DeviceProfile, text) for agent, text in rows}

    def next_counter(self) -> int:
        """See `Store`. Blocks of numbers are reserved, so that most calls need no write."""
        if self._counter == self._counter_end:
            rows = self._execute(
                "INSERT INTO counters (name, value) VALUES ('message', ?) "
                "ON CONFLICT (name) DO UPDATE SET value = value + ? RETURNING value",
                (_COUNTER_BLOCK, _COUNTER_BLOCK),
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

    def close(self) -> None:
        """See `Store`."""
        self._db.close()

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
