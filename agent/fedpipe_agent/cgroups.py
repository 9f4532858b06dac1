"""What control groups leave of a machine to this process: memory and processor time, version 1 and 2.

Owns the reading of /proc/self/cgroup and /sys/fs/cgroup. A limit holds for all groups below it, so every group
from this process's own up to the root counts. What cannot be read sets no limit: most machines have none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT = 1 << 60
"""Version 1 writes "no limit" as the largest multiple of the page size below 2^63."""


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """The tightest limits found; None where there is none."""

    total_bytes: int | None = None
    free_bytes: int | None = None
    processors: float | None = None


def read_cgroup_limits(proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> CgroupLimits:
    """Read the limits of this process.

    Memory that only holds file contents which the kernel can drop (`inactive_file`, `active_file`) counts as free, as
    in the machine's own figure. Else a model file that was read, and a trainer's libraries, would count as used.

    Args:
        proc: Where procfs is mounted.
        root: Where the control groups are mounted.
    """
    totals: list[int] = []
    frees: list[int] = []
    processors: list[float] = []
    for group in _unified_groups(proc, root):
        usage = _used(group, "memory.current", ("inactive_file", "active_file"))
        for name in ("memory.max", "memory.high"):
            _add_memory(group / name, usage, totals, frees)
        quota, _, period = _text(group / "cpu.max").partition(" ")
        _add_quota(quota, period, processors)
    for group in _groups(proc, root, "memory"):
        usage = _used(group, "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
        _add_memory(group / "memory.limit_in_bytes", usage, totals, frees)
    for group in _groups(proc, root, "cpu"):
        _add_quota(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"), processors)
    return CgroupLimits(
        total_bytes=min(totals, default=None),
        free_bytes=min(frees, default=None),
        processors=min(processors, default=None),
    )


def read_oom_kills(proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes the kernel has killed so far because memory ran out.

    Those of this process's own group, where it tells; else those of the whole machine; 0 where nobody tells.
    """
    files = [group / "memory.events" for group in _unified_groups(proc, root)]
    files += [group / "memory.oom_control" for group in _groups(proc, root, "memory")]
    for file in (*files, proc / "vmstat"):
        pairs = (line.partition(" ") for line in _text(file).splitlines())
        count = next((_number(value) for name, _, value in pairs if name == "oom_kill"), None)
        if count is not None:
            return count
    return 0


def _lines(proc: Path) -> list[tuple[str, str]]:
    """(controllers, path) of every hierarchy; version 2 has no controllers in its line."""
    lines = (line.split(":", 2) for line in _text(proc / "self" / "cgroup").splitlines())
    return [(parts[1], parts[2]) for parts in lines if len(parts) == len(("id", "controllers", "path"))]


def _unified_groups(proc: Path, root: Path) -> Iterator[Path]:
    for controllers, path in _lines(proc):
        if not controllers:
            yield from _upwards(root, path)
            # Beside version 1, version 2 is mounted here.
            yield from _upwards(root / "unified", path)


def _groups(proc: Path, root: Path, controller: str) -> Iterator[Path]:
    for controllers, path in _lines(proc):
        if controller in controllers.split(","):
            yield from _upwards(root / controller, path)
            if controllers != controller:
                yield from _upwards(root / controllers, path)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """`mount/path` and every group above it. A container sees its own group as the mount: then only that exists."""
    group = mount / path.lstrip("/")
    if ".." in group.parts:
        group = mount
    while group != mount:
        yield group
        group = group.parent
    yield mount


def _used(group: Path, name: str, droppable: tuple[str, ...]) -> int | None:
    used = _number(_text(group / name))
    if used is None:
        return None
    statistics = dict(line.split(" ", 1) for line in _text(group / "memory.stat").splitlines() if " " in line)
    return max(0, used - sum(_number(statistics.get(each, "")) or 0 for each in droppable))


def _add_memory(limit_file: Path, usage: int | None, totals: list[int], frees: list[int]) -> None:
    limit = _number(_text(limit_file))
    if limit is None or limit >= _NO_LIMIT:
        return
    totals.append(limit)
    if usage is not None:
        frees.append(max(0, limit - usage))


def _add_quota(quota_text: str, period_text: str, processors: list[float]) -> None:
    quota, period = _number(quota_text), _number(period_text)
    if quota and period:
        processors.append(quota / period)


def _number(text: str) -> int | None:
    """A count; None for "max", "-1" and whatever else is no count."""
    return int(text) if text.isascii() and text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
