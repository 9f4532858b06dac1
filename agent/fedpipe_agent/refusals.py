"""What is told of packets that were refused: each one, up to so many a minute, and then how many more there were.

Owns the bound: whoever sends rubbish fills neither the log nor the record.
"""

from collections.abc import Callable
from typing import Protocol

MOST = 20
WINDOW_S = 60.0


class RefusedPacketError(ValueError):
    """A packet that is not to be acted on.

    Attributes:
        topic: on which it came, as it came.
        fault: in one word.
        size: bytes of its payload.
    """

    def __init__(self, topic: str, fault: str, size: int, reason: str) -> None:
        super().__init__(f"refused what came on {topic[:120]!r}: {reason}")
        self.topic, self.fault, self.size = topic, fault, size


class Record(Protocol):
    """Takes what is to be kept of a refused packet."""

    def __call__(self, topic: str, fault: str, size: int) -> None:
        """Keep it."""


class Refusals:
    """Used by one thread; `clock` in monotonic seconds, `log` takes one line for the owner."""

    def __init__(self, clock: Callable[[], float], log: Callable[[str], None], record: Record) -> None:
        self._clock, self._log, self._record = clock, log, record
        self._began = clock()
        self._told = 0
        self._more = 0

    def add(self, error: RefusedPacketError) -> None:
        """Tell and keep it, or count it."""
        self.tick()
        if self._told >= MOST:
            self._more += 1
            return
        self._told += 1
        self._log(str(error))
        self._record(error.topic, error.fault, error.size)

    def tick(self) -> None:
        """Time has passed: tell what was only counted."""
        now = self._clock()
        if now - self._began < WINDOW_S:
            return
        if self._more:
            self._log(f"and {self._more} more packets were refused within {now - self._began:.0f} s")
            self._record("", f"{self._more} more", 0)
        self._began, self._told, self._more = now, 0, 0
