"""The fixtures of the tests of install.sh."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from install.checkout import REPOSITORY, STAND_IN, Checkout, program


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder, programs = tmp_path / "my checkout", tmp_path / "pro grams"
    (folder / "scripts").mkdir(parents=True)
    programs.mkdir()
    for name in ("install.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, folder / name)
    program(folder / "scripts" / "test", '#!/bin/sh\necho "tests $* in $FEDPIPE_VENV"\n')
    program(programs / "python3.13", STAND_IN.replace("REAL_PYTHON", f"'{sys.executable}'"))
    program(programs / "mosquitto", "#!/bin/sh\necho mosquitto version 2.0.18\n")
    environment = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "CALLS": str(tmp_path / "calls"),
        "FAKE_TORCH": "jinja2",
        "LC_ALL": "C.UTF-8",
    }
    made = Checkout(folder, programs, tmp_path / "calls", environment)
    made.override("has_nvidia() { false; }", "check_disk() { :; }", "may_install() { false; }")
    return made


@pytest.fixture
def as_nobody(tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """The start of a command that runs as a user without rights and without a way to get any."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become another user")
    opened = [folder for folder in (tmp_path, *tmp_path.parents) if folder.stat().st_mode & 0o5 != 0o5]
    modes = [folder.stat().st_mode for folder in opened]
    for folder in opened:
        folder.chmod(0o755)
    yield ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    for folder, mode in zip(opened, modes, strict=True):
        folder.chmod(mode)
