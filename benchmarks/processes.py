"""What /proc tells of processes: memory, descriptors, threads, children, bytes on loopback. Linux only."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KIB = 1024
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one process holds at one moment."""

    pss_bytes: int
    rss_bytes: int
    descriptors: int
    threads: int


def footprint(pid: int) -> Footprint | None:
    """What a process holds, or None where there is no such process."""
    folder = _PROC / str(pid)
    try:
        memory = _fields(folder / "smaps_rollup")
        status = _fields(folder / "status")
        descriptors = sum(1 for _ in (folder / "fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Footprint(
        pss_bytes=KIB * memory.get("Pss", 0),
        rss_bytes=KIB * memory.get("Rss", 0),
        descriptors=descriptors,
        threads=status.get("Threads", 0),
    )


def resident_bytes(pid: int | None = None, *, peak: bool = False) -> int:
    """Resident set size of a process (this one if None), or its peak since `watch_peak`; 0 where it is gone."""
    try:
        fields = _fields(_PROC / ("self" if pid is None else str(pid)) / "status")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return KIB * fields.get("VmHWM" if peak else "VmRSS", 0)


def watch_peak(pid: int | None = None) -> None:
    """Let a process's peak begin anew at what it holds now.

    Raises:
        OSError: if there is no such process, or it is another user's.
    """
    (_PROC / ("self" if pid is None else str(pid)) / "clear_refs").write_text("5")


def pss_bytes(pids: Iterable[int]) -> int:
    """Proportional set size of these processes, summed; those that are gone count nothing."""
    found = (footprint(pid) for pid in pids)
    return sum(each.pss_bytes for each in found if each is not None)


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used, with those of its children that have ended; 0 where it is gone."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """The processes that a process has started, of all its threads; those that have ended and wait are left out."""
    found: list[int] = []
    try:
        for task in (_PROC / str(pid) / "task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended while we looked
    return [each for each in found if command_line(each)]


def program(pid: int) -> str:
    """The name of a process's program; empty where it is gone."""
    try:
        return (_PROC / str(pid) / "comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def command_line(pid: int) -> str:
    """A process's command line; empty where it is gone or a zombie."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def marked(mark: str) -> list[int]:
    """Live processes of this user whose environment or command line has the text `mark`, zombies not counted."""
    found = []
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if mark.encode() in (folder / "environ").read_bytes() and (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return sorted(found)


def interface_bytes(interface: str = "lo") -> int:
    """Bytes received on an interface of this network namespace since it was made.

    Raises:
        ValueError: if there is no such interface.
    """
    for line in (_PROC / "net" / "dev").read_text().splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == interface:
            return int(figures.split()[0])
    raise ValueError(f"no network interface {interface!r} here: see /proc/net/dev")


def _fields(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in pairs if len(words) > 1 and words[1].isdecimal()}
