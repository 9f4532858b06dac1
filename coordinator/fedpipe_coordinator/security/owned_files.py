"""Files of the owner's alone: written whole, synced and closed to others from the moment they exist.

Owns how such a file is written, read and locked; what is in it is its caller's matter.
"""

import contextlib
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

_OTHERS = 0o077
_LOCK_POLL_S = 0.05


class OwnedFileError(Exception):
    """A file that only its owner may touch is missing, open to others, or cannot be used; says what to do."""


class LockBusyError(OwnedFileError):
    """Somebody else holds the lock."""


def make_folder(path: Path) -> None:
    """Make a folder that only its owner may enter; one that is there is closed to others.

    Raises:
        OwnedFileError: if it cannot be made.
    """
    with _naming(path, "cannot be made"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)


def write_owned(path: Path, data: bytes) -> None:
    """Replace a file so that a reader sees the old or the new, never a part; only its owner may read it.

    Raises:
        OwnedFileError: if the disk does not take it; the file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with _naming(path, "cannot be written"):
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # a name that a power cut takes back was never given
        finally:
            os.close(folder)


def read_limited(path: Path, limit_bytes: int, *, private: bool = False) -> bytes:
    """Read a small file; pipes and devices are not waited for.

    Args:
        path: the file.
        limit_bytes: how many bytes it may have.
        private: refuse one that others may read.

    Raises:
        OwnedFileError: if it is missing, too large, no file, or open to others.
    """
    with _naming(path, "cannot be read"):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise OwnedFileError(f"{path} is not a file")
            if private and found.st_mode & _OTHERS:
                raise OwnedFileError(
                    f"{path} may be read by others (mode {stat.S_IMODE(found.st_mode):04o}, expected 0600): whoever "
                    f"read it can do what its owner can. Close it with `chmod 600 {path}`, and make it anew if "
                    "somebody may have copied it"
                )
            data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise OwnedFileError(f"{path} has more than {limit_bytes} bytes, which is more than such a file ever has")
    return data


@contextlib.contextmanager
def locked(path: Path, patience_s: float) -> Iterator[None]:
    """Hold a lock that ends with the process; waits for up to `patience_s`.

    Raises:
        LockBusyError: if somebody else holds it for longer.
        OwnedFileError: if the lock cannot be made.
    """
    with _naming(path, "cannot be made"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LockBusyError(
                        f"another command changes {path.parent} since {patience_s:g} s: wait for it, and try again"
                    ) from None
                time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _naming(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OwnedFileError(
            f"{path} {what}: {error.strerror or error}. Make it usable for this user, or restore it from a backup"
        ) from error
