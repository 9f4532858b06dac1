"""What this agent hears: a packet becomes a chunk of a blob or a message of the coordinator, or is refused.

Owns the order of the checks; what is heard is acted on elsewhere.
"""

from dataclasses import dataclass

from fedpipe_wire import envelope
from fedpipe_wire.coordinator_messages import CoordinatorMessage, RunState
from fedpipe_wire.messages import MessageError, decode_from_coordinator
from fedpipe_wire.topics import Address, TopicError, Topics
from fedpipe_wire.transport import Received


class RefusedPacketError(ValueError):
    """A packet that is not what it should be; the message says what came on which topic."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a broadcast blob."""

    address: Address
    data: bytes


def hear(topics: Topics, event: Received) -> Chunk | CoordinatorMessage | None:
    """What a packet holds; None for what the broker kept of a run: only its newest word counts.

    Raises:
        RefusedPacketError: if its topic, envelope or payload is not of the documented form.
    """
    try:
        address = topics.parse(event.topic)
        if address.channel == "blob" and address.sha256 is not None:
            return Chunk(address, event.payload)
        outside = envelope.parse(event.properties)
        message = decode_from_coordinator(address.channel, event.payload, outside.schema)
    except (TopicError, envelope.EnvelopeError, MessageError) as error:
        raise RefusedPacketError(f"refused what came on {event.topic[:120]!r}: {error}") from error
    return None if event.retained and isinstance(message, RunState) else message
