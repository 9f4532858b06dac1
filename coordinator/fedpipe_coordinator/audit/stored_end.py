"""The newest line of the federation's record, as the coordinator's store keeps it: for commands.

Owns two statements on a store that another process may have open. What cannot be read or kept is left: the record must
not depend on the store.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from fedpipe_coordinator.store_interface import FEDERATION, Newest

_FILE = "audit.jsonl"


def read_end(store: Path) -> Newest | None:
    """The newest line that the store knows; None where it knows none, or cannot be read."""
    with contextlib.suppress(sqlite3.Error), _open(store, "ro") as db:
        row = db.execute("SELECT number, hash FROM newest WHERE run = ? AND file = ?", (FEDERATION, _FILE)).fetchone()
        return Newest(int(row[0]), str(row[1])) if row else None
    return None


def keep_end(store: Path, newest: Newest) -> None:
    """Have the store know a newer line, if there is a store and it can be written."""
    with contextlib.suppress(sqlite3.Error), _open(store, "rw") as db:
        db.execute(
            "INSERT INTO newest (run, file, number, hash) VALUES (?, ?, ?, ?) ON CONFLICT (run, file) "
            "DO UPDATE SET number = excluded.number, hash = excluded.hash WHERE excluded.number > number",
            (FEDERATION, _FILE, newest.number, newest.hash),
        )


@contextlib.contextmanager
def _open(store: Path, mode: str) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(
        sqlite3.connect(f"{store.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)
    ) as db:
        yield db
