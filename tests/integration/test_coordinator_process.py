"""`fedpipe up` as a process: killed, moved, without its broker, on disks that do not take what it must keep."""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from coordinator_alone import coordinator_alone
from federation import Ended, Federation, fedpipe, kill, wait_for

from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.store import SqliteStore


def _child(pid: int, name: str) -> int | None:
    """The process of that name that another one started, if it runs."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with_name = Path(f"/proc/{child}/comm")
        if with_name.exists() and with_name.read_text().strip() == name:
            return int(child)
    return None


def _phases(federation: Federation) -> dict[str, str]:
    ended = federation.ask("status", "--format", "json")
    return {run["run"]: run["phase"] for run in json.loads(ended.out)["runs"]} if ended.code == 0 else {}


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with coordinator_alone(tmp_path) as federation:
        yield federation


@pytest.mark.slow
def test_a_broker_that_is_killed_runs_again_on_its_port_and_all_goes_on(federation: Federation) -> None:
    up = federation.up()
    wait_for("it answers", lambda: federation.ask("status").code == 0, [up])
    run = federation.submit(federation.folder / "job.toml")
    first = _child(up.process.pid, "mosquitto")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    (federation.home / "broker" / "mosquitto.db").unlink(missing_ok=True)

    def again() -> bool:
        return _child(up.process.pid, "mosquitto") not in (None, first)

    wait_for("the broker runs again", again, [up])
    wait_for("it is connected", lambda: up.log.read_text().count("connected to the broker") == 2, [up])
    assert "runs again; its last words" in up.log.read_text()
    with socket.create_connection(("127.0.0.1", federation.port), timeout=5):
        pass
    assert _phases(federation) == {run: "surveying"}


@pytest.mark.slow
def test_a_killed_coordinator_goes_on_at_once_and_in_another_place(federation: Federation, tmp_path: Path) -> None:
    up = federation.up()
    wait_for("it answers", lambda: federation.ask("status").code == 0, [up])
    run = federation.submit(federation.folder / "job.toml")
    broker = _child(up.process.pid, "mosquitto")
    kill(up)
    assert (federation.home / "control.sock").exists()
    again = federation.up()  # while the killed one's broker may still hold the port
    wait_for("the run goes on", lambda: _phases(federation) == {run: "surveying"}, [again])
    broker_again = _child(again.process.pid, "mosquitto")
    assert broker_again != broker
    kill(again)
    # it ends with its parent, and saves its database meanwhile
    wait_for("its broker has ended", lambda: not Path(f"/proc/{broker_again}").exists())

    moved = Federation(tmp_path / "moved", federation.port)
    moved.folder.mkdir()
    # sockets cannot be copied, and need not be
    shutil.copytree(federation.home, moved.home, ignore=shutil.ignore_patterns("control.sock"))
    shutil.rmtree(federation.home)
    with moved:
        third = moved.up()
        wait_for("the run goes on elsewhere", lambda: _phases(moved) == {run: "surveying"}, [third])
        assert moved.ask("stop", run).code == 0
        wait_for("it is told", (moved.run_folder(run) / "report.html").exists, [third])
        assert [line["kind"] for line in moved.audit(run)] == ["run-began", "run-stopped"]
        assert json.loads((moved.run_folder(run) / "summary.json").read_text())["phase"] == "stopped"
    assert not federation.home.exists()


# --- a store that cannot be used --------------------------------------------------------------------------------


@contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[None]:
    """A small file system of its own; skips the test where this user may not mount one."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", folder], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a file system here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _check_refused(ended: Ended, *says: str) -> None:
    assert ended.code == ExitCode.STORE_UNUSABLE, ended
    for part in says:
        assert part in ended.said
    assert "Traceback" not in ended.said
    assert f"(exit code {int(ExitCode.STORE_UNUSABLE)}" in ended.said


@pytest.mark.parametrize("harm", ["corrupt", "cut short", "newer", "a folder"])
def test_a_store_that_cannot_be_read_is_said_with_what_to_do(federation: Federation, harm: str) -> None:
    path = federation.home / "coordinator.db"
    with closing(SqliteStore(path)):
        pass
    says = {
        "corrupt": "is damaged",
        "cut short": "is damaged",
        "newer": "use the version that wrote it",
        "a folder": "coordinator.db",
    }
    if harm == "corrupt":
        path.write_bytes(b"no database " * 1000)
    elif harm == "cut short":
        path.write_bytes(path.read_bytes()[:-4096])
    elif harm == "newer":
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("PRAGMA user_version=99")
    else:
        path.unlink()
        path.mkdir()
    _check_refused(fedpipe("up", federation.home), str(path), says[harm])


def test_a_folder_that_is_read_only_is_said(federation: Federation, tmp_path: Path) -> None:
    place = tmp_path / "small"
    with _mounted(place, "-o", "size=8m"):
        shutil.copy(federation.home / "federation.toml", place)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        _check_refused(fedpipe("up", place), f"{place} cannot be used", "writable")


def test_a_full_disk_ends_a_start_and_with_room_the_same_folder_starts(federation: Federation, tmp_path: Path) -> None:
    place = tmp_path / "small"
    with _mounted(place, "-o", "size=1m"):
        shutil.copy(federation.home / "federation.toml", place)
        with pytest.raises(OSError, match="No space left"):
            (place / "filler").write_bytes(b"x" * (2 << 20))
        _check_refused(fedpipe("up", place), str(place / "coordinator.db"), "room")
        (place / "filler").unlink()
        small = Federation(tmp_path / "second", federation.port)
        small.folder.mkdir()
        small.home.symlink_to(place)
        with small:
            up = small.up()
            wait_for("it answers", lambda: small.ask("status").code == 0, [up])
            assert not re.search("Traceback", up.log.read_text())
