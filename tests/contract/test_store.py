"""What every store of runs and agents must do, on the SQLite store and on one in memory."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_support import Drive, begin, device, scored, survey, trained

from fedpipe_coordinator.run_events import AgentOnline, UpdateStored
from fedpipe_coordinator.run_state import RunState
from fedpipe_coordinator.store import SCHEMA_VERSION, SqliteStore, Store, StoreError
from fedpipe_profiles.device import DeviceProfile

Open = Callable[[], Store]


class Kept:
    """What the memory stores of one test share, as a file would."""

    def __init__(self) -> None:
        self.runs: dict[str, str] = {}
        self.profiles: dict[str, str] = {}
        self.counter = 0


class MemoryStore:
    """A store without a disk, for tests."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def save_run(self, state: RunState) -> None:
        self._kept.runs[state.run] = state.model_dump_json()

    def runs(self) -> list[RunState]:
        return [RunState.model_validate_json(text) for text in self._kept.runs.values()]

    def save_profile(self, profile: DeviceProfile) -> None:
        self._kept.profiles[profile.agent] = profile.model_dump_json()

    def profiles(self) -> dict[str, DeviceProfile]:
        return {name: DeviceProfile.model_validate_json(text) for name, text in self._kept.profiles.items()}

    def next_counter(self) -> int:
        self._kept.counter += 1
        return self._kept.counter

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(params=["sqlite", "memory"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same store again and again."""
    kept = Kept()
    opened: list[Store] = []

    def open_() -> Store:
        store: Store = SqliteStore(tmp_path / "store.db") if request.param == "sqlite" else MemoryStore(kept)
        opened.append(store)
        return store

    yield open_
    for store in opened:
        store.close()


def _states() -> list[RunState]:
    """A run at every step of its way."""
    drive = Drive(begin(number=1), 12.5)
    found = [drive.state]
    steps = [
        lambda: drive(AgentOnline("a", "a-1"), 0.1),
        lambda: drive.hear("a", survey(), 1 / 3),
        lambda: drive.hear("a", scored(height=0.1)),
        drive.plan,
        lambda: drive.hear("a", trained("a", 1), 1e-9),
        lambda: drive(UpdateStored("a", 1, trained("a", 1).update.sha256), 7.7),
        drive.aggregate,
    ]
    for take in steps:
        take()
        found.append(drive.state)
    return found


STATES = _states()


def test_what_is_read_back_is_what_was_saved(open_store: Open) -> None:
    for state in STATES:
        open_store().save_run(state)
        assert open_store().runs() == [state]


def test_runs_come_in_the_order_in_which_they_were_first_saved(open_store: Open) -> None:
    store = open_store()
    states = [begin().model_copy(update={"run": run}) for run in ("z", "a", "m")]
    for state in states:
        store.save_run(state)
    store.save_run(states[0].model_copy(update={"phase": "stopped"}))
    found = open_store().runs()
    assert [(state.run, state.phase) for state in found] == [("z", "stopped"), ("a", "surveying"), ("m", "surveying")]


def test_the_newest_profile_of_every_agent_is_kept(open_store: Open) -> None:
    store = open_store()
    store.save_profile(device("b"))
    store.save_profile(device("a"))
    newer = device("b", datasets=("other",))
    store.save_profile(newer)
    assert open_store().profiles() == {"a": device("a"), "b": newer}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(uses=st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_a_counter_never_comes_again_also_after_a_restart(open_store: Open, uses: list[int]) -> None:
    """Also where a process ends without closing its store."""
    numbers = []
    for count in uses:
        store = open_store()
        numbers += [store.next_counter() for _ in range(count)]
    assert numbers == sorted(set(numbers))
    assert numbers[0] > 0


def test_a_counter_goes_on_beyond_a_reserved_block(open_store: Open) -> None:
    store = open_store()
    numbers = [store.next_counter() for _ in range(2500)]
    assert numbers == sorted(set(numbers))


def test_hostile_texts_are_kept_as_they_are(open_store: Open) -> None:
    text = "'; DROP TABLE runs; --\x00\u202e\U0001f4a9\n" * 100
    state = begin().model_copy(update={"note": text})
    open_store().save_run(state)
    assert open_store().runs() == [state]


# --- what only a file can do ------------------------------------------------------------------------------------


def test_a_store_of_another_version_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    SqliteStore(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(StoreError, match=f"schema {SCHEMA_VERSION + 1}, this version of FedPipe reads schema"):
        SqliteStore(path)


def test_what_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"this is not a database, but a text that somebody put here\n" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteStore(path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        SqliteStore(tmp_path / "nowhere" / "store.db")


def test_a_run_that_this_version_cannot_read_is_an_error_of_the_store(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    store.save_run(begin())
    with sqlite3.connect(tmp_path / "store.db") as db:
        db.execute("UPDATE runs SET state = '{}'")
    db.close()
    with pytest.raises(StoreError, match="holds a RunState that this version cannot read"):
        store.runs()
    store.close()


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    store._db.execute("PRAGMA max_page_count=10")
    with pytest.raises(StoreError, match="full"):
        store.save_run(begin().model_copy(update={"note": "x" * 1_000_000}))
    assert store.runs() == []
    store.close()
