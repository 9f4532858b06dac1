"""The demo's child processes: the coordinator and the agents, as they run in production.

Owns starting them with a log file each and ending them. Agents are started by their module's name only.
"""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_PR_SET_PDEATHSIG = 1
END_S = 15.0


class Child:
    """One process and its log."""

    def __init__(self, name: str, arguments: list[str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(  # the C call in the child is async-signal-safe
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # no other thread holds a lock that the call needs
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )

    def last_words(self) -> str:
        """The end of the log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return "\n".join(lines[-5:])


class Children:
    """All children of the demo; leaving the block ends them, agents first."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def start(self, name: str, arguments: list[str], log: Path) -> Child:
        """Start a process whose output goes to `log`."""
        child = Child(name, arguments, log)
        self._children.append(child)
        return child

    def dead(self) -> list[Child]:
        """Those that have ended."""
        return [child for child in self._children if child.process.poll() is not None]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._children):
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        for child in reversed(self._children):
            try:
                child.process.wait(END_S)
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
