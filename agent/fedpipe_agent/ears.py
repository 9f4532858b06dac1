"""What this agent hears: a packet becomes a chunk of a blob or a message of the coordinator, or is refused.

Owns the order of the checks, cheap ones first: topic, size, seal, form. What is heard is acted on elsewhere.
"""

from dataclasses import dataclass

from fedpipe_agent.identity import Identity
from fedpipe_agent.refusals import RefusedPacketError
from fedpipe_wire.coordinator_messages import CoordinatorMessage, RunState
from fedpipe_wire.messages import MAX_MESSAGE_BYTES, MessageError, decode_from_coordinator
from fedpipe_wire.sealing import COORDINATOR, Inspector, SealError
from fedpipe_wire.topics import Address, TopicError
from fedpipe_wire.transport import Received

RETAINED = frozenset({"run"})
"""The last levels of topics whose message the broker keeps for agents."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a broadcast blob."""

    address: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class Ears:
    """Used by the daemon's thread only.

    Attributes:
        identity: Whose topics count.
        inspector: Judges seals and counters.
    """

    identity: Identity
    inspector: Inspector

    def hear(self, event: Received) -> Chunk | CoordinatorMessage | None:
        """What a packet holds; None for what the broker kept of a run: only its newest word counts.

        Raises:
            RefusedPacketError: if it did not come on one of this agent's topics, the coordinator did not say it so and
                now, or it is not of the documented form.
        """
        try:
            address = self._address(event)
            if address.channel == "blob" and address.sha256 is not None:
                return Chunk(address, event.payload)
            if len(event.payload) > MAX_MESSAGE_BYTES:
                raise _refused(event, "malformed", f"it has {len(event.payload)} bytes, at most {MAX_MESSAGE_BYTES}")
            outside = self.inspector.inspect(COORDINATOR, event)
            message = decode_from_coordinator(address.channel, event.payload, outside.schema)
        except SealError as error:
            raise _refused(event, error.fault, str(error)) from error
        except MessageError as error:
            raise _refused(event, "malformed", str(error)) from error
        return None if event.retained and isinstance(message, RunState) else message

    def _address(self, event: Received) -> Address:
        try:
            address = self.identity.topics.parse(event.topic)
        except TopicError as error:
            raise _refused(event, "topic", str(error)) from error
        mine = address.direction == "broadcast" or (address.direction, address.agent) == ("down", self.identity.name)
        if not mine:
            raise _refused(event, "topic", f"it is not one of agent {self.identity.name}'s")
        if event.retained and address.sha256 is not None:
            raise _refused(event, "retained", "nobody of this federation asks the broker to keep a chunk")
        return address


def _refused(event: Received, fault: str, reason: str) -> RefusedPacketError:
    return RefusedPacketError(event.topic, fault, len(event.payload), reason)
