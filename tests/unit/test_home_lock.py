"""A federation's folder belongs to one coordinator, whatever happens to its socket."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedpipe_coordinator.home_lock import LOCK_NAME, AlreadyRunningError, HomeError, holder, lock_home

HOLD = """
import sys
from pathlib import Path
from fedpipe_coordinator.home_lock import lock_home
with lock_home(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_folder_of_another_process_is_refused_until_it_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert holder(tmp_path) == other.pid
        with pytest.raises(AlreadyRunningError, match=f"as process {other.pid}: stop it first"), lock_home(tmp_path):
            pass
        other.kill()
        other.wait()
    assert holder(tmp_path) is None
    with lock_home(tmp_path):
        assert holder(tmp_path) == os.getpid()
    assert holder(tmp_path) is None


def test_a_folder_that_takes_no_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).mkdir()
    with pytest.raises(HomeError, match=f"{tmp_path} cannot be used: {LOCK_NAME}"), lock_home(tmp_path):
        pass
    assert holder(tmp_path) is None
    with pytest.raises(HomeError, match="cannot be used"), lock_home(tmp_path / "nowhere"):
        pass
