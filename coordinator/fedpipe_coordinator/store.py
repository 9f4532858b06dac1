"""What the coordinator must not forget: runs and agents.

Owns the store's interface and its SQLite implementation. A run is stored whole, as the frozen value that the machine
made of it, so that what is read back is what was decided on.
"""

import sqlite3
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import ValidationError

from fedpipe_coordinator.run_state import RunState
from fedpipe_profiles.device import DeviceProfile

SCHEMA_VERSION = 1
Kept = TypeVar("Kept", RunState, DeviceProfile)


class StoreError(Exception):
    """The store cannot be opened, read or written; the message says which file and what to do."""


class Store(Protocol):
    """Where runs and agents are kept. One thread owns it."""

    def save_run(self, state: RunState) -> None:
        """Keep a run as it is now, durably; replaces what was kept of it."""
        ...

    def runs(self) -> list[RunState]:
        """All runs, in the order in which they were first saved."""
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

    def close(self) -> None:
        """Free the store."""
        ...


_TABLES = """
CREATE TABLE IF NOT EXISTS runs (run TEXT PRIMARY KEY, number INTEGER NOT NULL, state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS agents (agent TEXT PRIMARY KEY, profile TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
_COUNTER_BLOCK = 1000


class SqliteStore:
    """A store in one SQLite file, in write-ahead mode with full synchronisation."""

    def __init__(self, path: Path) -> None:
        """Open or make the store.

        Raises:
            StoreError: if the file cannot be used or is of another schema version.
        """
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=True)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA_VERSION):
                raise StoreError(
                    f"{path} is of schema {version}, this version of FedPipe reads schema {SCHEMA_VERSION}: "
                    "use the version that wrote it, or begin a new federation folder"
                )
            self._db.executescript(_TABLES)
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except sqlite3.Error as error:
            raise StoreError(f"the store {path} cannot be opened: {error}. Restore it from a backup") from error
        self._counter = 0
        self._counter_end = 0

    def save_run(self, state: RunState) -> None:
        """See `Store`."""
        self._execute(
            "INSERT INTO runs (run, number, state) VALUES (?, (SELECT COALESCE(MAX(number), 0) + 1 FROM runs), ?) "
            "ON CONFLICT (run) DO UPDATE SET state = excluded.state",
            (state.run, state.model_dump_json()),
        )

    def runs(self) -> list[RunState]:
        """See `Store`."""
        rows = self._execute("SELECT state FROM runs ORDER BY number", ())
        return [self._parse(RunState, row[0]) for row in rows]

    def save_profile(self, profile: DeviceProfile) -> None:
        """See `Store`."""
        self._execute(
            "INSERT INTO agents (agent, profile) VALUES (?, ?) "
            "ON CONFLICT (agent) DO UPDATE SET profile = excluded.profile",
            (profile.agent, profile.model_dump_json()),
        )

    def profiles(self) -> dict[str, DeviceProfile]:
        """See `Store`."""
        rows = self._execute("SELECT agent, profile FROM agents ORDER BY agent", ())
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

    def close(self) -> None:
        """See `Store`."""
        self._db.close()

    def _parse(self, kind: type[Kept], text: str) -> Kept:
        try:
            return kind.model_validate_json(text)
        except ValidationError as error:
            raise StoreError(
                f"the store {self._path} holds a {kind.__name__} that this version cannot read "
                f"({error.error_count()} problems): use the version that wrote it, or restore it from a backup"
            ) from error

    def _execute(self, sql: str, values: tuple[object, ...]) -> list[tuple[str, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(
                f"the store {self._path} cannot be used: {error}. Look at the disk's free space and the file's rights"
            ) from error
