"""Merging an adapter into its base, in a process of its own: the coordinator never imports torch.

Owns that process: it ends when it takes too long, when it is told to, and when this process ends.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedpipe_coordinator.parent_death import die_with_parent

EXPORT_TIMEOUT_S = 3600.0
EXTRAS_MISSING = 31
"""What the exporter ends with when its libraries are not installed."""


class WorkError(Exception):
    """Planning, aggregating or exporting could not be done; the message is for people."""


class ExtrasMissingError(WorkError):
    """Merging needs libraries that are not installed."""


class Merger:
    """Merges, one after the other; `stop` may be called from another thread.

    Args:
        command: what is started; the exporter's arguments follow.
        timeout_s: how long a merge may take.
    """

    def __init__(
        self,
        command: Sequence[str] = (sys.executable, "-m", "fedpipe_coordinator.export"),
        timeout_s: float = EXPORT_TIMEOUT_S,
    ) -> None:
        self._command, self._timeout_s = tuple(command), timeout_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._stopped = False

    def merge(self, adapter: Path, base: str, task: str, out: Path) -> None:
        """Merge an adapter into its base.

        Args:
            adapter: folder in PEFT's format.
            base: folder or hub id of the base model.
            task: what the model is fine-tuned for.
            out: folder to make; appears whole or not at all.

        Raises:
            WorkError: with the exporter's own message, or because it took too long or was stopped.
            ExtrasMissingError: if its libraries are not installed.
        """
        arguments = ("--adapter", str(adapter), "--base", base, "--task", task, "--out", str(out))
        with self._started(arguments) as child:
            try:
                _, said = child.communicate(timeout=self._timeout_s)
            except subprocess.TimeoutExpired:
                raise WorkError(
                    f"merging took more than {self._timeout_s:g} s and was ended: use a faster disk, or merge later "
                    "with 'fedpipe export --merge'"
                ) from None
        if self._stopped:
            raise WorkError("merging was ended together with the coordinator")
        if child.returncode != 0:
            lines = [line for line in said.splitlines() if line.strip()]
            kind = ExtrasMissingError if child.returncode == EXTRAS_MISSING else WorkError
            raise kind(f"merging failed ({child.returncode}): {lines[-1] if lines else 'no message'}")

    def stop(self) -> None:
        """End a merge that is under way at once, and begin none any more."""
        with self._lock:
            self._stopped = True
            if self._child is not None:
                self._child.kill()

    @contextlib.contextmanager
    def _started(self, arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
        """The exporter's process, which is gone when the block is left."""
        with self._lock:
            if self._stopped:
                raise WorkError("merging does not begin any more: the coordinator ends")
            self._child = child = subprocess.Popen(
                (*self._command, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
                start_new_session=True,  # Ctrl-C is for the coordinator, which ends it
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 -- one prepared system call, no locks
            )
        try:
            with child:
                try:
                    yield child
                finally:
                    if child.poll() is None:
                        child.kill()
        finally:
            with self._lock:
                self._child = None
