"""Points in time that mean something after a restart, on this machine or another.

Owns the reading of the clocks. Within one boot of a machine only the monotonic clock counts, so that a wall clock that
is wrong or is set changes nothing.
"""

import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time.

    Attributes:
        boot: Names the boot of the machine.
        monotonic_s: Seconds of this boot's monotonic clock.
        wall_s: Seconds since the epoch, as this machine believes.
    """

    boot: str
    monotonic_s: float
    wall_s: float


def read_moment(boot_file: Path = Path("/proc/sys/kernel/random/boot_id")) -> Moment:
    """This moment. Where the boot has no name, each process counts as a boot of its own."""
    try:
        boot = boot_file.read_text().strip()
    except OSError:
        boot = f"process {time.monotonic_ns()}"
    return Moment(boot, time.monotonic(), time.time())


def rebased(at_s: float, then: Moment, now: Moment) -> float:
    """A time of `then`'s monotonic clock, at or before `then`, in the monotonic seconds of `now`.

    Across boots, the time between the two moments is the difference of the wall clocks, and never less than nothing.
    """
    if then.boot == now.boot and now.monotonic_s >= then.monotonic_s:
        return at_s
    passed_s = max(0.0, then.monotonic_s - at_s)
    away_s = max(0.0, now.wall_s - then.wall_s)
    return now.monotonic_s - away_s - passed_s
