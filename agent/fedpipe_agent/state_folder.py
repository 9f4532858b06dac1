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
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if not isinstance(error, BlockingIOError):
                raise _unusable(self.path, error) from error
            raise InUseError(
                f"another agent works in {self.path}: stop it, or give this one another 'state' folder"
            ) from error
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def next_counter(self) -> int:
        """A number that this agent never used before, also before a restart; blocks are reserved on disk.

        Raises:
            StateFolderError: if the numbers reserved before cannot be read, or no more can be reserved.
        """
        if self._counter == self._reserved:
            self._counter = self._read_reserved()
            self._reserved = self._counter + COUNTER_BLOCK
            try:
                self._write_reserved()
            except OSError as error:
                raise _unusable(self.path, error) from error
        self._counter += 1
        return self._counter

    @property
    def _file(self) -> Path:
        return self.path / "counter"

    def _read_reserved(self) -> int:
        try:
            return int(self._file.read_text()) if self._file.exists() else 0
        except (OSError, ValueError) as error:
            # Beginning again at 0 would let old messages pass for new ones.
            raise StateFolderError(
                f"{self._file} does not hold a number: restore it, or enrol this agent anew with an empty state folder"
            ) from error

    def _write_reserved(self) -> None:
        temporary = self._file.with_suffix(".tmp")
        with temporary.open("w") as file:
            file.write(str(self._reserved))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._file)


def _unusable(path: Path, error: OSError) -> StateFolderError:
    return StateFolderError(
        f"the state folder {path} cannot be used: {error.strerror}. Make room there and make it writable for this "
        "user, or set 'state' in agent.toml"
    )
