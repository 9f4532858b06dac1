"""Files of JSON lines: appended to durably, and read although somebody or something has harmed them.

Owns what a whole line is, and what is done with others: they are kept in a file beside. What lines mean is their
writer's matter.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

Line = dict[str, Any]
Keys = Mapping[str, type]
"""What a line of a file has at least, each with the type of its value; `object` takes any."""
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Sorted:
    """The lines of a file: what can be read of them, the bytes of those, and how many others there are."""

    lines: list[Line]
    good: bytes
    bad: int


def sort_lines(data: bytes, keys: Keys) -> Sorted:
    """Tell the lines that can be read from the others; an end that a kill cut short was never said, and is neither."""
    # Only b"\n" ends a line: texts from agents may hold other characters that Python takes for line ends.
    parts = data.split(b"\n")[:-1]
    read = [(part, line) for part in parts if (line := _parse(part, keys)) is not None]
    return Sorted([line for _, line in read], b"".join(part + b"\n" for part, _ in read), len(parts) - len(read))


def read_lines(path: Path, keys: Keys) -> list[Line]:
    """The lines of a file that can be read; none where there is no file.

    Raises:
        OSError: if the file cannot be read.
    """
    return sort_lines(path.read_bytes(), keys).lines if path.exists() else []


def last_number(path: Path, key: str, keys: Keys) -> int:
    """The value of a key in the last line that can be read; 0 where there is none."""
    try:
        line = last_line(path, keys)
    except OSError:
        return 0
    return 0 if line is None else int(line[key])


def last_line(path: Path, keys: Keys) -> Line | None:
    """The last whole line that can be read, if there is one; most of a long file is not looked at.

    Raises:
        OSError: if the file cannot be read.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        begin = end = file.seek(0, os.SEEK_END)
        tail = b""
        while begin > 0:
            begin = max(0, end - max(_BLOCK, 2 * len(tail)))
            file.seek(begin)
            tail = file.read(end - begin)
            # Of the first part, the beginning may lie before what was read.
            parts = tail.split(b"\n")[:-1][0 if begin == 0 else 1 :]
            found = next((line for part in reversed(parts) if (line := _parse(part, keys)) is not None), None)
            if found is not None:
                return found
    return None


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines, synced: all of them or none or, after a kill, the first ones.

    Raises:
        OSError: if the disk does not take them; the file is as it was.
    """
    # Half a character cannot be written down: only somebody who edited a line can have put it there.
    data = memoryview(b"".join(line.encode(errors="replace") + b"\n" for line in lines))
    # Without a buffer: what a full disk refused must not be written by the close, after the file was put right.
    with path.open("a+b", buffering=0) as file:
        end = _whole_bytes(file)
        file.truncate(end)
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # what was written of them is written again
                file.truncate(end)
            raise


def set_aside(path: Path, keys: Keys) -> tuple[Path, int] | None:
    """Where a file has lines that cannot be read: keep a copy of it, take them out, and tell where the copy is.

    Returns:
        The copy, and how many lines were taken out; None where all can be read.

    Raises:
        OSError: if the file cannot be read, or the disk does not take the copy; the file is as it was.
    """
    if not path.exists():
        return None
    data = path.read_bytes()
    found = sort_lines(data, keys)
    if not found.bad:
        return None
    number = 1
    while (copy := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for target, content in ((copy, data), (path, found.good)):
        replace_bytes(target, content)
    return copy, found.bad


def replace_bytes(path: Path, data: bytes) -> None:
    """Replace a file so that a reader sees the old or the new, never a part; the new is synced.

    Raises:
        OSError: if the disk does not take it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _parse(part: bytes, keys: Keys) -> Line | None:
    try:
        line = json.loads(part)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not all(key in line and isinstance(line[key], kind) for key, kind in keys.items()):
        return None
    return line


def _whole_bytes(file: BinaryIO) -> int:
    """How many bytes of a file of lines are whole lines."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - 4096)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
