"""A SQLite file that must not lose what was committed: opened, checked, brought up to date, and used.

Owns the pragmas, the schema version and what a person is told when the file or the disk is at fault. What is in the
tables belongs to the store or the journal that names its migrations.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Migration = Callable[[sqlite3.Connection], None]
"""Brings a database from the version that is its place in the list to the next one. It must not commit."""


class DatabaseError(Exception):
    """A database cannot be opened, read or written; the message says which file, why and what to do."""


class DatabaseCorruptError(DatabaseError):
    """The file is not a whole SQLite database."""


class DatabaseNewerError(DatabaseError):
    """The file was written by a later version of FedPipe."""


class DatabaseDiskError(DatabaseError):
    """The disk does not take what is to be kept: full, read-only, or not permitted."""


class Database:
    """One SQLite file in write-ahead mode with full synchronisation; used by the thread that opened it.

    Args:
        path: the file; made if it is not there.
        migrations: the first makes a new database, each further one leads from one version to the next.
        what: how messages call it, such as "the store".

    Raises:
        DatabaseCorruptError: if it is damaged.
        DatabaseNewerError: if it has a version that `migrations` does not reach.
        DatabaseDiskError: if it cannot be opened or written.
    """

    def __init__(self, path: Path, migrations: Sequence[Migration], *, what: str) -> None:
        self.path, self._what = path, what
        with self._telling():
            self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            with self._telling():
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute("PRAGMA synchronous=FULL")
                self._check()
                self._migrate(migrations)
        except BaseException:
            self._connection.close()
            raise

    def execute(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; outside `transaction` it is durable when this returns.

        Raises:
            DatabaseError: if it cannot be done.
        """
        with self._telling():
            return self._connection.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements in the block take effect together, durably when it ends, or not at all.

        Raises:
            DatabaseError: if it cannot be done.
        """
        with self._telling():
            self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            with self._telling():
                self._connection.execute("COMMIT")
        except BaseException:
            # a full disk may have ended the transaction already
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Free the file. May be called twice."""
        self._connection.close()

    def _check(self) -> None:
        found = [row[0] for row in self._connection.execute("PRAGMA quick_check(3)").fetchall()]
        if found != ["ok"]:
            raise DatabaseCorruptError(self._say(f"is damaged ({' '.join(found[0].split())})", _RESTORE))

    def _migrate(self, migrations: Sequence[Migration]) -> None:
        version, newest = self._version(), len(migrations)
        if not 0 <= version <= newest:
            raise DatabaseNewerError(
                self._say(
                    f"has schema {version}, this version of FedPipe reads schemas up to {newest}",
                    "use the version that wrote it, or a newer one",
                )
            )
        if 0 < version < newest:
            self._back_up(version)
        while version < newest:
            with self.transaction():
                version = self._version()  # another process may have been faster
                if version < newest:
                    migrations[version](self._connection)
                    version += 1
                    self._connection.execute(f"PRAGMA user_version={version}")

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def _back_up(self, version: int) -> None:
        # An owner who goes back to the older version finds what it can read.
        copy = sqlite3.connect(self.path.with_name(f"{self.path.name}.schema-{version}"))
        with contextlib.closing(copy):
            self._connection.backup(copy)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise DatabaseCorruptError(self._say(f"is damaged ({error})", _RESTORE)) from error
            if code in _DISK:
                raise DatabaseDiskError(self._say(f"cannot be used ({error})", _DISK[code])) from error
            raise DatabaseError(
                self._say(f"cannot be used ({error})", "see whether another program has it open")
            ) from error

    def _say(self, happened: str, remedy: str) -> str:
        return f"{self._what} {self.path} {happened}: {remedy}"


_RESTORE = "restore it from a backup, together with the files that lie beside it"
_ROOM = "make room on its disk; nothing that was acknowledged is lost"
_RIGHTS = "make its folder exist, and writable for this user"
_DISK = {
    sqlite3.SQLITE_FULL: _ROOM,
    sqlite3.SQLITE_IOERR: _ROOM,
    sqlite3.SQLITE_READONLY: _RIGHTS,
    sqlite3.SQLITE_CANTOPEN: _RIGHTS,
    sqlite3.SQLITE_PERM: _RIGHTS,
    sqlite3.SQLITE_AUTH: _RIGHTS,
}
