"""`fedpipe up` in a folder that is not as it should be, and one folder for several of them."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from coordinator_alone import coordinator_alone
from federation import Federation, children_of, fedpipe, wait_for

from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.home_lock import holder


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with coordinator_alone(tmp_path) as federation:
        yield federation


def _file(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")


def _folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)


@pytest.mark.parametrize(
    ("name", "make", "code"),
    [
        ("blobs", _file, ExitCode.STORE_UNUSABLE),
        ("broker", _file, ExitCode.BROKER_CANNOT_START),
        ("broker/mosquitto.log", _folder, ExitCode.BROKER_CANNOT_START),
        ("broker/mosquitto.conf", _folder, ExitCode.BROKER_CANNOT_START),
        ("control.sock", _folder, ExitCode.STORE_UNUSABLE),
        ("coordinator.lock", _folder, ExitCode.STORE_UNUSABLE),
        ("coordinator.db", _folder, ExitCode.STORE_UNUSABLE),
    ],
)
def test_what_lies_in_a_wrong_place_is_named(
    federation: Federation, name: str, make: Callable[[Path], None], code: ExitCode
) -> None:
    make(federation.home / name)
    ended = fedpipe("up", federation.home)
    assert ended.code == code, ended
    assert str(federation.home / name) in ended.said or name == "coordinator.lock"
    assert name.rpartition("/")[2] in ended.said
    assert "Traceback" not in ended.said


@pytest.mark.slow
def test_of_several_that_start_at_once_one_works_and_the_others_say_who(federation: Federation) -> None:
    command = ["-m", "fedpipe_coordinator", "up", str(federation.home)]
    starts = [federation.start_module(f"up-{number}", *command[1:]) for number in range(4)]
    wait_for("it answers", lambda: federation.ask("status").code == 0)
    (winner,) = [each for each in starts if each.process.pid == holder(federation.home)]
    others = [each for each in starts if each is not winner]
    wait_for("the others ended", lambda: all(each.process.poll() is not None for each in others), [winner])
    assert {each.process.returncode for each in others} == {ExitCode.ALREADY_RUNNING}
    assert all(f"as process {winner.process.pid}" in each.log.read_text().replace("\n", " ") for each in others)
    (federation.home / "control.sock").unlink()
    third = fedpipe("up", federation.home)
    assert third.code == ExitCode.ALREADY_RUNNING, third
    asked = federation.ask("status")
    assert asked.code == ExitCode.COORDINATOR_BUSY, asked
    assert f"process {winner.process.pid}" in asked.said
    winner.process.terminate()
    assert winner.process.wait(60) == 0


@pytest.mark.slow
def test_a_broker_whose_folder_is_unusable_is_tried_again_until_it_is_put_right(federation: Federation) -> None:
    up = federation.up()
    wait_for("it answers", lambda: federation.ask("status").code == 0, [up])
    broker = federation.home / "broker"
    broker.rename(broker.with_name("away"))
    broker.write_text("x")
    (mosquitto,) = children_of(up.process.pid)
    os.kill(mosquitto, signal.SIGKILL)
    wait_for("it says so", lambda: "cannot be started again yet" in up.log.read_text(), [up])
    assert f"{broker} cannot be used" in " ".join(up.log.read_text().split())
    assert federation.ask("status").code == 0
    broker.unlink()
    wait_for("it is connected again", lambda: up.log.read_text().count("connected to the broker") == 2, [up])


@pytest.mark.slow
def test_a_folder_of_blobs_that_is_removed_is_made_again(federation: Federation) -> None:
    up = federation.up()
    wait_for("it answers", lambda: federation.ask("status").code == 0, [up])
    shutil.rmtree(federation.home / "blobs")
    run = federation.submit(federation.folder / "job.toml")
    assert federation.ask("stop", run).code == 0
    assert federation.ask("status").code == 0
    assert up.process.poll() is None
    assert "Traceback" not in up.log.read_text()
    assert "old blobs stay" in up.log.read_text()


@pytest.mark.slow
def test_one_that_is_stopped_is_told_from_one_that_is_not_there(federation: Federation) -> None:
    up = federation.up()
    wait_for("it answers", lambda: federation.ask("status").code == 0, [up])
    os.kill(up.process.pid, signal.SIGSTOP)
    try:
        second = fedpipe("up", federation.home)
        assert second.code == ExitCode.ALREADY_RUNNING, second
        assert f"as process {up.process.pid}" in second.said
    finally:
        os.kill(up.process.pid, signal.SIGCONT)
    subprocess.run(["kill", str(up.process.pid)], check=True)
    assert up.process.wait(60) == 0
    assert federation.ask("status").code == ExitCode.COORDINATOR_NOT_RUNNING
