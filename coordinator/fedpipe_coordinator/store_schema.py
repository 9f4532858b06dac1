"""The tables of the coordinator's store, and how a store of each earlier version becomes one of the next.

Owns the schema; what is written into it is the store's matter.
"""

import json
import sqlite3


class StoreError(Exception):
    """The store cannot be opened, read or written; the message says which file and what to do."""


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


def _add_counters_and_chains(connection: sqlite3.Connection) -> None:
    """Schema 4: which messages were heard, by sender and key, and the newest line of each record that is chained."""
    connection.execute("CREATE TABLE heard (sender TEXT PRIMARY KEY, counters TEXT NOT NULL)")
    connection.execute(
        "CREATE TABLE newest (run TEXT NOT NULL, file TEXT NOT NULL, number INTEGER NOT NULL, hash TEXT NOT NULL, "
        "PRIMARY KEY (run, file)) WITHOUT ROWID"
    )


MIGRATIONS = (_make, _split_members, _add_moments, _add_counters_and_chains)
SCHEMA_VERSION = len(MIGRATIONS)
