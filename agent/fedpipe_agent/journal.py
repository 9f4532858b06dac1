"""The agent's journal: its memory, whole, in one row of an SQLite file, replaced in one commit.

Owns the file and its schema. When to write is the daemon's matter: before it does what a step asked for.
"""

import sqlite3
from pathlib import Path

from pydantic import ValidationError

from fedpipe_agent.errors import JournalError
from fedpipe_agent.memory import Memory
from fedpipe_wire.database import Database, DatabaseCorruptError, DatabaseError
from fedpipe_wire.moments import Moment

FILE_NAME = "journal.db"


def _first(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE memory (one INTEGER PRIMARY KEY CHECK (one = 1), boot TEXT NOT NULL, monotonic_s REAL NOT NULL, "
        "wall_s REAL NOT NULL, body TEXT NOT NULL)"
    )


MIGRATIONS = (_first,)


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
        try:
            rows = self._database.execute("SELECT body, boot, monotonic_s, wall_s FROM memory")
        except DatabaseCorruptError as error:
            raise self._damaged(str(error)) from error
        except DatabaseError as error:
            raise JournalError(str(error)) from error
        if not rows:
            return None
        ((body, *moment),) = rows
        try:
            return Memory.model_validate_json(body), Moment(*moment)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(map(str, problem["loc"])) or "memory"
            raise self._damaged(f"the agent's journal {self.path} is damaged ({place}: {problem['msg']})") from None

    def save(self, memory: Memory, moment: Moment) -> None:
        """Replace what is remembered; durable when this returns.

        Raises:
            JournalError: if it cannot be written; what was saved before is still there.
        """
        row = (memory.model_dump_json(exclude_none=True), moment.boot, moment.monotonic_s, moment.wall_s)
        try:
            self._database.execute(
                "INSERT OR REPLACE INTO memory (one, body, boot, monotonic_s, wall_s) VALUES (1, ?, ?, ?, ?)", row
            )
        except DatabaseError as error:
            raise JournalError(str(error)) from error

    def close(self) -> None:
        """Free the file. May be called twice."""
        self._database.close()

    def _damaged(self, happened: str) -> JournalError:
        name = self.path.name
        return JournalError(
            f"{happened}. Without a backup: move {name}, {name}-wal and {name}-shm away and leave the rest of "
            f"{self.path.parent} as it is, above all the file 'counter'; the coordinator then asks again for what it "
            "still needs, and updates that it had not acknowledged are lost"
        )
