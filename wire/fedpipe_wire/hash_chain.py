"""Records whose lines hold each other: every line names the hash of the one before it.

Pure. Owns the two fields `prev` and `hash`, and how they are made. A line that was edited, put in, taken out or moved
breaks the chain at its place. That the last lines were taken away cannot be seen in the chain: whoever must know keeps
the last hash in another place. A chain holds no secret: who may write the file may write all of it anew, and only
another's record of the same things shows that.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

START = ""
"""What the first line of a record has in place of a hash."""


def chained(line: Mapping[str, Any], previous: str) -> dict[str, Any]:
    """A line with `prev` and `hash`, the SHA-256 of its canonical JSON with `prev`, in hexadecimal digits.

    Args:
        line: what JSON can hold, without these two fields.
        previous: the hash of the line before, or `START`.

    Raises:
        ValueError: if it has one of them already, or holds what JSON cannot.
    """
    taken = line.keys() & {"prev", "hash"}
    if taken:
        raise ValueError(f"a line of a record cannot have a field {', '.join(sorted(taken))} of its own")
    whole = {**line, "prev": previous}
    return {**whole, "hash": _hash(whole)}


def check(lines: Iterable[object], previous: str = START) -> int | None:
    """The place, from 1, of the first line that does not follow from those before it; None if all do.

    Args:
        lines: as they were read back; one that is no JSON object breaks the chain.
        previous: the hash that the first of them must name.
    """
    for place, line in enumerate(lines, 1):
        if not isinstance(line, Mapping):
            return place
        rest = {name: value for name, value in line.items() if name != "hash"}
        try:
            made = _hash(rest)
        except (ValueError, TypeError, RecursionError):  # NaN, or nested without end: no line was written so
            return place
        if rest.get("prev") != previous or line.get("hash") != made:
            return place
        previous = str(line["hash"])
    return None


def _hash(line: Mapping[str, Any]) -> str:
    text = json.dumps(line, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
