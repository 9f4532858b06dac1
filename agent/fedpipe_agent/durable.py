"""Small files: one that is replaced whole, and is there after a power cut; and one that somebody else has made."""

import errno
import os
import stat
from pathlib import Path

from fedpipe_wire.blob_partial import sync_folder


def write_durably(path: Path, text: str) -> None:
    """Replace a small file whole; what it holds then survives a power cut.

    Raises:
        OSError: if it cannot be written; the former one is still there.
    """
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def read_file(path: Path, most: int) -> bytes:
    """The first `most` bytes of a file; pipes and devices are not waited for.

    Raises:
        OSError: if it cannot be read, or is no file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is no file, but a device or a pipe", str(path))
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(handle)
