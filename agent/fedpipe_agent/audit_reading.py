"""Reading the record of what left the silo: whether it is whole, and what of it belongs to a run.

Owns what is said of a record. Reads line by line, each of a bounded length, for a record may be large and damaged.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedpipe_agent.audit_files import HEAD, MAX_LINE_BYTES, Head, files, read_head
from fedpipe_agent.errors import AuditError
from fedpipe_wire.hash_chain import FIRST, check

PUBLISHED = frozenset({"message", "chunk", "probe", "will"})


@dataclass(slots=True)
class Findings:
    """What a whole record holds.

    Attributes:
        lines: How many were read.
        first: The number of the first of them; more than 1 where older files were moved away.
        publications: How many of them are of what left the silo.
        published_bytes: Their payloads, together.
        kills: Numbers of the lines `started` before which a process was killed; up to half a second of publications
            before each may be missing.
    """

    lines: int = 0
    first: int = 1
    publications: int = 0
    published_bytes: int = 0
    kills: list[int] = field(default_factory=list)


def verify(folder: Path) -> Findings:
    """Check that no line of a record was edited, put in, moved or taken out.

    Args:
        folder: the agent's state folder.

    Raises:
        AuditError: naming the first place where it was, or that lines at its end are gone, or were at a start.
        OSError: if it cannot be read.
    """
    findings, head = Findings(), _head(folder)
    reader = _Reader(folder, findings, head)
    broken = check(reader.lines(), reader.begin())
    if broken is not None:
        raise AuditError(
            f"{reader.path}, line {reader.number}: it was changed, or a line before it was taken out or put in "
            f"({findings.lines - 1} lines before it are whole). Compare it with a backup and with the coordinator's "
            "record"
        )
    if reader.told:
        raise AuditError(reader.told)
    if head is None and findings.lines:
        raise AuditError(
            f"the record in {folder} has {findings.lines} lines, and {HEAD} is gone, which names one of them: lines "
            "may have been taken away at the end. Compare with a backup and with the coordinator's record"
        )
    if head is not None and head.line and not reader.met_head and not (head.full and not findings.lines):
        raise AuditError(
            f"the record in {folder} ends at line {reader.last}, and {HEAD} names line {head.line} with another hash: "
            "lines were taken away, or the two are not of one time. Compare with a backup and with the coordinator's "
            "record"
        )
    return findings


def lines_of(folder: Path, run: str | None = None) -> Iterator[dict[str, Any]]:
    """The lines of a record, or those of one run: its messages, and the chunks of its updates.

    Raises:
        AuditError: at a line that is no line of a record.
        OSError: if it cannot be read.
    """
    blobs: set[str] = set()
    for path in files(folder):
        for number, line in enumerate(_parsed(path), 1):
            if not isinstance(line, dict):
                raise AuditError(f"{path}, line {number}: it is no line of a record")
            if run is None:
                yield line
                continue
            mine = line.get("run") == run
            if mine and isinstance(line.get("blob"), str):
                blobs.add(line["blob"])
            if mine or (line.get("kind") == "chunk" and line.get("blob") in blobs):
                yield line


class _Reader:
    """Gives out lines, and remembers where it is and what it has seen."""

    def __init__(self, folder: Path, findings: Findings, head: Head | None) -> None:
        self._files, self._findings, self._head = files(folder), findings, head
        self.path, self.number, self.last = folder, 0, 0
        self.met_head = False
        self.told = ""
        self._before = ""

    def begin(self) -> str:
        """What the first line must name: older files may have been moved away by the owner."""
        for path in self._files:
            for line in _parsed(path):
                if not isinstance(line, dict) or not isinstance(line.get("line"), int):
                    return FIRST
                self._findings.first = line["line"]
                return FIRST if line["line"] == 1 else str(line.get("prev"))
        return FIRST

    def lines(self) -> Iterator[Any]:
        """Every line, oldest first."""
        for path in self._files:
            self.path, self.number = path, 0
            for line in _parsed(path):
                self.number += 1
                self._findings.lines += 1
                if isinstance(line, dict):
                    self._count(line)
                yield line

    def _count(self, line: dict[str, Any]) -> None:
        found, kind = self._findings, line.get("kind")
        self.last = line.get("line", 0)
        if kind in PUBLISHED:
            found.publications += 1
            size = line.get("bytes")
            found.published_bytes += size if isinstance(size, int) else 0
        if kind == "started" and self._before not in ("", "stopped"):
            found.kills.append(self.last)
        self._before = str(kind)
        self.met_head = self.met_head or (self._head is not None and self._head.held_by(line))
        if kind == "started" and not self.told and ("missing_to" in line or "head_gone" in line):
            gone = "audit.head was" if "head_gone" in line else f"lines up to {line['missing_to']} were"
            self.told = (
                f"{self.path}, line {self.number}: when the agent started here, {gone} gone or changed. Compare with a "
                "backup and with the coordinator's record"
            )


def _parsed(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        while text := file.readline(MAX_LINE_BYTES):
            if not text.endswith(b"\n") and len(text) < MAX_LINE_BYTES:
                return  # it is being written, or a crash has cut it short
            try:
                yield json.loads(text)
            except (ValueError, RecursionError):
                yield None


def _head(folder: Path) -> Head | None:
    try:
        return read_head(folder)
    except ValueError:
        path = folder / HEAD
        raise AuditError(f"{path} is damaged: it must name a line of the record. Compare with a backup") from None
