"""What every store of runs and agents must do, on the SQLite store and on one in memory."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_support import Drive, begin, device, evaluated, scored, survey, trained, training

from fedpipe_coordinator.runs.run_events import AgentOnline, UpdateStored
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_coordinator.store import FEDERATION, SCHEMA_VERSION, Line, Newest, SqliteStore, Store, StoreError
from fedpipe_profiles.device import DeviceProfile
from fedpipe_wire.moments import Moment, read_moment
from fedpipe_wire.replay import Heard

Open = Callable[..., Store]


class Kept:
    """What the memory stores of one test share, as a file would."""

    def __init__(self) -> None:
        self.runs: dict[str, str] = {}
        self.profiles: dict[str, str] = {}
        self.lines: dict[tuple[str, str, int], str] = {}
        self.moments: dict[str, Moment] = {}
        self.counter = 0
        self.epoch = 0
        self.last_lines: dict[tuple[str, str], int] = {}
        self.newest: dict[tuple[str, str], Newest] = {}
        self.heard: dict[str, Heard] = {}


class MemoryStore:
    """A store without a disk, for tests."""

    def __init__(self, kept: Kept, moment: Callable[[], Moment] = read_moment) -> None:
        self._kept, self._moment = kept, moment
        self._heard: dict[str, Heard] = {}
        self._newest: dict[tuple[str, str], Newest] = {}
        self._counter = self._counter_end = 0

    def moments(self) -> dict[str, Moment]:
        return dict(self._kept.moments)

    def save_run(self, state: RunState, lines: Sequence[Line] = ()) -> None:
        self._kept.runs[state.run] = state.model_dump_json()
        self._kept.moments[state.run] = self._moment()
        for line in lines:
            self._kept.lines.setdefault((state.run, line.file, line.number), line.text)
            self._kept.last_lines[state.run, line.file] = line.number
            if line.hash is not None:
                self._kept.newest[state.run, line.file] = Newest(line.number, line.hash)
        self.flush()

    def lines(self, run: str) -> list[Line]:
        found = sorted(key for key in self._kept.lines if key[0] == run)
        return [Line(file, number, self._kept.lines[run, file, number]) for _, file, number in found]

    def forget_lines(self, run: str, file: str, number: int) -> None:
        for key in list(self._kept.lines):
            if key[:2] == (run, file) and key[2] <= number:
                del self._kept.lines[key]

    def runs(self) -> list[RunState]:
        return [RunState.model_validate_json(text) for text in self._kept.runs.values()]

    def save_profile(self, profile: DeviceProfile) -> None:
        self._kept.profiles[profile.agent] = profile.model_dump_json()
        self.flush()

    def profiles(self) -> dict[str, DeviceProfile]:
        return {name: DeviceProfile.model_validate_json(text) for name, text in self._kept.profiles.items()}

    def next_counter(self) -> int:
        if self._counter == self._counter_end:
            self._counter = max(self._kept.counter, int(self._moment().wall_s * 1e6))
            self._counter_end = self._kept.counter = self._counter + 100
        self._counter += 1
        return self._counter

    def begin_epoch(self) -> int:
        self._kept.epoch = max(self._kept.epoch + 1, int(self._moment().wall_s))
        return self._kept.epoch

    def last_line(self, run: str, file: str) -> int | None:
        return self._kept.last_lines.get((run, file))

    def newest(self, run: str, file: str) -> Newest | None:
        return self._kept.newest.get((run, file))

    def keep_newest(self, run: str, file: str, newest: Newest) -> None:
        self._newest[run, file] = newest

    def heard(self) -> dict[str, Heard]:
        return dict(self._kept.heard)

    def hear(self, heard: Mapping[str, Heard]) -> None:
        self._heard.update(heard)

    def flush(self) -> None:
        self._kept.heard.update(self._heard)
        self._kept.newest.update(self._newest)
        self._heard.clear()
        self._newest.clear()

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(params=["sqlite", "memory"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same store again and again."""
    kept = Kept()
    opened: list[Store] = []

    def open_(moment: Callable[[], Moment] = read_moment) -> Store:
        sqlite = request.param == "sqlite"
        store: Store = SqliteStore(tmp_path / "store.db", moment) if sqlite else MemoryStore(kept, moment)
        opened.append(store)
        return store

    yield open_
    for store in opened:
        store.close()


