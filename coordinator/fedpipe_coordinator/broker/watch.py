"""The managed broker kept running: started again whenever it ends, with a growing wait.

Owns when that is tried. It must be asked from the main thread, which the broker's process is bound to.
"""

from collections.abc import Callable
from typing import Protocol

from fedpipe_coordinator.broker.errors import BrokerError

WAIT_MIN_S = 0.2
WAIT_MAX_S = 5.0
STEADY_S = 60.0
"""A broker that ran for this long may be started again at once."""
_TRIM_S = 60.0


class Broker(Protocol):
    """What is watched."""

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        ...

    def revive(self) -> str:
        """Start it again; its last words."""
        ...

    def trim_log(self) -> None:
        """Keep its log short."""
        ...


class BrokerWatch:
    """Call `look` every now and then.

    Args:
        broker: a broker that was started.
        log: takes lines for people.
    """

    def __init__(self, broker: Broker, log: Callable[[str], None]) -> None:
        self._broker, self._log = broker, log
        self._wait_s = WAIT_MIN_S
        self._try_at = 0.0
        self._since: float | None = None
        self._trim_at = 0.0
        self._said = ""

    def look(self, now: float) -> None:
        """Start the broker again if it ended and it is time to; `now` in monotonic seconds."""
        if self._broker.is_alive:
            self._since = now if self._since is None else self._since
            if now - self._since >= STEADY_S:
                self._wait_s = WAIT_MIN_S
            if now >= self._trim_at:
                self._trim_at = now + _TRIM_S
                try:
                    self._broker.trim_log()
                except BrokerError as error:
                    self._say(f"the broker's log is not kept short: {error}")
            return
        self._since = None
        if now < self._try_at:
            return
        self._try_at = now + self._wait_s
        self._wait_s = min(2 * self._wait_s, WAIT_MAX_S)
        try:
            words = self._broker.revive()
        except BrokerError as error:
            self._say(f"the broker ended and cannot be started again yet: {error}")
        else:
            self._said = ""
            self._log(f"the broker had ended and runs again; its last words:\n{words}")

    def _say(self, text: str) -> None:
        """Say something unless it was the last thing said."""
        if text != self._said:
            self._log(text)
        self._said = text
