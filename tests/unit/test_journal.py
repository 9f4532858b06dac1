"""What an agent remembers is on disk whole, or its folder is refused with what to do; its counter stays."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from agent_support import DriveAgent, score_task, train_task
from clockless import clockless
from small_disk import fill, read_only, small_disk

from fedpipe_agent.errors import JournalError, StateFolderError
from fedpipe_agent.journal import MIGRATIONS, Journal
from fedpipe_agent.memory import Memory
from fedpipe_agent.state_folder import StateFolder
from fedpipe_wire.database import Database
from fedpipe_wire.envelope import MAX_COUNTER
from fedpipe_wire.moments import Moment
from fedpipe_wire.replay import Heard

NOW = Moment("this boot", 500.0, 1_000_000.0)


def _worked() -> Memory:
    agent = DriveAgent()
    agent.task(score_task())
    agent.work()
    agent.task(train_task())
    agent.adapter()
    agent.work()
    agent.task(train_task(2))
    assert agent.state.memory.outbox
    return agent.state.memory


def test_what_was_saved_last_is_loaded(tmp_path: Path) -> None:
    with closing(Journal(tmp_path)) as journal:
        assert journal.load() is None
        journal.save(Memory(), NOW)
        journal.save(_worked(), NOW)
    with closing(Journal(tmp_path)) as journal:
        assert journal.load() == (_worked(), NOW)


def test_what_was_heard_is_kept_with_the_memory_that_it_led_to_or_neither(tmp_path: Path) -> None:
    heard = {"_coordinator/0a/": Heard(7, (1 << 1023) + 1, {"run": 5}), "_coordinator/0b/": Heard(2**62, 1)}
    with closing(Journal(tmp_path)) as journal:
        assert journal.heard() == {}
        journal.save(Memory(), NOW, heard)
        with pytest.raises(JournalError), _that_keeps_nothing_heard(journal):
            journal.save(_worked(), NOW, {"_coordinator/0a/": Heard(9)})
    with closing(Journal(tmp_path)) as journal:
        assert journal.load() == (Memory(), NOW)
        assert journal.heard() == heard
        journal.save(None, NOW, {"_coordinator/0a/": Heard(8)})
        assert journal.load() == (Memory(), NOW)
        assert journal.heard() == heard | {"_coordinator/0a/": Heard(8)}


@contextmanager
def _that_keeps_nothing_heard(journal: Journal) -> Iterator[None]:
    """What was heard cannot be written, and the memory before it was."""
    journal._database.execute("ALTER TABLE heard RENAME TO away")
    try:
        yield
    finally:
        journal._database.execute("ALTER TABLE away RENAME TO heard")


# --- time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "used_s"),
    [
        (Moment("this boot", 520.0, 5.0), 120.0),  # the wall clock was set back: it does not count
        (Moment("next boot", 30.0, 1_000_060.0), 160.0),
        (Moment("next boot", 700.0, 999_000.0), 100.0),  # a clock that went back takes nothing away
    ],
)
def test_the_time_that_a_task_has_used_is_counted_on_and_never_less(now: Moment, used_s: float) -> None:
    memory = Memory(began=400.0).rebased(NOW, now)
    assert now.monotonic_s - memory.began == pytest.approx(used_s)


# --- what is wrong with a folder --------------------------------------------------------------------------------


def _with_noise(path: Path) -> None:
    path.write_bytes(b"\xa5" * 5000)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _of_a_newer_schema(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=7")


def _with_another_body(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute('UPDATE memory SET body = \'{"stage": "asleep"}\'')
        connection.commit()


def _as_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _with(sql: str) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(sql)
            connection.commit()

    return harm


HARM: dict[str, tuple[Callable[[Path], None], str]] = {
    "noise for what was heard": (
        _with("INSERT INTO heard (name, body) VALUES ('_coordinator', '[]')"),
        r"is damaged \(what was heard\).*move journal",
    ),
    "noise": (_with_noise, r"journal\.db is damaged.*move journal\.db, .*leave the rest.*above all the file 'counter'"),
    "cut short": (_cut_short, r"journal\.db is damaged.*move journal\.db"),
    "a newer schema": (_of_a_newer_schema, r"schema 7, this version of FedPipe reads schemas up to 3.*newer"),
    "another body": (_with_another_body, r"is damaged \(stage: .*move journal\.db"),
    "text for a clock": (
        _with("UPDATE memory SET monotonic_s = 'noon'"),
        r"is damaged \(its clocks .*noon.*move journal",
    ),
    "a boot that is no name": (_with("UPDATE memory SET boot = X'00'"), r"is damaged \(its clocks .*move journal"),
    "a clock beyond all": (_with("UPDATE memory SET wall_s = 9e999"), r"is damaged \(its clocks .*inf.*move journal"),
    "a folder": (_as_a_folder, r"journal\.db cannot be used.*writable"),
}


def _read_all(folder: StateFolder) -> None:
    folder.journal.load()
    folder.journal.heard()


@pytest.mark.parametrize("harm", HARM)
def test_a_journal_that_cannot_be_used_is_told_and_the_counter_stays(tmp_path: Path, harm: str) -> None:
    with clockless(tmp_path) as folder:
        used = folder.next_counter()
        folder.journal.save(_worked(), NOW)
    damage, told = HARM[harm]
    damage(tmp_path / "journal.db")
    with pytest.raises(JournalError, match=told), clockless(tmp_path) as folder:
        _read_all(folder)
    if (tmp_path / "journal.db").is_file():  # what the message says to do
        for path in tmp_path.glob("journal.db*"):
            path.rename(tmp_path / f"away-{path.name}")
        with clockless(tmp_path) as folder:
            assert folder.journal.load() is None
            assert folder.next_counter() > used


def test_a_journal_of_an_older_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    def newer(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE memory ADD COLUMN host TEXT NOT NULL DEFAULT ''")

    with closing(Journal(tmp_path)) as journal:
        journal.save(_worked(), NOW)
    path = tmp_path / "journal.db"
    with closing(Database(path, (*MIGRATIONS, newer), what="the agent's journal")) as database:
        ((body, host),) = database.execute("SELECT body, host FROM memory")
    assert (Memory.model_validate_json(body), host) == (_worked(), "")
    assert (tmp_path / "journal.db.schema-3").exists()


def _of_the_first_schema(folder: Path) -> None:
    """A state folder whose journal knows of no numbers."""
    with closing(Database(folder / "journal.db", MIGRATIONS[:1], what="the agent's journal")) as database:
        row = (_worked().model_dump_json(exclude_none=True), NOW.boot, NOW.monotonic_s, NOW.wall_s)
        database.execute("INSERT INTO memory (one, body, boot, monotonic_s, wall_s) VALUES (1, ?, ?, ?, ?)", row)


def test_a_journal_of_the_first_schema_goes_on_with_the_numbers_of_the_file(tmp_path: Path) -> None:
    _of_the_first_schema(tmp_path)
    (tmp_path / "counter").write_text("12000")
    with clockless(tmp_path) as folder:
        assert folder.journal.load() == (_worked(), NOW)
        assert folder.next_counter() == 12_001
    (tmp_path / "counter").unlink()
    with clockless(tmp_path) as folder:
        assert folder.next_counter() > 12_001


def test_a_folder_put_back_from_a_backup_repeats_no_number_unless_the_clock_was_set_back(tmp_path: Path) -> None:
    clock = [5_000_000]
    with StateFolder(tmp_path / "state", wall_us=lambda: clock[0]) as folder:
        first = [folder.next_counter() for _ in range(1000)]
        clock[0] += 1_000_000
        first += [folder.next_counter() for _ in range(500)]
    assert first == [*range(5_000_001, 5_001_501)], "within one process they follow one another"
    shutil.copytree(tmp_path / "state", tmp_path / "backup")
    clock[0] += 60_000_000
    with StateFolder(tmp_path / "state", wall_us=lambda: clock[0]) as folder:
        later = folder.next_counter()
    shutil.rmtree(tmp_path / "state")
    shutil.copytree(tmp_path / "backup", tmp_path / "state")
    clock[0] += 1_000_000
    with StateFolder(tmp_path / "state", wall_us=lambda: clock[0]) as folder:
        assert folder.next_counter() > later > max(first)
    clock[0] = 0
    with StateFolder(tmp_path / "state", wall_us=lambda: clock[0]) as folder:
        assert folder.next_counter() > later, "a clock that was set back takes nothing away"


def test_a_clock_from_the_end_of_time_uses_up_no_numbers_for_good(tmp_path: Path) -> None:
    numbers = []
    for _ in range(2):
        with StateFolder(tmp_path, wall_us=lambda: 1 << 80) as folder:
            numbers.append(folder.next_counter())
    assert numbers[0] < numbers[1] < MAX_COUNTER


@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "counter is not there, and journal.db beside it has no number"), ("-50", "number from 0 .* but '-50'")],
)
def test_without_any_number_beside_what_was_done_the_agent_does_not_begin_again(
    tmp_path: Path, text: str | None, told: str
) -> None:
    _of_the_first_schema(tmp_path)
    if text is not None:
        (tmp_path / "counter").write_text(text)
    with pytest.raises(StateFolderError, match=told), clockless(tmp_path) as folder:
        folder.next_counter()


@contextmanager
def _disk_with_a_state(folder: Path) -> Iterator[Path]:
    with small_disk(folder, 4) as disk:
        with clockless(disk / "state") as state:
            state.next_counter()
            state.journal.save(_worked(), NOW)
        yield disk


def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    with _disk_with_a_state(tmp_path / "disk") as disk:
        read_only(disk)
        with pytest.raises(StateFolderError, match=r"cannot be used: Read-only file system.*writable"):
            clockless(disk / "state").__enter__()


def test_a_disk_that_is_full_loses_nothing_and_is_told_and_with_room_all_goes_on(tmp_path: Path) -> None:
    with _disk_with_a_state(tmp_path / "disk") as disk:
        with clockless(disk / "state") as folder:
            before = folder.next_counter()
            filler = fill(disk)
            big = _worked().model_copy(update={"ended": tuple(f"run-{n}" * 20 for n in range(4000))})
            with pytest.raises(JournalError, match="make room"):
                folder.journal.save(big, NOW)
            assert folder.journal.load() == (_worked(), NOW)
            filler.unlink()
            folder.journal.save(Memory(), NOW)
        with clockless(disk / "state") as folder:
            assert folder.journal.load() == (Memory(), NOW)
            assert folder.next_counter() > before


def test_no_number_is_used_that_could_not_be_reserved(tmp_path: Path) -> None:
    with clockless(tmp_path) as folder:
        (tmp_path / "counter.tmp").symlink_to("/dev/full")
        for _ in range(2):  # also when whoever asked goes on
            with pytest.raises(StateFolderError, match="No space left"):
                folder.next_counter()
        (tmp_path / "counter.tmp").unlink()
        assert folder.next_counter() == 1


# --- whose folder it is -----------------------------------------------------------------------------------------


def test_a_folder_is_the_same_instance_after_a_restart_and_its_copy_is_another(tmp_path: Path) -> None:
    with clockless(tmp_path / "a") as folder:
        first = folder.instance
    (tmp_path / "a").rename(tmp_path / "moved")
    with clockless(tmp_path / "moved") as folder:
        assert folder.instance == first
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "instance").write_bytes((tmp_path / "moved" / "instance").read_bytes())
    with clockless(tmp_path / "copy") as folder:
        assert folder.instance != first