def test_every_start_is_above_all_earlier_ones_and_not_below_the_clock(open_store: Open) -> None:
    def at(wall_s: float) -> int:
        return open_store(lambda: Moment("boot", 0.0, wall_s)).begin_epoch()

    first = at(1000.7)
    assert first == 1000
    assert at(1000.9) == 1001
    assert at(10.0) == 1002, "a clock that was set back"
    assert at(5000.0) == 5000, "a backup of any earlier day"


def test_the_number_of_the_last_line_is_known_when_the_line_is_forgotten(open_store: Open) -> None:
    store = open_store()
    state = begin()
    assert store.last_line(state.run, "audit.jsonl") is None
    store.save_run(state, [Line("audit.jsonl", number, "{}") for number in (1, 2, 3)])
    store.forget_lines(state.run, "audit.jsonl", 3)
    assert open_store().last_line(state.run, "audit.jsonl") == 3
    assert open_store().last_line(state.run, "rounds.jsonl") is None


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


def test_when_each_run_was_last_saved_is_known(open_store: Open) -> None:
    moments = [Moment("this boot", 0.5 * n, 1e9 + n) for n in range(4)]
    waiting = iter(moments)
    store = open_store(lambda: next(waiting))
    assert store.moments() == {}
    other = begin().model_copy(update={"run": "other"})
    for state in (STATES[1], other, STATES[2]):
        store.save_run(state)
    store.save_run(STATES[2], [Line("audit.jsonl", 1, "{}")])
    assert open_store().moments() == {STATES[0].run: moments[3], "other": moments[1]}


def test_lines_of_records_wait_in_order_until_they_are_forgotten(open_store: Open) -> None:
    first = [Line("audit.jsonl", number, f'{{"n": {number}}}') for number in (1, 2, 10)]
    store = open_store()
    store.save_run(begin(), first[:2])
    store.save_run(begin(), [Line("rounds.jsonl", 1, "{}"), first[2], first[1]])
    store.save_run(begin().model_copy(update={"run": "other"}), [Line("audit.jsonl", 1, "{}")])
    store = open_store()
    assert store.lines(begin().run) == [*first, Line("rounds.jsonl", 1, "{}")]
    store.forget_lines(begin().run, "audit.jsonl", 2)
    store.forget_lines("nobody", "audit.jsonl", 9)
    assert open_store().lines(begin().run) == [first[2], Line("rounds.jsonl", 1, "{}")]
    assert open_store().lines("other") == [Line("audit.jsonl", 1, "{}")]


def test_a_line_that_is_stored_twice_is_kept_as_it_was_first(open_store: Open) -> None:
    store = open_store()
    store.save_run(begin(), [Line("rounds.jsonl", 1, '{"wall_s": 1}')])
    store.save_run(begin(), [Line("rounds.jsonl", 1, '{"wall_s": 2}')])
    assert store.lines(begin().run) == [Line("rounds.jsonl", 1, '{"wall_s": 1}')]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 7), min_size=1, max_size=8), reopen=st.integers(0, 7))
def test_any_order_of_states_leaves_the_last(open_store: Open, order: list[int], reopen: int) -> None:
    store = open_store()
    for at, index in enumerate(order):
        if at == reopen:
            store = open_store()
            store.runs()
        store.save_run(STATES[index])
    (found,) = open_store().runs()
    # An agent that was there is never taken away by the machine, so a store need not.
    wanted = STATES[order[-1]]
    assert found.model_copy(update={"members": {}}) == wanted.model_copy(update={"members": {}})
    assert wanted.members.items() <= found.members.items()


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


def test_the_counter_is_not_below_the_clock_and_goes_on_where_the_clock_is_set_back(open_store: Open) -> None:
    def at(wall_s: float) -> int:
        return open_store(lambda: Moment("boot", 0.0, wall_s)).next_counter()

    first, second = at(1000.0), at(2000.0)
    assert 1000_000_000 < first < 2000_000_000 < second
    assert at(3.0) > second


def test_a_clock_from_far_away_leaves_numbers(open_store: Open) -> None:
    assert 0 < open_store(lambda: Moment("boot", 0.0, -5.0)).next_counter() < 10_000


HEARD = Heard().with_counter(3).with_counter(1500).keeping("up/presence", 7)


