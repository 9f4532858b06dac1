"""How many messages an agent may send: a token bucket for each, so that one that floods costs the others nothing.

Pure but for the clock that it is given.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

BURST = 1000
"""Messages at once: what an agent may have waiting at the broker after the coordinator was away."""
PER_SECOND = 50.0
"""Messages in the long run; an honest agent sends a few."""
MOST_NAMES = 4096
"""So many agents are told apart at a time; names that nobody has must not fill the memory."""


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class Pace:
    """Used by the owner's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def allows(self, agent: str) -> bool:
        """Whether a message of this agent is to be looked at; counts it, if so."""
        now = self._clock()
        bucket = self._buckets.get(agent)
        if bucket is None:
            self._make_room(now)
            bucket = self._buckets[agent] = _Bucket(BURST, now)
        bucket.left = min(BURST, bucket.left + PER_SECOND * max(0.0, now - bucket.at))
        bucket.at = now
        if bucket.left < 1:
            return False
        bucket.left -= 1
        return True

    def _make_room(self, now: float) -> None:
        """Forget those that have been silent long enough to begin anew; if that does not help, who came first."""
        if len(self._buckets) < MOST_NAMES:
            return
        refill_s = BURST / PER_SECOND
        self._buckets = {name: each for name, each in self._buckets.items() if now - each.at < refill_s}
        while len(self._buckets) >= MOST_NAMES:
            del self._buckets[next(iter(self._buckets))]
