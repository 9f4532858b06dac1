"""install.sh where it cannot go on: what it says, and its exit codes."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from install.checkout import Checkout, program, remove_override


def is_running(pid: int) -> bool:
    """Whether the process still does something: one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(holds: Callable[[], bool], limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, f"did not come true within {limit_s} s"
        time.sleep(0.02)


def test_old_python_is_refused_with_the_versions_found(checkout: Checkout) -> None:
    for name in ("python3.12", "python3.11", "python3"):
        shutil.copy(checkout.programs / "python3.13", checkout.programs / name)
    done = checkout.run("demo", FAKE_VERSION="3.9")
    assert done.returncode == 3
    assert "no Python of at least 3.11" in done.stderr
    assert "python3.13 is 3.9" in done.stderr
    assert not checkout.venv.exists()


def test_named_python_is_the_only_one_considered(checkout: Checkout) -> None:
    old = checkout.programs / "old"
    program(old, "#!/bin/sh\necho 3.10\n")
    done = checkout.run("demo", PYTHON=str(old))
    assert done.returncode == 3
    assert f"{old} is 3.10" in done.stderr
    missing = checkout.run("demo", PYTHON="/nowhere/python")
    assert missing.returncode == 3
    assert "/nowhere/python" in missing.stderr


def test_python_without_ensurepip_names_the_package(checkout: Checkout) -> None:
    done = checkout.run(
        "demo", PYTHON=str(checkout.programs / "python3.13"), FAKE_NO_ENSUREPIP="1", FAKE_VERSION="3.99"
    )
    assert done.returncode == 3
    assert "apt-get install python3.99-venv" in done.stderr


def test_missing_mosquitto_without_rights_names_the_package(checkout: Checkout, as_nobody: tuple[str, ...]) -> None:
    (checkout.programs / "mosquitto").unlink()
    # The real question whether this user may install, and a machine on which no folder holds mosquitto.
    remove_override(checkout, "may_install")
    checkout.override("find_mosquitto() { return 1; }")
    done = checkout.run("demo", prefix=as_nobody)
    assert done.returncode == 4, done.stderr
    assert "apt-get install mosquitto" in done.stderr
    assert checkout.pip_calls() == []


@pytest.mark.parametrize("says", ["mosquitto version 1.6.9", "something else"])
def test_old_or_unknown_mosquitto_is_refused_and_left_alone(checkout: Checkout, says: str) -> None:
    program(checkout.programs / "mosquitto", f"#!/bin/sh\necho {says}\n")
    checkout.override("may_install() { true; }", "apt_get() { echo touched; }")
    done = checkout.run("demo")
    assert done.returncode == 4
    assert "needs Mosquitto 2.0 or later" in done.stderr
    assert "touched" not in done.stdout


@pytest.mark.parametrize(
    ("fails", "says", "code", "hint"),
    [
        ("--editable", "Could not find a version", 5, "what was downloaded is kept"),
        ("--editable", "OSError: [Errno 28] No space left on device", 6, "FEDPIPE_VENV"),
        ("--index-url", "ProxyError", 5, "FEDPIPE_TORCH_INDEX"),
        ("--report", "No matching distribution found for torch", 5, "check the network"),
    ],
)
def test_failing_pip_says_why_and_what_to_do(checkout: Checkout, fails: str, says: str, code: int, hint: str) -> None:
    done = checkout.run("demo", FAKE_PIP_FAILS=fails, FAKE_PIP_SAYS=says, FAKE_TORCH="cuda-toolkit")
    assert done.returncode == code
    assert f"ERROR: {says}" in done.stderr
    assert hint in done.stderr.split("  do:  ")[1]
    assert checkout.run("demo").returncode == 0  # and the next run mends it


def test_pip_that_never_ends_is_ended(checkout: Checkout) -> None:
    real = (checkout.programs / "python3.13").read_text(encoding="utf-8")
    program(checkout.programs / "python3.13", real.replace('echo "ERROR: ', 'sleep 50; echo "ERROR: '))
    done = checkout.run("demo", FAKE_PIP_FAILS="--editable", FEDPIPE_PIP_TIMEOUT_S="1")
    assert done.returncode == 5
    assert "took longer than 1 s" in done.stderr


def test_ending_the_script_ends_its_pip(checkout: Checkout) -> None:
    stand_in = (checkout.programs / "python3.13").read_text(encoding="utf-8")
    waits = 'echo "pid $$" >>"$CALLS"; exec sleep 600; echo "ERROR: '
    program(checkout.programs / "python3.13", stand_in.replace('echo "ERROR: ', waits))
    script = subprocess.Popen(
        [str(checkout.folder / "install.sh"), "demo"],
        env=checkout.environment | {"FAKE_PIP_FAILS": "--editable"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: any(call.startswith("pid ") for call in checkout.pip_calls()))
    pip = int(checkout.pip_calls()[-1].split()[1])
    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=60) == 143
    wait_until(lambda: not is_running(pip))


def test_other_systems_are_refused(checkout: Checkout) -> None:
    program(checkout.programs / "uname", "#!/bin/sh\necho Plan9\n")
    done = checkout.run("demo")
    assert done.returncode == 3
    assert "unsupported system: Plan9" in done.stderr


def test_too_little_disk_is_said_before_anything_is_made(checkout: Checkout) -> None:
    remove_override(checkout, "check_disk")
    program(checkout.programs / "df", "#!/bin/sh\necho Avail\necho 1234M\n")
    done = checkout.run("demo")
    assert done.returncode == 6
    assert "1234 MiB are free, 3000 MiB are needed" in done.stderr
    assert not checkout.venv.exists()


@pytest.mark.parametrize("verb", ["coordinator", "agent", "uninstall"])
def test_verbs_of_later_versions_are_refused(checkout: Checkout, verb: str) -> None:
    done = checkout.run(verb)
    assert done.returncode == 7
    assert "not in this version" in done.stderr
    assert checkout.pip_calls() == []


@pytest.mark.parametrize("arguments", [[], ["deploy"], ["--force", "demo"]])
def test_wrong_usage(checkout: Checkout, arguments: list[str]) -> None:
    done = checkout.run(*arguments)
    assert done.returncode == 2
    assert "Usage: ./install.sh" in done.stderr
