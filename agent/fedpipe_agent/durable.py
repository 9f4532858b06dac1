"""A small file that is replaced whole, and is there after a power cut."""

import os
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
