"""The agent's own folder: who may use it, and what is in it.

Owns the lock that keeps a second daemon out, and the counter that no restart repeats.
"""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

COUNTER_BLOCK = 1000


class StateFolderError(Exception):
    """The state folder cannot be used."""


class InUseError(StateFolderError):
    """Another agent works in this folder."""


class StateFolder:
    """A locked folder; leaving the block lets it go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._counter = 0
        self._reserved = 0

    @property
    def blobs(self) -> Path:
        """Adapters received and updates to send."""
        return self.path / "blobs"

    @property
    def trainer_log(self) -> Path:
        """What the trainer process writes to stderr."""
        return self.path / "trainer.log"

    def __enter__(self) -> Self:
        """Take the folder.

        Raises:
            InUseError: if another agent holds it.
            StateFolderError: if it cannot be made or written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUseError(
                f"another agent works in {self.path}: stop it, or give this one another 'state' folder"
            ) from error
        except OSError as error:
            raise StateFolderError(
                f"the state folder {self.path} cannot be used: {error.strerror}. Make it writable for this user, "
                "or set 'state' in agent.toml"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def next_counter(self) -> int:
        """A number that this agent never used before, also before a restart; blocks are reserved on disk."""
        if self._counter == self._reserved:
            path = self.path / "counter"
            self._counter = int(path.read_text()) if path.exists() else 0
            self._reserved = self._counter + COUNTER_BLOCK
            temporary = path.with_suffix(".tmp")
            with temporary.open("w") as file:
                file.write(str(self._reserved))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        self._counter += 1
        return self._counter
