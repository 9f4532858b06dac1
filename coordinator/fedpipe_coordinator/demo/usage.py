"""How much memory the demo's processes take together, read from /proc.

Proportional set size counts a page that several processes share once, in parts.
"""

import os
import re
import threading
from pathlib import Path

_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


def descendants(root: int, proc: Path = Path("/proc")) -> list[int]:
    """A process and all that it started, as far as they live."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in parentheses may hold anything; what follows the last one is fixed.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found, open_ = [], [root]
    while open_:
        found.append(open_.pop())
        open_.extend(children.get(found[-1], []))
    return found


def total_pss_bytes(pids: list[int], proc: Path = Path("/proc")) -> int:
    """Proportional memory of these processes together; those that are gone count nothing."""
    total = 0
    for pid in pids:
        try:
            match = _PSS.search((proc / str(pid) / "smaps_rollup").read_bytes())
        except OSError:
            continue
        total += int(match.group(1)) * 1024 if match else 0
    return total


class PeakMemory:
    """Samples the memory of this process and its descendants until it is closed."""

    def __init__(self, period_s: float = 1.0) -> None:
        self.peak_bytes = 0
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(self._period_s):
            self.peak_bytes = max(self.peak_bytes, total_pss_bytes(descendants(os.getpid())))
