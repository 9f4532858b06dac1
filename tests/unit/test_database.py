"""A database file tells what is wrong with it, and keeps what was committed."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from fedpipe_wire.database import (
    Database,
    DatabaseCorruptError,
    DatabaseDiskError,
    DatabaseError,
    DatabaseNewerError,
    Migration,
)


def _first(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE notes (text TEXT)")


def _second(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE notes ADD COLUMN day INTEGER NOT NULL DEFAULT 7")


def _third_fails(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM notes")
    connection.execute("SELECT * FROM nowhere")


def _opened(path: Path, *migrations: Migration) -> Database:
    return Database(path, migrations or (_first, _second), what="the test's store")


def test_an_older_version_is_brought_up_to_date_and_kept_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(_opened(path, _first)) as old:
        old.execute("INSERT INTO notes VALUES ('kept')")
    with closing(_opened(path)) as new:
        assert new.execute("SELECT text, day FROM notes") == [("kept", 7)]
    with closing(_opened(tmp_path / "a.db.schema-1", _first)) as copy:
        assert copy.execute("SELECT * FROM notes") == [("kept",)]


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(_opened(path)) as database:
        database.execute("INSERT INTO notes VALUES ('kept', 1)")
    with pytest.raises(DatabaseError, match="no such table: nowhere"):
        _opened(path, _first, _second, _third_fails)
    with closing(_opened(path)) as database:
        assert database.execute("SELECT * FROM notes") == [("kept", 1)]


def test_a_later_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    _opened(path).close()
    with pytest.raises(DatabaseNewerError, match=r"schema 2.*up to 1.*use the version that wrote it"):
        _opened(path, _first)


@pytest.mark.parametrize("harm", ["no database", "cut short", "a page of noise"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "a.db"
    with closing(_opened(path)) as database:
        database.execute("CREATE INDEX by_text ON notes (text)")
        for number in range(500):
            database.execute("INSERT INTO notes VALUES (?, ?)", (f"{number}" * 20, number))
    whole = path.read_bytes()
    noise = whole[: len(whole) // 2] + b"\xa5" * 4096 + whole[len(whole) // 2 + 4096 :]
    path.write_bytes(
        {"no database": b"hello" * 100, "cut short": whole[: len(whole) // 2], "a page of noise": noise}[harm]
    )
    with pytest.raises(DatabaseCorruptError, match=r"a\.db is damaged .*restore it from a backup"):
        _opened(path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatabaseDiskError, match="make its folder exist"):
        _opened(tmp_path / "none" / "a.db")


def _two_of_which_the_second_fails(database: Database) -> None:
    with database.transaction():
        database.execute("INSERT INTO notes VALUES ('lost', 1)")
        database.execute("INSERT INTO nowhere VALUES (1)")


def test_a_block_takes_effect_whole_or_not_at_all(tmp_path: Path) -> None:
    with closing(_opened(tmp_path / "a.db")) as database:
        with pytest.raises(DatabaseError, match="no such table"):
            _two_of_which_the_second_fails(database)
        with database.transaction():
            database.execute("INSERT INTO notes VALUES ('kept', 1)")
        assert database.execute("SELECT text FROM notes") == [("kept",)]


def test_a_full_disk_loses_nothing_and_the_file_works_again_with_room(tmp_path: Path) -> None:
    with closing(_opened(tmp_path / "a.db")) as database:
        database.execute("INSERT INTO notes VALUES ('kept', 1)")
        ((pages,),) = database.execute("PRAGMA page_count")
        database.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(DatabaseDiskError, match="make room on its disk"), database.transaction():
            database.execute("INSERT INTO notes VALUES (?, 2)", ("x" * 100_000,))
        assert database.execute("SELECT text FROM notes") == [("kept",)]
        database.execute("PRAGMA max_page_count=100000")
        database.execute("INSERT INTO notes VALUES ('again', 3)")
        assert database.execute("SELECT text FROM notes") == [("kept",), ("again",)]


def test_what_a_killed_process_committed_is_there_and_what_it_did_not_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    _opened(path).close()
    script = f"""
import os, signal, sqlite3
from pathlib import Path
from fedpipe_wire.database import Database
database = Database(Path({str(path)!r}), (lambda c: None, lambda c: None), what="it")
database.execute("INSERT INTO notes VALUES ('committed', 1)")
with database.transaction():
    database.execute("INSERT INTO notes VALUES ('not committed', 2)")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -9
    with closing(_opened(path)) as database:
        assert database.execute("SELECT text FROM notes") == [("committed",)]


def test_a_database_that_another_process_brings_up_to_date_meanwhile_is_taken_as_it_is(tmp_path: Path) -> None:
    """Both see the older version; whoever comes second must not do the same again."""
    path = tmp_path / "a.db"
    _opened(path, _first).close()
    made: list[int] = []

    class Slow(Database):
        """Looks, and then is overtaken."""

        def _back_up(self, version: int) -> None:
            super()._back_up(version)
            _opened(path).close()

        def _version(self) -> int:
            made.append(found := super()._version())
            return found

    with closing(Slow(path, (_first, _second), what="the test's store")) as database:
        assert database.execute("SELECT text, day FROM notes") == []
    assert made == [1, 2]
