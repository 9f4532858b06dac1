"""The agent's folder: one agent at a time, and numbers that never come again."""

import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from clockless import clockless
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpipe_agent.counting import COUNTER_BLOCK
from fedpipe_agent.errors import InUseError, JournalError, StateFolderError
from fedpipe_wire.envelope import MAX_COUNTER

_HOLD = """
import sys
from pathlib import Path
from fedpipe_agent.errors import InUseError, StateFolderError
from fedpipe_agent.counting import COUNTER_BLOCK
from fedpipe_agent.state_folder import StateFolder
with StateFolder(Path(sys.argv[1]), wall_us=lambda: 0) as folder:
    print(folder.next_counter(), flush=True)
    sys.stdin.read()
"""


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    with clockless(tmp_path / "deep" / "state") as folder:
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        assert folder.blobs.parent == folder.path


def test_a_second_agent_is_kept_out_until_the_first_is_gone_however_it_went(tmp_path: Path) -> None:
    path = tmp_path / "state"
    child = subprocess.Popen([sys.executable, "-c", _HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == b"1\n"
    before = _open_files()
    with pytest.raises(InUseError, match="another agent works in"), clockless(path):
        pass
    assert _open_files() == before
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    with clockless(path) as folder:
        assert folder.next_counter() == COUNTER_BLOCK + 1


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(uses=st.lists(st.integers(0, 2 * COUNTER_BLOCK + 1), max_size=4))
def test_no_number_comes_again_after_a_restart(tmp_path_factory: pytest.TempPathFactory, uses: list[int]) -> None:
    path = tmp_path_factory.mktemp("agent") / "state"
    numbers: list[int] = []
    for count in uses:
        with clockless(path) as folder:
            numbers += [folder.next_counter() for _ in range(count)]
    assert numbers == sorted(set(numbers))


TEXTS = ["", "seven", "\x00\x00", "-50", "9" * 30, str(MAX_COUNTER), "1e3", "\u0663", "0x10", "7 7"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_damaged_counter_is_no_reason_to_begin_again_at_one(tmp_path: Path, text: str) -> None:
    told = r"does not hold a number.*restore the file, or enrol"
    with clockless(tmp_path) as folder:
        (tmp_path / "counter").write_text(text)
        with pytest.raises(StateFolderError, match=told):
            folder.next_counter()
    with pytest.raises(StateFolderError, match=told), clockless(tmp_path):
        pass


@pytest.mark.parametrize("text", [*TEXTS, None, "0", "12"])
def test_a_counter_that_is_damaged_cut_short_or_gone_is_made_good_from_the_journal(
    tmp_path: Path, text: str | None
) -> None:
    (tmp_path / "counter").write_text("12000")
    with clockless(tmp_path) as folder:
        last = [folder.next_counter() for _ in range(COUNTER_BLOCK + 1)][-1]
    if text is None:
        (tmp_path / "counter").unlink()
    else:
        (tmp_path / "counter").write_text(text)
    with clockless(tmp_path) as folder:
        assert folder.next_counter() > last
    for path in tmp_path.glob("journal.db*"):  # and the file alone is enough again
        path.unlink()
    with clockless(tmp_path) as folder:
        assert folder.next_counter() > last + COUNTER_BLOCK


@pytest.mark.parametrize("place", ["counter", "journal.db"])
def test_of_two_numbers_the_higher_one_counts(tmp_path: Path, place: str) -> None:
    with clockless(tmp_path) as folder:
        folder.next_counter()
        if place == "journal.db":
            folder.journal.reserve(777_000)
    if place == "counter":
        (tmp_path / "counter").write_text("777000")
    with clockless(tmp_path) as folder:
        assert folder.next_counter() == 777_001


@pytest.mark.parametrize("reserved", ["'many'", "-1", "1.5", "X'00'"])
def test_a_journal_whose_counter_is_no_number_is_damaged(tmp_path: Path, reserved: str) -> None:
    with clockless(tmp_path) as folder:
        folder.next_counter()
    with closing(sqlite3.connect(tmp_path / "journal.db")) as connection:
        connection.execute(f"UPDATE counter SET reserved = {reserved}")
        connection.commit()
    with pytest.raises(JournalError, match=r"damaged \(the counter says .*move journal"), clockless(tmp_path):
        pass


def test_numbers_that_are_used_up_are_told(tmp_path: Path) -> None:
    with clockless(tmp_path) as folder:
        folder.journal.reserve(MAX_COUNTER)
        with pytest.raises(StateFolderError, match=rf"{MAX_COUNTER} message numbers .* at most .* enrol"):
            folder.next_counter()


def test_a_counter_that_is_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "counter").mkdir()
    with pytest.raises(StateFolderError, match=r"counter cannot be read .Is a directory"), clockless(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StateFolderError, match="cannot be used: Not a directory"),
        clockless(tmp_path / "file" / "state"),
    ):
        pass


def test_a_full_disk_is_said_when_numbers_are_reserved(tmp_path: Path) -> None:
    with clockless(tmp_path) as folder:
        (tmp_path / "counter.tmp").symlink_to("/dev/full")
        with pytest.raises(StateFolderError, match="No space left on device"):
            folder.next_counter()
