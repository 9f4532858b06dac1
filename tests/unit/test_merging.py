"""The process that merges: its own words when it fails, and gone whenever its owner is."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from federation import wait_for
from office import Office

from fedpipe_coordinator import export
from fedpipe_coordinator.merging import EXTRAS_MISSING, ExtrasMissingError, Merger, WorkError
from fedpipe_coordinator.runs.run_events import RunEvent, WorkFailed

OUT = "--out"
WAITS = """
import os, sys, time
from pathlib import Path
Path(sys.argv[sys.argv.index("--out") + 1]).write_text(str(os.getpid()))
time.sleep(600)
"""


def _python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", textwrap.dedent(program))


def _merge(merger: Merger, out: Path) -> None:
    merger.merge(out.parent, "base", "causal-lm", out)


def _pid(out: Path) -> int:
    wait_for("it runs", lambda: out.exists() and out.read_text())
    return int(out.read_text())


def _runs(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_exporters_last_word_is_the_error(tmp_path: Path) -> None:
    program = "import sys; print('warning\\nexport: no room', file=sys.stderr); sys.exit({})"
    with pytest.raises(WorkError, match=r"merging failed \(30\): export: no room"):
        _merge(Merger(_python(program.format(30))), tmp_path / "out")
    with pytest.raises(ExtrasMissingError):
        _merge(Merger(_python(program.format(EXTRAS_MISSING))), tmp_path / "out")
    assert export.EXIT_EXTRAS_MISSING == EXTRAS_MISSING


def test_a_merge_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="merging took more than 2 s"):
        _merge(Merger(_python(WAITS), timeout_s=2), tmp_path / "out")
    assert not _runs(_pid(tmp_path / "out"))


def test_a_merge_ends_when_it_is_told_to_and_none_begins_afterwards(tmp_path: Path) -> None:
    merger, said = Merger(_python(WAITS)), []

    def merge() -> None:
        with pytest.raises(WorkError, match="ended together with the coordinator") as caught:
            _merge(merger, tmp_path / "out")
        said.append(caught.value)

    worker = threading.Thread(target=merge)
    worker.start()
    pid = _pid(tmp_path / "out")
    merger.stop()
    worker.join(30)
    assert said
    assert not _runs(pid)
    with pytest.raises(WorkError, match="does not begin any more"):
        _merge(merger, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_merge_dies_with_its_owner_however_that_dies(tmp_path: Path) -> None:
    """The owner merges in a worker thread, as the coordinator does, and is killed with SIGKILL."""
    owner = f"""
        import sys
        from pathlib import Path
        from fedpipe_coordinator.merging import Merger
        from fedpipe_coordinator.runs.run_events import WorkFailed
        from fedpipe_coordinator.worker import Worker
        out = Path(sys.argv[1])
        merger = Merger((sys.executable, "-c", {WAITS!r}))
        worker = Worker(print)
        worker.do("r", lambda: merger.merge(out.parent, "base", "causal-lm", out), lambda _: WorkFailed("", ""))
    """
    with subprocess.Popen([*_python(owner), str(tmp_path / "out")]) as process:
        pid = _pid(tmp_path / "out")
        assert _runs(pid)
        process.kill()
        process.wait()
    wait_for("it is gone", lambda: not _runs(pid))


def test_a_coordinator_that_ends_ends_its_merge(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    office = Office(tmp_path / "home")
    actor = office.service._actor
    actor._merger = merger = Merger(_python(WAITS))
    ended: list[Exception] = []

    def merge() -> RunEvent:
        _merge(merger, tmp_path / "out")
        return WorkFailed("exporting", "")

    def failed(error: Exception) -> RunEvent:
        ended.append(error)
        return WorkFailed("exporting", str(error))

    actor.worker.do("r", merge, failed)
    pid = _pid(tmp_path / "out")
    office.stop()
    wait_for("it is gone", lambda: not _runs(pid) and ended)


def test_each_process_writes_to_a_part_of_its_own_and_clears_what_dead_ones_left(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as gone:
        gone.wait()
    left, alive = tmp_path / f".merged.{gone.pid}.part", tmp_path / f".merged.{os.getppid()}.part"
    other = tmp_path / f".merged2.{gone.pid}.part"
    for folder in (left, alive, other):
        folder.mkdir()
        (folder / "model").touch()
    part = export._part_of(tmp_path / "merged")
    assert part == tmp_path / f".merged.{os.getpid()}.part"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((alive.name, other.name))


def test_no_merge_is_left_open(recwarn: Any, tmp_path: Path) -> None:
    _merge(Merger(_python("pass")), tmp_path / "out")
    assert not recwarn.list
