"""What this agent publishes: each message on its topic, in its envelope.

Owns the topics and the counter's use. Until it is opened it says nothing but its presence: another machine may be the
agent of this name.
"""

import hashlib
import uuid
from collections.abc import Callable
from typing import Literal

from fedpipe_agent.identity import Identity
from fedpipe_wire import envelope
from fedpipe_wire.messages import AGENT_CHANNELS, SCHEMA_VERSION, AgentMessage, Presence, Profile, encode
from fedpipe_wire.transport import Transport

_PROBE_BLOB = hashlib.sha256(b"link probe").hexdigest()


class Mouth:
    """Used by the daemon's thread only. `next_counter` gives a number that was never used before.

    Attributes:
        open: Whether this session was let in.
        spent: Takes the bytes of everything that is sent: they count against the owner's uplink limit.
    """

    def __init__(self, identity: Identity, transport: Transport, next_counter: Callable[[], int]) -> None:
        self.open = False
        self.spent: Callable[[int], None] = lambda _: None
        self._identity = identity
        self._transport = transport
        self._next_counter = next_counter

    def presence(self, state: Literal["online", "offline"]) -> None:
        """Say whether this session is there.

        Raises:
            StateFolderError: if there is no number for it.
        """
        self._publish(Presence(state=state, session=self._identity.session, instance=self._identity.instance))

    def say(self, message: AgentMessage) -> bool:
        """Say something; False if it is lost because nobody would hear it, or may hear it.

        Raises:
            StateFolderError: if there is no number for it.
        """
        return self.open and self._transport.connected and self._publish(message)

    def probe(self, size: int) -> int | None:
        """Send that many bytes to measure the link; a handle, None if they were not taken."""
        topic = self._identity.topics.up_chunk(self._identity.name, _PROBE_BLOB, 0)
        return self._send(topic, bytes(size)) if self.open else None

    def _publish(self, message: AgentMessage) -> bool:
        topic = self._identity.topics.up(self._identity.name, AGENT_CHANNELS[type(message)])
        retain = isinstance(message, Presence | Profile)
        outside = envelope.Envelope(SCHEMA_VERSION, uuid.uuid4().hex, self._next_counter())
        return self._send(topic, encode(message), retain=retain, properties=outside.properties()) is not None

    def _send(
        self, topic: str, payload: bytes, *, retain: bool = False, properties: dict[str, str] | None = None
    ) -> int | None:
        sent = self._transport.publish(topic, payload, retain=retain, properties=properties)
        if sent is not None:
            self.spent(len(payload))
        return sent
