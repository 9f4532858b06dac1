"""What a store of runs and agents is asked for.

Owns the words only; `store.py` is the implementation, and the contract tests hold one in memory to the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_profiles.device import DeviceProfile
from fedpipe_wire.moments import Moment
from fedpipe_wire.replay import Heard

FEDERATION = ""
"""In place of a run's name: the federation's own record."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of one of a run's files of records; numbers of a file only rise. `text` is JSON, without a line end.

    `hash` is the line's own, in a file whose lines are chained.
    """

    file: str
    number: int
    text: str
    hash: str | None = None


@dataclass(frozen=True, slots=True)
class Newest:
    """The last line of a chained file that was ever stored."""

    number: int
    hash: str


class Store(Protocol):
    """Where runs and agents are kept. One thread owns it."""

    def save_run(self, state: RunState, lines: Sequence[Line] = ()) -> None:
        """Keep a run as it is now together with new lines of its records, durably, both or neither."""
        ...

    def runs(self) -> list[RunState]:
        """All runs, in the order in which they were first saved."""
        ...

    def moments(self) -> dict[str, Moment]:
        """When each run was last saved, where that is known: by it the run's times can be told after a restart."""
        ...

    def lines(self, run: str) -> list[Line]:
        """The lines of a run that were not forgotten, in their order in each file."""
        ...

    def forget_lines(self, run: str, file: str, number: int) -> None:
        """The lines of a file up to a number lie in it durably."""
        ...

    def save_profile(self, profile: DeviceProfile) -> None:
        """Keep an agent's newest profile."""
        ...

    def profiles(self) -> dict[str, DeviceProfile]:
        """The newest profile of every agent ever seen."""
        ...

    def next_counter(self) -> int:
        """A number that was never given before, also before a restart."""
        ...

    def begin_epoch(self) -> int:
        """The number of this start, above all earlier ones, also where the store was restored from a backup.

        For that it is not below the seconds of the wall clock.
        """
        ...

    def last_line(self, run: str, file: str) -> int | None:
        """The number of the last line ever saved of a file; None where it was not written down."""
        ...

    def newest(self, run: str, file: str) -> Newest | None:
        """The last line ever saved of a chained file; None where none was."""
        ...

    def keep_newest(self, run: str, file: str, newest: Newest) -> None:
        """Note the last line of a file that is not written through this store, together with what is kept next."""
        ...

    def heard(self) -> dict[str, Heard]:
        """Which messages were heard, by sender and key."""
        ...

    def hear(self, heard: Mapping[str, Heard]) -> None:
        """Messages were heard: keep that together with what is kept next, so that what they led to never is alone."""
        ...

    def flush(self) -> None:
        """Keep what waits to be kept together with something else."""
        ...

    def close(self) -> None:
        """Free the store."""
        ...
