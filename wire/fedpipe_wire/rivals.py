"""Whether another client logs in under this session's identity, judged by how connections end.

Pure. A broker ends the older of two connections of one identity, and both come back at once: they would take turns for
ever. Some brokers say so (MQTT 5.0, reason 0x8E); Mosquitto 2.0 just closes the connection. What tells it from a bad
network or a broker that was killed: the broker lets this session in again at the first attempt, and still knows it,
again and again.
"""

from collections import deque

TAKEN_OVER = 0x8E
WINDOW_S = 120.0
RIVAL = (
    ". The broker lets this session in and ends it, again and again: mostly another program is logged in as the same, "
    "such as a coordinator in a copy of this folder. Stop one of the two"
)
_SAID = 2
"""A loss of which the broker says that it was a takeover counts as so many."""


class Rivals:
    """Counts the connections that were lost in this way.

    Args:
        most: so many within `WINDOW_S` are one too many; None: there is no limit.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._lost: deque[float] = deque()

    def refused(self) -> None:
        """The broker could not be reached, or does not know this session any more: it is not a rival's doing."""
        self._lost.clear()

    def lost(self, code: int, now: float) -> bool:
        """A connection ended that the broker had let in; whether it is time to give up.

        Args:
            code: the broker's reason, 0 or another where it gave none.
            now: monotonic seconds.
        """
        if self._most is None:
            return False
        self._lost.extend([now] * (_SAID if code == TAKEN_OVER else 1))
        while self._lost and now - self._lost[0] > WINDOW_S:
            self._lost.popleft()
        return len(self._lost) >= self._most
