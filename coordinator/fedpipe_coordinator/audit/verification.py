"""Whether the records of a federation and of its runs are as they were written.

Pure. A record's lines are chained by their hashes, and its newest hash is known from elsewhere: so a line that was
edited, removed, added or moved shows, at the end of the file too. Who changes the store as well as the file is not
found; keep copies of the newest hash where he cannot reach them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedpipe_coordinator.store_interface import Line, Newest
from fedpipe_wire.hash_chain import FIRST, Break, Chain, read_chain

What = Literal["unreadable", "edited", "out-of-place", "removed", "added", "gone", "unknown"]
TELLING = ("records-damaged", "went-back", "lines-lost")
"""Lines by which a record itself says that something is wrong with it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written.

    Attributes:
        file: The record.
        line: Of the file, from 1; where lines are missing, the one before which they were.
        what: `unreadable`, `edited`: the line. `out-of-place`: lines are missing, too many or moved before it.
            `removed`, `added`: lines at the end. `gone`: the whole file. `unknown`: the store knows no such
            run.
        text: For people.
        explained_by: The number of a later line that says that this program took lines out; None where none does.
    """

    file: str
    line: int
    what: What
    text: str
    explained_by: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one record.

    Attributes:
        file: The record.
        lines: How many lines can be read.
        unchained: So many at its beginning are of a version that made no chain.
        newest: The hash of its last line.
        findings: What is wrong, in order.
        notices: What else a reader should know.
    """

    file: str
    lines: int
    unchained: int
    newest: str
    findings: tuple[Finding, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a record from elsewhere.

    Attributes:
        newest: The last line that was ever made; None if that is not known.
        waiting: Lines that were made and are not in the file yet, in order.
    """

    newest: Newest | None
    waiting: Sequence[Line] = field(default=())


def verify(file: str, data: bytes, known: Known) -> Verdict:
    """Judge a record.

    Args:
        file: What to call it.
        data: Its bytes.
        known: What it must end with.
    """
    *texts, rest = data.split(b"\n")
    in_file = len(texts)
    last, _ = _last(read_chain(texts))
    texts += [line.text.encode(errors="replace") for line in known.waiting if line.number > last]
    chain = read_chain(texts)
    findings = [_broken(file, chain, each) for each in chain.breaks]
    if rest and not known.waiting:  # else a kill cut a line short that is written again
        text = f"line {in_file + 1} has no end: it was cut, or something was added"
        findings.append(Finding(file, in_file + 1, "unreadable", text))
    if chain.unchained and not findings and not _counts(chain.lines[: chain.unchained]):
        findings.append(Finding(file, 1, "out-of-place", "the unchained lines at the beginning are not all there"))
    end = None if known.newest is None else _end(file, chain, in_file, known.newest)
    findings += [] if end is None else [end]
    notices = [_shorten(f"line {place} says: {line.get('text')}") for place, line in _telling(chain)]
    if chain.unchained:
        notices.insert(0, f"unchained before line {chain.unchained + 1}: an older version wrote these lines")
    if known.newest is None and chain.newest != FIRST:
        notices.append("nothing tells whether lines are missing at its end")
    return Verdict(file, len(chain.lines), chain.unchained, chain.newest, tuple(findings), tuple(notices))


def _broken(file: str, chain: Chain, found: Break) -> Finding:
    match found.what:
        case "unreadable":
            text = f"line {found.line} cannot be read: it was changed"
        case "edited":
            text = f"line {found.line} was changed: its hash is not that of what it says"
        case "out-of-place":
            text = f"line {found.line} does not follow the line before it{_missing(chain, found.line)}"
    explained = None
    if found.what == "out-of-place":
        explained = next(
            (line["number"] for place, line in _telling(chain) if place >= found.line and _took_out(line)), None
        )
        text += "" if explained is None else f"; line number {explained} says that lines were taken out"
    return Finding(file, found.line, found.what, text, explained)


def _missing(chain: Chain, place: int) -> str:
    """Which numbers are not there before a line."""
    numbers = {at: line.get("number") for at, line in chain.lines}
    here, before = numbers.get(place), numbers.get(place - 1, 0)
    if not isinstance(here, int) or not isinstance(before, int):
        return ""
    if here <= before:
        return f": number {here} comes after number {before}"
    return "" if here == before + 1 else f": numbers {before + 1} to {here - 1} are missing"


def _end(file: str, chain: Chain, lines: int, wanted: Newest) -> Finding | None:
    """What is wrong with the end of a record."""
    number, newest = _last(chain)
    if number < wanted.number:
        text = f"{wanted.number - number} lines are missing at the end: numbers {number + 1} to {wanted.number}"
        return Finding(file, lines + 1, "removed", text)
    if number > wanted.number:
        text = (
            f"nobody knows of the lines after number {wanted.number}: they were added, or the coordinator's store was "
            "restored from a backup"
        )
        return Finding(file, lines, "added", text)
    if newest != wanted.hash:
        return Finding(file, lines, "edited", f"line {lines}, the last one, is another than was written")
    return None


def _last(chain: Chain) -> tuple[int, str]:
    numbers = [line["number"] for _, line in chain.lines if isinstance(line.get("number"), int)]
    return (numbers[-1] if numbers else 0), chain.newest


def _counts(lines: Sequence[tuple[int, dict[str, Any]]]) -> bool:
    return [line.get("number") for _, line in lines] == list(range(1, len(lines) + 1))


def _telling(chain: Chain) -> list[tuple[int, dict[str, Any]]]:
    return [(place, line) for place, line in chain.lines if line.get("kind") in TELLING]


def _took_out(line: dict[str, Any]) -> bool:
    data = line.get("data")
    return line["kind"] == "records-damaged" and isinstance(data, dict) and data.get("file") == "audit.jsonl"


def _shorten(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."
