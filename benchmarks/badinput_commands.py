"""Command lines that are given bad files, run as a person runs them, and what they leave: answer, code, files, memory.

Owns running one command and judging how it ended; which files are bad is `badinput_files.py`'s and
`badinput_enrolment.py`'s matter.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.badinput_cases import AcceptedError, CrashedError
from benchmarks.processes import resident_bytes

Make = Callable[[Path], None]
"""Puts something at a path."""
LIMIT_S = 30.0
POLL_S = 0.005
_TRACES = ("Traceback (most recent call last)", 'File "')


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left; `code` is None where it did not end in time, and was ended."""

    code: int | None
    said: str
    peak_bytes: int


@dataclass
class Commands:
    """Runs commands in a folder of their own.

    Attributes:
        folder: Where the files are; nothing in it may change by a refused command.
        peaks: The largest resident set of each command so far, in bytes.
        limit_s: How long a command may take.
    """

    folder: Path
    limit_s: float = LIMIT_S
    peaks: list[int] = field(default_factory=list, init=False)

    def run(self, *arguments: str) -> Ended:
        """`python -m ARGUMENTS` to its end, or to `limit_s`."""
        log = self.folder.with_name(f"{self.folder.name}.said")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=os.environ | {"COLUMNS": "1000", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"},
                start_new_session=True,
            )
            code, peak = _wait(process, self.limit_s)
        self.peaks.append(peak)
        return Ended(code, log.read_bytes().decode(errors="backslashreplace"), peak)

    def growth_bytes(self) -> int:
        """How much more the most hungry command took than the least: all of them load the same program."""
        seen = [peak for peak in self.peaks if peak > 0]
        return max(seen, default=0) - min(seen, default=0)

    def refusal(self, arguments: Sequence[str], codes: Sequence[int], accepting: Sequence[int | None]) -> str:
        """What a command says that must refuse its file.

        Args:
            arguments: Of `python -m`.
            codes: The documented exit codes of a refusal.
            accepting: What it ends with where it has taken the file.

        Raises:
            AcceptedError: if it took the file, or wrote something.
            CrashedError: if it ended in any other way than the documented one.
        """
        before = _listing(self.folder)
        ended = self.run(*arguments)
        if any(trace in ended.said for trace in _TRACES):
            raise CrashedError(f"a traceback: {ended.said[-300:]}")
        if ended.code in accepting:
            raise AcceptedError(f"exit code {ended.code}: {ended.said[-300:]}")
        if ended.code is None or ended.code not in codes:
            raise CrashedError(f"exit code {ended.code}, expected {list(codes)}: {ended.said[-300:]}")
        written = _listing(self.folder) - before
        if written:
            raise AcceptedError(f"it wrote {sorted(written)[:3]}")
        return ended.said


def _wait(process: "subprocess.Popen[bytes]", limit_s: float) -> tuple[int | None, int]:
    """Exit code and peak resident bytes; None where it had to be ended.

    The peak is asked for until the end: what the kernel tells of a process that has ended is no less than what its
    parent held when it was started.
    """
    deadline, peak, late = time.monotonic() + limit_s, 0, False
    while process.poll() is None:
        peak = max(peak, resident_bytes(process.pid, peak=True))
        if not late and time.monotonic() > deadline:
            late = True
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(POLL_S)
    return (None if late else process.returncode), peak


def _listing(folder: Path) -> set[tuple[str, int, int]]:
    """Every file below a folder, with its size and the time of its last change."""
    found = ((str(path), path.lstat()) for path in folder.rglob("*"))
    return {(path, status.st_size, status.st_mtime_ns) for path, status in found}


def text(content: str | bytes) -> Make:
    """A file of this content."""

    def make(path: Path) -> None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def loop(path: Path) -> None:
    """A link to itself."""
    path.symlink_to(path.name)


def device(path: Path) -> None:
    """A link to what never ends."""
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    """A FIFO that nobody writes to."""
    os.mkfifo(path)


def clear(path: Path) -> None:
    """Remove what one of these has made."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