@pytest.mark.parametrize("way", ["run", "profile", "flush"])
def test_what_was_heard_is_kept_with_whatever_is_kept_next_and_not_before(open_store: Open, way: str) -> None:
    store = open_store()
    store.hear({"a/1": Heard(), "b/1": HEARD})
    store.hear({"a/1": HEARD})
    store.keep_newest(FEDERATION, "audit.jsonl", Newest(3, "c"))
    other = open_store()
    assert (other.heard(), other.newest(FEDERATION, "audit.jsonl")) == ({}, None)
    match way:
        case "run":
            store.save_run(STATES[1])
        case "profile":
            store.save_profile(device("a"))
        case _:
            store.flush()
    other = open_store()
    assert other.heard() == {"a/1": HEARD, "b/1": HEARD}
    assert other.newest(FEDERATION, "audit.jsonl") == Newest(3, "c")
    store.hear({"a/1": Heard()})
    store.flush()
    assert open_store().heard() == {"a/1": Heard(), "b/1": HEARD}


def test_the_newest_line_of_a_chained_file_is_known_when_the_line_is_forgotten(open_store: Open) -> None:
    store, run = open_store(), begin().run
    assert store.newest(run, "audit.jsonl") is None
    store.save_run(begin(), [Line("audit.jsonl", number, "{}", f"hash {number}") for number in (1, 2)])
    store.save_run(begin(), [Line("rounds.jsonl", 1, "{}")])
    store.forget_lines(run, "audit.jsonl", 2)
    assert open_store().newest(run, "audit.jsonl") == Newest(2, "hash 2")
    assert open_store().newest(run, "rounds.jsonl") is None


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
    with pytest.raises(StoreError, match=rf"schema {SCHEMA_VERSION + 1}, .* up to {SCHEMA_VERSION}: use the version"):
        SqliteStore(path)


def test_what_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"this is not a database, but a text that somebody put here\n" * 100)
    with pytest.raises(StoreError, match=r"store\.db is damaged .*: restore it from a backup"):
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
    store.save_run(begin())
    ((pages,),) = store._db.execute("PRAGMA page_count")
    store._db.execute(f"PRAGMA max_page_count={pages}")
    large = begin().model_copy(update={"note": "x" * 1_000_000})
    with pytest.raises(StoreError, match=r"full.*make room on its disk; nothing that was acknowledged is lost"):
        store.save_run(large, [Line("audit.jsonl", 1, "{}")])
    store._db.execute("PRAGMA max_page_count=100000")
    assert (store.runs(), store.lines(begin().run)) == ([begin()], [])
    store.save_run(large)
    assert store.runs() == [large]
    store.close()


