"""Lines of a record that hold on to one another: each carries the hash of the one before it, and its own.

Pure. Who changes, removes, adds or moves a line breaks the chain there, unless he makes all lines after it anew: so
the newest hash has to be kept somewhere else. What lines say, and where they lie, is their writer's matter.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

FIRST = "0" * 64
"""What the first line of a chain says of the one before it."""

Line = dict[str, Any]
What = Literal["unreadable", "edited", "out-of-place"]


def canonical(value: object) -> bytes:
    """JSON in one form only: keys sorted, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def chained(line: Mapping[str, Any], previous: str = FIRST) -> Line:
    """A line as it is written: with `prev`, the hash of the line before it, and `hash`, over all but itself.

    Args:
        line: Anything that JSON holds; its own `prev` and `hash`, if it has any, are replaced.
        previous: The `hash` of the line before it, `FIRST` for the first one.
    """
    # Through JSON: a number as a key becomes text, and is sorted as such by whoever reads it.
    plain = {key: value for key, value in json.loads(json.dumps(line)).items() if key not in ("prev", "hash")}
    plain["prev"] = previous
    return plain | {"hash": hash_of(plain)}


def check(lines: Iterable[object], previous: str = FIRST) -> int | None:
    """The place, from 1, of the first line that does not follow from those before it; None if all do.

    Args:
        lines: As they were read back; one that is no JSON object breaks the chain.
        previous: The hash that the first of them must name.
    """
    for place, line in enumerate(lines, 1):
        if not isinstance(line, Mapping) or line.get("prev") != previous or line.get("hash") != hash_of(line):
            return place
        previous = str(line["hash"])
    return None


def hash_of(line: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, over a line without its `hash`."""
    return hashlib.sha256(canonical({key: value for key, value in line.items() if key != "hash"})).hexdigest()


def written(line: Mapping[str, Any]) -> str:
    """The text of a line in its file, without a line end; there is one such text for each line."""
    return json.dumps(line, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Break:
    """Where a chain does not hold.

    Attributes:
        line: Of the file, from 1.
        what: `unreadable`: it is no line of a record. `edited`: its hash is not that of its content. `out-of-place`: it
            does not follow the line before it, so lines were removed, added or moved there.
    """

    line: int
    what: What


@dataclass(frozen=True, slots=True)
class Chain:
    """What a file of lines is.

    Attributes:
        lines: Those that can be read, in order, each with its place in the file, from 1.
        breaks: Where the chain does not hold, in order.
        unchained: So many lines at the beginning are of a version that made no chain; nothing tells if they are whole.
        newest: The hash of the last line that has one, `FIRST` where none has.
    """

    lines: tuple[tuple[int, Line], ...]
    breaks: tuple[Break, ...]
    unchained: int
    newest: str


def read_chain(texts: Iterable[bytes], *, exact: bool = True) -> Chain:
    """Judge the whole lines of a file, each without its line end.

    Args:
        texts: As they lie in the file.
        exact: Whether they must be as `written` writes them; else any text of the same line will do.
    """
    lines: list[tuple[int, Line]] = []
    breaks: list[Break] = []
    unchained, newest = 0, FIRST
    begun = False
    for place, text in enumerate(texts, 1):
        line = _read(text)
        if line is None:
            breaks.append(Break(place, "unreadable"))
            continue
        lines.append((place, line))
        if not begun and "prev" not in line and "hash" not in line:
            unchained = place
            continue
        begun = True
        previous, own = line.get("prev"), line.get("hash")
        # Text of half a character cannot be written down: who put it there in escapes has edited the line.
        if own != hash_of(line) or (exact and text != written(line).encode(errors="replace")):
            breaks.append(Break(place, "edited"))
        elif previous != newest:
            breaks.append(Break(place, "out-of-place"))
        newest = own if isinstance(own, str) else newest
    return Chain(tuple(lines), tuple(breaks), unchained, newest)


def _read(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None
