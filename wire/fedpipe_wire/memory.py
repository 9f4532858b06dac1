"""A broker within one process, and sessions with it: the same contract as the real one, without network or threads.

Owns retained messages, wills, wildcard subscriptions, sessions that outlive a connection, and a broker that can be
stopped and come back empty. Events appear in the order of the calls, so a test of one thread is deterministic; calls
from several threads are safe.
"""

import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue

from fedpipe_wire.packets import check_packet, matches
from fedpipe_wire.sending import Publication
from fedpipe_wire.transport import Connected, Delivered, Disconnected, Event, Received, TransportError, Will


@dataclass(slots=True)
class _Stored:
    """What the broker keeps for one client identifier."""

    patterns: list[str] = field(default_factory=list)
    queue: list[Received] = field(default_factory=list)
    transport: "MemoryTransport | None" = None


class MemoryBroker:
    """A broker that lives in this process.

    Args:
        max_packet_bytes: larger publications are refused, as by the default configuration of Mosquitto.
        passwords: user names and their passwords; None lets everybody in.
    """

    def __init__(self, *, max_packet_bytes: int | None = 2_000_000, passwords: Mapping[str, str] | None = None) -> None:
        self.max_packet_bytes = max_packet_bytes
        self._passwords = passwords
        self._running = True
        self._lock = threading.RLock()
        self._retained: dict[str, Publication] = {}
        self._sessions: dict[str, _Stored] = {}
        self._clients: list[MemoryTransport] = []

    def stop(self) -> None:
        """Die: every session is lost, and wills with them, as when a broker is killed."""
        with self._lock:
            self._running = False
            for stored in self._sessions.values():
                if stored.transport is not None:
                    stored.transport.session_down("connection to the broker lost: it was stopped")
                stored.transport = None

    def start(self, *, empty: bool = False) -> None:
        """Come back, with or without what was stored; the clients that still try are let in again."""
        with self._lock:
            self._running = True
            if empty:
                self._retained.clear()
                self._sessions.clear()
            for client in list(self._clients):
                self.attach(client)

    def attach(self, client: "MemoryTransport") -> None:
        """Let a client in, or tell it why not."""
        with self._lock:
            if client not in self._clients:
                self._clients.append(client)
            if not self._running:
                client.session_down("cannot reach the broker: it is stopped")
                return
            if self._passwords is not None and not self._knows(client.credentials):
                self._clients.remove(client)
                client.session_down("the broker refused the login: check user name and password", final=True)
                return
            resumed = client.client_id in self._sessions
            stored = self._sessions.setdefault(client.client_id, _Stored())
            if stored.transport is not None and stored.transport is not client:
                self.detach(stored.transport, reason="another client logged in with this identity")
            stored.transport = client
            waiting, stored.queue = stored.queue, []
            client.session_up(resumed=resumed)
            for pattern in client.patterns:
                self.subscribe(client, pattern)
            for message in waiting:
                client.events.put(message)

    def subscribe(self, client: "MemoryTransport", pattern: str) -> None:
        """Add a subscription and send the retained messages that match it."""
        with self._lock:
            stored = self._sessions[client.client_id]
            if pattern not in stored.patterns:
                stored.patterns.append(pattern)
            for topic, item in self._retained.items():
                if matches(pattern, topic):
                    client.events.put(Received(topic, item.payload, retained=True, properties=item.properties))

    def publish(self, publication: Publication) -> None:
        """Send a publication to every session that subscribed to its topic, present or not."""
        with self._lock:
            if publication.retain and publication.payload:
                self._retained[publication.topic] = publication
            elif publication.retain:
                self._retained.pop(publication.topic, None)
            for stored in self._sessions.values():
                if any(matches(pattern, publication.topic) for pattern in stored.patterns):
                    received = Received(
                        publication.topic, publication.payload, retained=False, properties=publication.properties
                    )
                    if stored.transport is None:
                        stored.queue.append(received)
                    else:
                        stored.transport.events.put(received)

    def detach(self, client: "MemoryTransport", *, reason: str = "", goodbye: bool = False) -> None:
        """End a client's connection: with its goodbye, or abruptly, when its will is published."""
        with self._lock:
            self.forget(client)
            stored = self._sessions.get(client.client_id)
            if stored is None or stored.transport is not client:
                return
            stored.transport = None
            if not goodbye:
                client.session_down(reason, final=True)
                if client.will is not None:
                    will = client.will
                    self.publish(Publication(0, will.topic, will.payload, retain=True, properties=will.properties))

    def forget(self, client: "MemoryTransport") -> None:
        """Stop trying to let this client in."""
        with self._lock:
            if client in self._clients:
                self._clients.remove(client)

    def _knows(self, credentials: tuple[str, str] | None) -> bool:
        name, password = credentials or ("", "")
        return (self._passwords or {}).get(name) == password


class MemoryTransport:
    """A `Transport` to a `MemoryBroker`; arguments as those of `MqttTransport`."""

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        *,
        will: Will | None = None,
        credentials: tuple[str, str] | None = None,
    ) -> None:
        self.client_id, self.will, self.credentials = client_id, will, credentials
        self.patterns: list[str] = []
        self._broker = broker
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._handles = itertools.count(1)
        self._connected = False
        self._started = False

    @property
    def events(self) -> SimpleQueue[Event]:
        """Where every event arrives, in order."""
        return self._events

    @property
    def connected(self) -> bool:
        """Whether the session is up at this moment."""
        return self._connected

    def start(self) -> None:
        """Connect at once if the broker runs, otherwise as soon as it does.

        Raises:
            TransportError: if it was started before.
        """
        if self._started:
            raise TransportError("this session was started before: make a new one")
        self._started = True
        self._broker.attach(self)

    def subscribe(self, pattern: str) -> None:
        """Ask for a topic pattern, now and after every reconnect."""
        if pattern not in self.patterns:
            self.patterns.append(pattern)
            if self._connected:
                self._broker.subscribe(self, pattern)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        properties: Mapping[str, str] | None = None,
    ) -> int | None:
        """Publish, and have it acknowledged at once; None if the session is down.

        Raises:
            TransportError: if the packet is larger than the broker takes, or the topic has a wildcard.
        """
        check_packet(topic, payload, properties, self._broker.max_packet_bytes)
        if not self._connected:
            return None
        handle = next(self._handles)
        self._broker.publish(Publication(handle, topic, payload, retain, dict(properties or {})))
        self._events.put(Delivered(handle))
        return handle

    def stop(self) -> None:
        """Say goodbye; the will is not sent."""
        self._connected = False
        self._broker.detach(self, goodbye=True)

    def kill(self) -> None:
        """Die without goodbye, as a process that is killed: the will is sent, and nothing reconnects."""
        self._broker.detach(self, reason="killed")

    def session_up(self, *, resumed: bool) -> None:
        """Called by the broker when it lets this session in."""
        self._connected = True
        self._events.put(Connected(resumed))

    def session_down(self, reason: str, *, final: bool = False) -> None:
        """Called by the broker when this session is lost or refused."""
        self._connected = False
        self._events.put(Disconnected(reason, final))
