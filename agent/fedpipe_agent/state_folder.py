"""The agent's own folder: who may use it, and what is in it.

Owns the lock that keeps a second daemon out, and the places of everything that lies there.
"""

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from fedpipe_agent.counting import Counter
from fedpipe_agent.errors import InUseError, StateFolderError, unusable
from fedpipe_agent.identity import read_instance
from fedpipe_agent.journal import Journal
from fedpipe_wire.blob_partial import sync_folder


class StateFolder:
    """A locked folder with its journal open; leaving the block lets it go.

    Args:
        path: of the folder.
        wall_us: microseconds since the epoch, as this machine believes.

    Attributes:
        instance: Names this folder on this machine.
    """

    def __init__(self, path: Path, wall_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self.path, self._wall_us = path, wall_us
        self.instance = ""
        self._journal: Journal | None = None
        self._lock: int | None = None
        self._counter: Counter | None = None

    @property
    def blobs(self) -> Path:
        """Adapters received and updates to send."""
        return self.path / "blobs"

    @property
    def trainer_log(self) -> Path:
        """What the trainer process writes to stderr."""
        return self.path / "trainer.log"

    @property
    def update(self) -> Path:
        """Where the trainer writes its update."""
        return self.path / "update.safetensors"

    @property
    def journal(self) -> Journal:
        """What the agent remembers; open within the block only."""
        assert self._journal is not None, "the state folder is not open"
        return self._journal

    def __enter__(self) -> Self:
        """Take the folder.

        Raises:
            InUseError: if another agent holds it.
            JournalError: if what it remembers cannot be read or written.
            StateFolderError: if it cannot be made or written, or does not tell which numbers were used.
        """
        try:
            self._make()
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise unusable(self.path, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if not isinstance(error, BlockingIOError):
                raise unusable(self.path, error) from error
            raise InUseError(
                f"another agent works in {self.path}: stop it, or give this one another 'state' folder"
            ) from error
        self._lock = lock
        try:
            self.instance = read_instance(self.path)
            self._journal = Journal(self.path)
            self._counter = Counter(self.path / "counter", self._journal, self._wall_us)
            self._counter.check()
        except OSError as error:
            self._let_go()
            raise unusable(self.path, error) from error
        except StateFolderError:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    def _make(self) -> None:
        if not self.path.is_dir():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # a folder that a power cut takes away would take the counter with it
            sync_folder(self.path.parent)

    def _let_go(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def next_counter(self) -> int:
        """A number that this agent never used before, also before a restart; within the block only.

        Raises:
            StateFolderError: if the numbers reserved before cannot be read, or no more can be reserved.
        """
        assert self._counter is not None, "the state folder is not open"
        return self._counter.next()
