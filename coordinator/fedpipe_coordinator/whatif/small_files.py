"""Read a file that somebody named on the command line: never a device or a pipe, and never more than a limit."""

import json
import os
import stat
from pathlib import Path

from fedpipe_profiles.plain_text import plain

_LONGEST_PATH = 300


class UnreadableError(Exception):
    """A file cannot be read; the message names it and says why."""


def named(path: Path) -> str:
    """A path as a message may show it."""
    return plain(str(path), _LONGEST_PATH)


def read_small(path: Path, limit: int) -> bytes:
    """The file's bytes.

    Raises:
        UnreadableError: if it is not there, is no file, cannot be read, or is larger than `limit` bytes.
    """
    try:
        # A pipe that nobody writes to would be waited for without end.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableError(f"{named(path)} is no file, but a device or a pipe: name a file")
            if status.st_size > limit:
                raise UnreadableError(_too_large(path, status.st_size, limit))
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise UnreadableError(f"there is no file {named(path)}: check the path") from None
    except IsADirectoryError:
        raise UnreadableError(f"{named(path)} is a folder: name a file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableError(f"{named(path)} cannot be read: {plain(reason, 200)}") from None
    if len(data) > limit:
        raise UnreadableError(_too_large(path, len(data), limit))
    return data


def read_json(path: Path, limit: int) -> object:
    """What a JSON file holds; limits and errors as `read_small`."""
    data = read_small(path, limit)
    try:
        return json.loads(data)
    except RecursionError:
        raise UnreadableError(f"{named(path)} is nested too deeply: is this the right file?") from None
    except ValueError as error:
        raise UnreadableError(f"{named(path)} is not JSON: {plain(str(error), 200)}") from None


def _too_large(path: Path, size: int, limit: int) -> str:
    return f"{named(path)} has {size} bytes or more, and at most {limit} are read: is this the right file?"
