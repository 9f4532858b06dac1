"""The interface of a session with the broker, and the events it delivers.

Owns the words only. `mqtt.py` speaks to a real broker, `memory.py` is a broker within one process; the same contract
tests hold for both.

A transport never calls back into its user. It puts every event into one queue, and the thread that owns the session
takes them out and acts: so no decision runs on a library's network thread, and none can block it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol


class TransportError(Exception):
    """The session cannot be opened or used: wrong address, refused login, or a broker that is not MQTT 5."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The session is up and its subscriptions are granted. `resumed`: the broker still had this session's state."""

    resumed: bool


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The session is down; the transport goes on trying unless `final`."""

    reason: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """A message arrived."""

    topic: str
    payload: bytes
    retained: bool
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delivered:
    """The broker has acknowledged the publication with this handle. It is not durable for that."""

    handle: int


@dataclass(frozen=True, slots=True)
class Posted:
    """Put into the queue by the owner's own helpers (a worker thread, a control socket) to wake it up."""

    item: object


Event = Connected | Disconnected | Received | Delivered | Posted


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes when this session dies without saying goodbye."""

    topic: str
    payload: bytes
    properties: Mapping[str, str] = field(default_factory=dict)


class Transport(Protocol):
    """A session with the broker. All methods may be called from the owner's thread only, `start` once."""

    @property
    def events(self) -> SimpleQueue[Event]:
        """Where every event arrives, in order."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the session is up at this moment."""
        ...

    def start(self) -> None:
        """Begin to connect, and to reconnect whenever the session is lost. Returns at once."""
        ...

    def subscribe(self, pattern: str) -> None:
        """Ask for a topic pattern, now and after every reconnect."""
        ...

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, properties: Mapping[str, str] | None = None
    ) -> int | None:
        """Hand a QoS 1 publication to the broker.

        Returns:
            A handle that comes back in `Delivered`, or None if the session is down: nothing is queued then, the owner
            decides what to send again when it is up.
        """
        ...

    def stop(self) -> None:
        """Say goodbye (the will is not sent) and free everything. May be called twice."""
        ...
