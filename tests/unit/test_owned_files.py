"""Files that only their owner may read: closed from the first moment, whole or not there, never waited for."""

import os
import stat
import threading
from pathlib import Path

import pytest

from fedpipe_coordinator.security.owned_files import (
    LockBusyError,
    OwnedFileError,
    locked,
    make_folder,
    read_limited,
    write_owned,
)


@pytest.fixture
def open_umask() -> object:
    before = os.umask(0)
    yield before
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_a_key_is_closed_to_others_at_every_moment_of_its_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    sync = os.fsync

    def look(handle: int) -> None:
        seen.extend(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file())
        sync(handle)

    monkeypatch.setattr(os, "fsync", look)
    folder = tmp_path / "keys"
    make_folder(folder)
    write_owned(folder / "a.key", b"secret")
    assert set(seen) == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "a.key").stat().st_mode) == 0o600


def test_what_a_full_disk_refuses_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.crt"
    write_owned(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OwnedFileError, match="No space left"):
        write_owned(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.crt"]


def test_a_key_that_others_may_read_is_refused_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(b"secret")
    path.chmod(0o640)
    with pytest.raises(OwnedFileError, match=r"mode 0640, expected 0600.*chmod 600"):
        read_limited(path, 100, private=True)
    assert read_limited(path, 100) == b"secret"


@pytest.mark.timeout(10)
def test_neither_a_pipe_nor_a_device_nor_a_huge_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OwnedFileError, match="is not a file"):
        read_limited(tmp_path / "pipe", 100)
    with pytest.raises(OwnedFileError, match="is not a file"):
        read_limited(Path("/dev/zero"), 100)
    with pytest.raises(OwnedFileError, match=r"is not a file|Is a directory"):
        read_limited(tmp_path, 100)
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    with pytest.raises(OwnedFileError, match="more than 100 bytes"):
        read_limited(tmp_path / "sparse", 100)
    with pytest.raises(OwnedFileError, match="No such file"):
        read_limited(tmp_path / "missing", 100)


def test_a_lock_is_waited_for_and_given_up_in_time(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(path, 1.0):
            held.set()
            leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    with pytest.raises(LockBusyError, match="another command"), locked(path, 0.0):
        pytest.fail("it was let in")
    leave.set()
    with locked(path, 30.0):
        pass
    holder.join()
