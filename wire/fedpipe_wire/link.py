"""One connection to a broker, as the session sees it: what it can be told, and what it says.

Owns the words between `session.py`, which decides, and `mqtt.py`, which speaks to the network. Every signal carries the
number of the connection it came from, so that an echo of one that is gone is recognised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from fedpipe_wire.sending import Publication
from fedpipe_wire.transport import Received


@dataclass(frozen=True, slots=True)
class Subscribe:
    """The owner asks for a topic pattern."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The owner wants the session to end."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The broker answered the login with a reason code (below 0x80: success) and its limits; None: no limit told."""

    link: int
    resumed: bool
    code: int
    reason: str
    max_packet_bytes: int | None = None
    receive_maximum: int | None = None
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Granted:
    """The broker answered a subscription, one reason code per pattern."""

    link: int
    packet_id: int
    codes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The broker answered a publication."""

    link: int
    packet_id: int
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Came:
    """A message arrived."""

    link: int
    message: Received


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection ended; `code` is the broker's DISCONNECT reason, 0 if it gave none."""

    link: int
    code: int
    reason: str


FromLink = Accepted | Granted | Acknowledged | Came | Lost
Signal = Subscribe | Stop | Publication | FromLink


class Link(Protocol):
    """An open connection. Its answers arrive as signals."""

    def subscribe(self, patterns: tuple[str, ...]) -> int | None:
        """Ask for patterns at QoS 1; the packet identifier, or None if the connection is gone."""
        ...

    def publish(self, publication: Publication) -> int | None:
        """Send at QoS 1; the packet identifier, or None if the connection is gone."""
        ...

    def goodbye(self) -> None:
        """Send DISCONNECT after what was sent before; `Lost` follows."""
        ...

    def close(self) -> None:
        """Close the socket and end the connection's thread. May be called on one that is gone."""
        ...


OpenLink = Callable[[int, SimpleQueue[Signal]], Link]
"""Opens connection number n, whose signals go into the queue; raises OSError or ValueError if it cannot."""
