"""The lock that keeps a second coordinator out of a federation's folder.

Owns one file in it, held from before anything else is opened until the process ends, however it ends.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

LOCK_NAME = "coordinator.lock"
_LOCKS = Path("/proc/locks")


class HomeError(Exception):
    """The federation's folder cannot be used; the message says why and what to do."""


class AlreadyRunningError(HomeError):
    """Another coordinator works in this folder."""


@contextlib.contextmanager
def lock_home(home: Path) -> Iterator[None]:
    """Hold a federation's folder.

    Raises:
        AlreadyRunningError: if another process holds it.
        HomeError: if its lock cannot be made.
    """
    try:
        lock = os.open(home / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unusable(home, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise already_running(home) from None
        except OSError as error:
            raise _unusable(home, error) from error
        yield
    finally:
        os.close(lock)


def already_running(home: Path) -> AlreadyRunningError:
    """The error for a folder that another coordinator holds."""
    pid = holder(home)
    who = "" if pid is None else f", as process {pid}"
    return AlreadyRunningError(f"a coordinator is running in {home} already{who}: stop it first, or use another folder")


def holder(home: Path) -> int | None:
    """The process that holds a folder, if there is one and the system tells."""
    try:
        file = (home / LOCK_NAME).stat()
        lines = _LOCKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    for line in lines:
        words = line.split()  # 1: FLOCK ADVISORY WRITE 4711 08:01:99 0 EOF; with "->" where one waits
        if words[1:2] == ["FLOCK"] and words[5:6] == [place]:
            return int(words[4])
    return None


def _unusable(home: Path, error: OSError) -> HomeError:
    return HomeError(
        f"the federation's folder {home} cannot be used: {LOCK_NAME}: {error.strerror or error}. Make room there and "
        "make it writable for this user"
    )