def test_only_the_agents_that_changed_are_written(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    drive = training("a", "b", "c")
    store.save_run(drive.state)
    written: list[str] = []
    store._db._connection.set_trace_callback(written.append)
    store.save_run(drive.state)
    assert written == []
    drive.hear("b", evaluated(1))
    store.save_run(drive.state)
    inserts = [sql for sql in written if sql.startswith("INSERT")]
    assert ["INTO members" in inserts[0], '"name":"b"' in inserts[0], "REPLACE INTO moments" in inserts[1]] == [
        True
    ] * 3
    assert len(inserts) == 2
    store.close()


def _write_schema_1(path: Path, states: Sequence[RunState]) -> None:
    """A store as the first version wrote it: every run one value, as far as that version knew its keys."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE runs (run TEXT PRIMARY KEY, number INTEGER NOT NULL, state TEXT NOT NULL)")
        db.execute("CREATE TABLE agents (agent TEXT PRIMARY KEY, profile TEXT NOT NULL)")
        db.execute("CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)")
        for number, state in enumerate(states):
            old = json.loads(state.model_dump_json(exclude={"former", "work_at", "resumed_at"}))
            for member in old["members"].values():
                for key in ("delivered", "former_plan", "late", "fetch_at"):
                    del member[key]
            del old["job"]["rounds"]["late_weight"]
            db.execute("INSERT INTO runs VALUES (?, ?, ?)", (state.run, number + 1, json.dumps(old)))
        db.execute("INSERT INTO agents VALUES ('a', ?)", (device("a").model_dump_json(),))
        db.execute("INSERT INTO counters VALUES ('message', 3000)")
        db.execute("PRAGMA user_version=1")


def _drop_schema_4(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE heard")
        db.execute("DROP TABLE newest")


@pytest.mark.parametrize("state", STATES[:-2], ids=lambda state: f"{state.phase}-{len(state.members)}")
def test_a_store_of_the_first_version_is_brought_up_to_date(tmp_path: Path, state: RunState) -> None:
    path = tmp_path / "store.db"
    other = begin().model_copy(update={"run": "a-later-one"})
    _write_schema_1(path, [state, other])
    with closing(SqliteStore(path, lambda: Moment("boot", 0.0, 0.0))) as store:
        assert store.runs() == [state, other]
        assert store.profiles() == {"a": device("a")}
        assert store.next_counter() == 3001
        assert store.lines(state.run) == []
        assert store.moments() == {}
    with closing(sqlite3.connect(tmp_path / "store.db.schema-1")) as copy:
        ((text,),) = copy.execute("SELECT state FROM runs WHERE number = 1").fetchall()
    assert json.loads(text)["members"].keys() == state.members.keys()
    with closing(SqliteStore(path)) as again:
        assert again.runs() == [state, other]


def test_a_store_of_the_second_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(SqliteStore(path)) as store:
        store.save_run(STATES[-1], [Line("audit.jsonl", 1, "{}")])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE moments")
        db.execute("""UPDATE runs SET state = json_set(json_remove(state, '$.resumed_at'), '$.began', 12.5)""")
        db.execute("PRAGMA user_version=2")
    _drop_schema_4(path)
    with closing(SqliteStore(path)) as store:
        assert (store.runs(), store.moments()) == ([STATES[-1]], {})
        assert store.lines(STATES[-1].run) == [Line("audit.jsonl", 1, "{}")]
        store.save_run(STATES[-1], [Line("audit.jsonl", 2, "{}")])
        assert set(store.moments()) == {STATES[-1].run}
    assert (tmp_path / "store.db.schema-2").exists()


def test_a_store_of_the_third_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(SqliteStore(path)) as store:
        store.save_run(STATES[-1], [Line("audit.jsonl", 1, "{}")])
        store.next_counter()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE counters SET value = 9000 WHERE name = 'message'")
        db.execute("PRAGMA user_version=3")
    _drop_schema_4(path)
    with closing(SqliteStore(path, lambda: Moment("boot", 0.0, 0.0))) as store:
        assert (store.runs(), store.heard(), store.newest(STATES[-1].run, "audit.jsonl")) == ([STATES[-1]], {}, None)
        assert store.lines(STATES[-1].run) == [Line("audit.jsonl", 1, "{}")]
        assert store.next_counter() == 9001
        store.hear({"a/1": HEARD})
        store.flush()
        assert store.heard() == {"a/1": HEARD}
    with closing(sqlite3.connect(tmp_path / "store.db.schema-3")) as copy:
        assert copy.execute("PRAGMA user_version").fetchone() == (3,)
        assert copy.execute("SELECT count(*) FROM runs").fetchone() == (1,)


def test_a_store_from_a_backup_gives_no_number_that_was_used_since(tmp_path: Path) -> None:
    """Agents have heard those, and do not listen to them again."""
    seconds = iter(range(1000, 5000, 60))
    with closing(SqliteStore(tmp_path / "store.db", lambda: Moment("boot", 0.0, next(seconds)))) as store:
        store.next_counter()
        with closing(sqlite3.connect(tmp_path / "backup.db")) as backup:
            store._db._connection.backup(backup)
        used = [store.next_counter() for _ in range(5000)]
    with closing(SqliteStore(tmp_path / "backup.db", lambda: Moment("boot", 0.0, 5000.0))) as store:
        assert store.next_counter() > max(used)


def test_counters_that_this_version_cannot_read_are_an_error_of_the_store(tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "store.db")) as store:
        store.hear({"a/1": HEARD})
        store.flush()
        store._db.execute("UPDATE heard SET counters = '[]'")
        with pytest.raises(StoreError, match=r"counters of messages that this version cannot read .* from a backup"):
            store.heard()


def test_a_first_version_that_cannot_be_read_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    _write_schema_1(path, [begin()])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE runs SET state = '[1]'")
    with pytest.raises(StoreError, match="holds a run that this version cannot read"):
        SqliteStore(path)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT state FROM runs").fetchall() == [("[1]",)]


def test_a_killed_process_leaves_a_step_and_its_lines_or_neither(tmp_path: Path) -> None:
    """The process is killed while it saves, at some moment; each state that is found comes with its lines."""
    program = """
import os, signal, sys, threading
from pathlib import Path
from run_support import begin
from fedpipe_coordinator.store import Line, SqliteStore
store = SqliteStore(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(1, 1_000_000):
    store.save_run(begin().model_copy(update={"missed": number}), [Line("audit.jsonl", number, "x" * 3000)])
    print(number, flush=True)
"""
    path = tmp_path / "store.db"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line == "20\n":
                break
        child.kill()
    with closing(SqliteStore(path)) as store:
        (state,) = store.runs()
        assert state.missed >= 20
        assert [line.number for line in store.lines(state.run)] == list(range(1, state.missed + 1))
