"""What this agent publishes: each message on its topic, in its envelope.

Owns the topics. Until it is opened it says nothing but its presence: another machine may be the
agent of this name. What is too large for a message becomes the word that the task failed for that.
"""

import hashlib
from collections.abc import Callable
from typing import Literal

from fedpipe_agent.identity import Identity
from fedpipe_agent.seals import Seals
from fedpipe_wire.agent_messages import AgentMessage, Evaluated, Failed, Presence, Profile, Scored, Survey, Trained
from fedpipe_wire.messages import AGENT_CHANNELS, MAX_MESSAGE_BYTES, encode
from fedpipe_wire.transport import Transport, TransportError

PROBE_BLOB = hashlib.sha256(b"link probe").hexdigest()
"""Under this name zeros are sent, to measure the link."""


class Mouth:
    """Used by the daemon's thread only. `seals` says what messages are sealed with now; `log` takes a line.

    Attributes:
        open: Whether this session was let in.
        spent: Takes the bytes of everything that is sent: they count against the owner's uplink limit.
    """

    def __init__(self, identity: Identity, transport: Transport, seals: Seals, log: Callable[[str], None]) -> None:
        self.open = False
        self.spent: Callable[[int], None] = lambda _: None
        self._identity = identity
        self._transport = transport
        self._seals = seals
        self._log = log

    def presence(self, state: Literal["online", "offline"]) -> None:
        """Say whether this session is there.

        Raises:
            StateFolderError: if there is no number for it.
        """
        self._publish(Presence(state=state, session=self._identity.session, instance=self._identity.instance))

    def say(self, message: AgentMessage) -> bool:
        """Say something; False if it is lost because nobody would hear it, or may hear it, or it is too large.

        Raises:
            StateFolderError: if there is no number for it.
        """
        if not (self.open and self._transport.connected):
            return False
        try:
            return self._publish(message)
        except TransportError as error:
            self._log(f"{message.type} cannot be sent: {error}")
            instead = failed_for_size(message, str(error))
        try:
            return instead is not None and self._publish(instead)
        except TransportError as error:
            self._log(f"and that cannot be sent either: {error}")
            return False

    def probe(self, size: int) -> int | None:
        """Send that many bytes to measure the link; a handle, None if they were not taken."""
        topic = self._identity.topics.up_chunk(self._identity.name, PROBE_BLOB, 0)
        try:
            return self._send(topic, bytes(size)) if self.open else None
        except TransportError as error:
            self._log(f"the link cannot be measured: {error}")
            return None

    def _publish(self, message: AgentMessage) -> bool:
        topic = self._identity.topics.up(self._identity.name, AGENT_CHANNELS[type(message)])
        retain = isinstance(message, Presence | Profile)
        payload = encode(message)
        if len(payload) > MAX_MESSAGE_BYTES:
            raise TransportError(f"it has {len(payload)} bytes, at most {MAX_MESSAGE_BYTES} are read")
        outside = self._seals.sealer.seal(topic, payload, retain=retain)
        return self._send(topic, payload, retain=retain, properties=outside.properties()) is not None

    def _send(
        self, topic: str, payload: bytes, *, retain: bool = False, properties: dict[str, str] | None = None
    ) -> int | None:
        sent = self._transport.publish(topic, payload, retain=retain, properties=properties)
        if sent is not None:
            self.spent(len(payload))
        return sent


def failed_for_size(message: AgentMessage, reason: str) -> Failed | None:
    """What is said in place of a result that no message can hold; None for what answers no task."""
    match message:
        case Survey(run=run, labels=labels):
            remedy = f"choose a label column with fewer than {len(labels)} labels, or with shorter ones"
            return _failed(run, 0, "data", f"the survey cannot be sent: {reason}; {remedy}")
        case Scored(run=run, contribution=contribution):
            remedy = (
                f"fine-tune a model with fewer than {len(contribution.curves)} linear layers, or a smaller global_rank"
            )
            return _failed(run, 0, "internal", f"the scores cannot be sent: {reason}; {remedy}")
        case Evaluated(run=run, round=round_) | Trained(run=run, round=round_):
            remedy = "raise the broker's limit for packets"
            return _failed(run, round_, "internal", f"{message.type} cannot be sent: {reason}; {remedy}")
        case _:
            return None


def _failed(run: str, round_: int, kind: Literal["data", "internal"], text: str) -> Failed:
    return Failed(run=run, round=round_, kind=kind, message=text[:4000])
