"""The agent's journal: its memory, whole, in one row of an SQLite file, replaced in one commit.

Owns the file and its schema. When to write is the daemon's matter: before it does what a step asked for. Beside the
memory it keeps how many message numbers are reserved, for `counting.py`, and which of the coordinator's were heard.
"""

import math
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedpipe_agent.errors import JournalError
from fedpipe_agent.memory import Memory
from fedpipe_wire.database import Database, DatabaseCorruptError, DatabaseError
from fedpipe_wire.moments import Moment
from fedpipe_wire.replay import Heard

FILE_NAME = "journal.db"
_SAVE = "INSERT OR REPLACE INTO memory (one, body, boot, monotonic_s, wall_s) VALUES (1, ?, ?, ?, ?)"
_SAVE_HEARD = "INSERT OR REPLACE INTO heard (name, body) VALUES (?, ?)"


def _first(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE memory (one INTEGER PRIMARY KEY CHECK (one = 1), boot TEXT NOT NULL, monotonic_s REAL NOT NULL, "
        "wall_s REAL NOT NULL, body TEXT NOT NULL)"
    )


def _second(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE counter (one INTEGER PRIMARY KEY CHECK (one = 1), reserved INTEGER NOT NULL)")


def _third(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE heard (name TEXT PRIMARY KEY, body TEXT NOT NULL)")


MIGRATIONS = (_first, _second, _third)
_HEARD = TypeAdapter(Heard)


class Journal:
    """The journal in a state folder; used by the thread that opened it.

    Raises:
        JournalError: if it is damaged, of a later version, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        try:
            self._database = Database(self.path, MIGRATIONS, what="the agent's journal")
        except DatabaseCorruptError as error:
            raise self._damaged(str(error)) from error
        except DatabaseError as error:
            raise JournalError(str(error)) from error

    def load(self) -> tuple[Memory, Moment] | None:
        """What was saved last, and when; None in a new journal.

        Raises:
            JournalError: if it cannot be read.
        """
        rows = self._read("SELECT body, boot, monotonic_s, wall_s FROM memory")
        if not rows:
            return None
        ((body, boot, *seconds),) = rows
        if not isinstance(boot, str) or not all(isinstance(each, float) and math.isfinite(each) for each in seconds):
            raise self._damaged(f"the agent's journal {self.path} is damaged (its clocks say {[boot, *seconds]})")
        try:
            return Memory.model_validate_json(body), Moment(boot, *seconds)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(map(str, problem["loc"])) or "memory"
            raise self._damaged(f"the agent's journal {self.path} is damaged ({place}: {problem['msg']})") from None

    def save(self, memory: Memory | None, moment: Moment, heard: Mapping[str, Heard] | None = None) -> None:
        """Replace what is remembered, and what was heard of these senders; durable, and both or neither.

        Args:
            memory: None leaves it as it is.
            moment: this one.
            heard: as an `Inspector` gives it out.

        Raises:
            JournalError: if it cannot be written; what was saved before is still there.
        """
        try:
            with self._database.transaction():
                if memory is not None:
                    body = memory.model_dump_json(exclude_none=True)
                    row = (body, moment.boot, moment.monotonic_s, moment.wall_s)
                    self._database.execute(_SAVE, row)
                for name, each in (heard or {}).items():
                    self._database.execute(_SAVE_HEARD, (name, _HEARD.dump_json(each).decode()))
        except DatabaseError as error:
            raise JournalError(str(error)) from error

    def heard(self) -> dict[str, Heard]:
        """What was heard, by sender, as it was saved.

        Raises:
            JournalError: if it cannot be read.
        """
        try:
            return {name: _HEARD.validate_json(body) for name, body in self._read("SELECT name, body FROM heard")}
        except ValidationError:
            raise self._damaged(f"the agent's journal {self.path} is damaged (what was heard)") from None

    def reserved(self) -> int | None:
        """The highest message number that was reserved; None where none was.

        Raises:
            JournalError: if it cannot be read.
        """
        rows = self._read("SELECT reserved FROM counter")
        if not rows:
            return None
        ((reserved,),) = rows
        if not isinstance(reserved, int) or reserved < 0:
            raise self._damaged(f"the agent's journal {self.path} is damaged (the counter says {reserved!r})")
        return reserved

    def reserve(self, number: int) -> None:
        """Remember that message numbers up to this one may be used; durable when this returns.

        Raises:
            JournalError: if it cannot be written.
        """
        self._write("INSERT OR REPLACE INTO counter (one, reserved) VALUES (1, ?)", (number,))

    def close(self) -> None:
        """Free the file. May be called twice."""
        self._database.close()

    def _read(self, sql: str) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(sql)
        except DatabaseCorruptError as error:
            raise self._damaged(str(error)) from error
        except DatabaseError as error:
            raise JournalError(str(error)) from error

    def _write(self, sql: str, row: Sequence[object]) -> None:
        try:
            self._database.execute(sql, row)
        except DatabaseError as error:
            raise JournalError(str(error)) from error

    def _damaged(self, happened: str) -> JournalError:
        name = self.path.name
        return JournalError(
            f"{happened}. Without a backup: move {name}, {name}-wal and {name}-shm away and leave the rest of "
            f"{self.path.parent} as it is, above all the file 'counter'; the coordinator then asks again for what it "
            "still needs, and updates that it had not acknowledged are lost"
        )
