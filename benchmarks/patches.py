"""Wraps what a process does to the world, from outside: files, SQLite, and its session with the broker.

Owns which operations have hooks. Everything is put in once, before the process's own main runs; a process that is not
started by the benchmarks has none of it.
"""

import builtins
import io
import os
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, Self

from benchmarks.hooks import Hooks, site_of
from benchmarks.watched_events import Publish, watch_sessions

_OS_OPERATIONS = (
    "write",
    "pwrite",
    "fsync",
    "fdatasync",
    "replace",
    "rename",
    "link",
    "unlink",
    "remove",
    "truncate",
    "ftruncate",
    "mkdir",
    "rmdir",
)
_FILE_OPERATIONS = ("write", "flush", "truncate", "writelines")
_READING = ("SELECT", "PRAGMA JOURNAL_MODE", "PRAGMA SYNCHRONOUS", "PRAGMA QUICK_CHECK", "BEGIN")

Told = Callable[[str, bytes, tuple[str, dict[str, str]]], None]
"""Told of every publication: kind, payload, and topic with user properties."""


def install(hooks: Hooks, told: Told | None = None) -> None:
    """Put hooks into this process."""
    for name in _OS_OPERATIONS:
        setattr(os, name, _wrapped(hooks, name, getattr(os, name)))
    _wrap_open(hooks)
    _wrap_sqlite(hooks)
    _wrap_sessions(hooks, told)


def _wrapped(hooks: Hooks, operation: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **more: Any) -> Any:
        site = site_of(sys._getframe(1))  # noqa: SLF001 - the frame is how a site is known without naming it in the code
        if site is None:
            return function(*args, **more)
        hooks.reach(operation, site, "before")
        result = function(*args, **more)
        hooks.reach(operation, site, "after")
        return result

    return wrapper


class _WatchedFile:
    """A file open for writing, whose writes have hooks; everything else is the file's own."""

    def __init__(self, hooks: Hooks, file: Any) -> None:
        self._file = file
        for name in _FILE_OPERATIONS:
            if hasattr(file, name):
                self.__dict__[name] = _wrapped(hooks, name, getattr(file, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)


def _wrap_open(hooks: Hooks) -> None:
    plain, temporary = io.open, tempfile.NamedTemporaryFile

    def watched_open(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        opened = plain(file, mode, *args, **more)
        if not set(mode) & set("wax+") or site_of(sys._getframe(1)) is None:  # noqa: SLF001 - as above
            return opened
        return _WatchedFile(hooks, opened)

    def watched_temporary(*args: Any, **more: Any) -> Any:
        return _WatchedFile(hooks, temporary(*args, **more))

    io.open = watched_open
    builtins.open = watched_open
    tempfile.NamedTemporaryFile = watched_temporary


def statement_name(sql: str) -> str | None:
    """A statement's name for a hook: its verb and its table; None where it writes nothing."""
    words = sql.split()
    text = " ".join(words).upper()
    if not words or text.startswith(_READING) or (text.startswith("PRAGMA") and "=" not in text):
        return None
    verb = words[0].lower()
    for before in ("EXISTS", "INTO", "UPDATE", "FROM", "TABLE", "INDEX"):
        upper = [word.upper() for word in words]
        if before in upper[:-1]:
            return f"sql-{verb}-{words[upper.index(before) + 1].strip('(;').lower()}"
    return f"sql-{verb}"


def _wrap_sqlite(hooks: Hooks) -> None:
    connect = sqlite3.connect

    class Watched(sqlite3.Connection):
        """A connection whose writing statements have hooks."""

        def execute(self, sql: str, values: Any = (), /) -> sqlite3.Cursor:
            name = statement_name(sql)
            if name is None:
                return super().execute(sql, values)
            run: Callable[..., sqlite3.Cursor] = _wrapped(hooks, name, super().execute)
            return run(sql, values)

        def executemany(self, sql: str, values: Iterable[Any], /) -> sqlite3.Cursor:
            run: Callable[..., sqlite3.Cursor] = _wrapped(hooks, statement_name(sql) or "sql-many", super().executemany)
            return run(sql, values)

        def executescript(self, sql: str, /) -> sqlite3.Cursor:
            run: Callable[..., sqlite3.Cursor] = _wrapped(hooks, "sql-script", super().executescript)
            return run(sql)

        def commit(self) -> None:
            _wrapped(hooks, "sql-commit", super().commit)()

    def watched_connect(*args: Any, **more: Any) -> Any:
        return connect(*args, **{"factory": Watched, **more})

    sqlite3.connect = watched_connect


def _wrap_sessions(hooks: Hooks, told: Told | None) -> None:
    def around(publish: Publish, kind: str, payload: bytes, more: tuple[str, dict[str, str]]) -> int | None:
        site = site_of(sys._getframe(2)) or "session"  # noqa: SLF001 - as above
        hooks.reach(f"publish-{kind}", site, "before")
        if told is not None and kind != "chunk":
            told(kind, payload, more)
        handle = publish()
        hooks.reach(f"publish-{kind}", site, "after")
        return handle

    watch_sessions(lambda name, edge: hooks.reach(name, "session", edge), around)
