"""Publications on their way: handed over by the owner, not yet acknowledged by the broker.

Owns their order and how many are in flight at once. It is a plain value holder for one thread; it sends nothing itself.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Publication:
    """One QoS 1 publication; `handle` is what its owner knows it by."""

    handle: int
    topic: str
    payload: bytes
    retain: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)


class Sending:
    """Publications in the owner's order, at most `limit` of them in flight."""

    def __init__(self) -> None:
        self.limit = 1
        self._waiting: deque[Publication] = deque()
        self._in_flight: dict[int, Publication] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_flight)

    def add(self, publication: Publication) -> None:
        """Take a publication from its owner."""
        self._waiting.append(publication)

    def next(self) -> Publication | None:
        """The publication to send now, or None; it stays first until `sent`."""
        if not self._waiting or len(self._in_flight) >= self.limit:
            return None
        return self._waiting[0]

    def sent(self, packet_id: int) -> None:
        """The first one went out under this packet identifier."""
        self._in_flight[packet_id] = self._waiting.popleft()

    def acknowledged(self, packet_id: int) -> Publication | None:
        """Let go of the publication with this packet identifier; None if there is none."""
        return self._in_flight.pop(packet_id, None)

    def connection_lost(self) -> int:
        """Nothing in flight can be acknowledged any more: all of it goes out again, first and in its order.

        Returns:
            How many that are.
        """
        again = len(self._in_flight)
        self._waiting.extendleft(reversed(self._in_flight.values()))
        self._in_flight.clear()
        return again
