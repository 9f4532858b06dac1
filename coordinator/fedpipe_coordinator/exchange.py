"""The coordinator's side of the wire: sealed messages, updates coming in, adapters going out.

Owns what is between the transport and the service: topics, seals, blob transfers. Of a packet, the topic is looked at
first, then how many came before it, its size, its seal, and only then what is in it. It refuses what does not hold and
says so; it decides nothing about runs.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedpipe_coordinator.audit.pace import BURST, PER_SECOND, Pace
from fedpipe_coordinator.audit.refusals import Fault, Refusals
from fedpipe_wire.agent_messages import AgentMessage, BlobMissing
from fedpipe_wire.blob_bits import BlobDiskError, BlobError
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_outcomes import BlobArrived, BlobFailed, BlobWanted
from fedpipe_wire.blob_receiver import BlobReceiver
from fedpipe_wire.blob_sender import BlobSender
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.coordinator_messages import Ack, BlobRequest, CoordinatorMessage, RunState, Task, TurnedAway, Welcome
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.messages import (
    COORDINATOR_CHANNELS,
    MAX_MESSAGE_BYTES,
    MessageError,
    decode_from_agent,
    encode,
)
from fedpipe_wire.replay import Heard
from fedpipe_wire.sealing import Inspector, Sealer, SealError
from fedpipe_wire.topics import Address, TopicError, Topics
from fedpipe_wire.transport import Connected, Delivered, Posted, Received, Transport

NO_TIMER_S = 3600.0


@dataclass(frozen=True, slots=True)
class TransferDone:
    """An agent's blob is here, or is not (`path` is None and `reason` says why).

    `hopeless`: asking again would not help, for the agent says of it what cannot be. `spoilt`: what came were other
    bytes than its name says, each time; agent, disk, broker or network is at fault, and nobody can tell which.
    """

    agent: str
    sha256: str
    path: Path | None
    reason: str = ""
    hopeless: bool = False
    spoilt: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """A message that an agent has sent, and the id that its envelope names it by."""

    agent: str
    message: AgentMessage
    message_id: str


class Exchange:
    """Used by the service's thread only.

    Args:
        transport: the session with the broker.
        topics: of the federation.
        blobs: adapters and updates.
        sealer: signs what is sent.
        inspector: judges what is received.
        log: takes lines for people.
        settings: how blobs are sent and received.

    Attributes:
        refusals: what was not listened to.
        hear: takes which messages were heard, before anybody acts on the last of them; its user sets it.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        blobs: BlobStore,
        sealer: Sealer,
        inspector: Inspector,
        log: Callable[[str], None],
        settings: BlobSettings = BlobSettings(),  # noqa: B008 - a frozen value
    ) -> None:
        self.transport = transport
        self.refusals = Refusals()
        self._pace = Pace()
        self._topics = topics
        self._blobs = blobs
        self._sealer, self._inspector = sealer, inspector
        self.hear: Callable[[Mapping[str, Heard]], None] = lambda _: None
        self._log = log
        self._packet = Received("", b"", retained=False)
        self._sender = BlobSender(transport, topics, blobs, time.monotonic, settings=settings)
        self._receiver = BlobReceiver(
            blobs, time.monotonic, settings=settings, wake=lambda: transport.events.put(Posted(None))
        )
        self._unsent: list[tuple[str, CoordinatorMessage, bool]] = []

    def start(self) -> None:
        """Begin to connect and to listen."""
        self.transport.subscribe(self._topics.all_up())
        self.transport.start()

    def stop(self) -> None:
        """Close the session and the open files; transfers go on when they are asked for again."""
        self._receiver.close()
        self.transport.stop()

    # --- sending ------------------------------------------------------------------------------------------------

    def send(self, agent: str, message: Task | Ack | BlobRequest | Welcome | TurnedAway) -> None:
        """Send to one agent; kept until the session is up.

        Raises:
            MessageError: if the message is larger than an agent reads.
        """
        self._publish(self._topics.down(agent, COORDINATOR_CHANNELS[type(message)]), message, retain=False)

    def announce(self, message: RunState) -> None:
        """Tell all agents how a run stands; the broker keeps the last word for those who come later."""
        self._publish(self._topics.broadcast("run"), message, retain=True)

    def broadcast_blob(self, ref: BlobRef) -> None:
        """Publish a blob once for all agents, and again the parts that one asks for."""
        self._sender.push(ref)

    def fetch(self, agent: str, ref: BlobRef) -> None:
        """Fetch a blob of an agent; the outcome is among `finished`."""
        try:
            self._receiver.expect(ref, agent)
        except BlobError as error:
            hopeless = not isinstance(error, BlobDiskError)
            self._receiver.outcomes.append(BlobFailed(agent, ref.sha256, str(error), hopeless=hopeless))

    def stop_fetching(self, agent: str, sha256: str) -> None:
        """Expect a blob of an agent no more."""
        self._receiver.cancel(sha256, agent)

    def forget_all(self, keep: set[str]) -> None:
        """Remove all blobs but these, whole or in part; what is being received stays."""
        try:
            for sha256 in set(self._blobs.names()) - keep:
                self._sender.withdraw(sha256)
            self._blobs.collect(keep)
        except (BlobError, OSError) as error:
            self._log(f"old blobs stay: {error}")

    def _publish(self, topic: str, message: CoordinatorMessage, *, retain: bool) -> None:
        payload = encode(message)
        if len(payload) > MAX_MESSAGE_BYTES:
            raise MessageError(f"{message.type} has {len(payload)} bytes, at most {MAX_MESSAGE_BYTES} are read")
        outside = self._sealer.seal(topic, payload, retain=retain)
        sent = self.transport.publish(topic, payload, retain=retain, properties=outside.properties())
        if sent is None:
            self._unsent.append((topic, message, retain))

    # --- receiving ----------------------------------------------------------------------------------------------

    def received(self, event: Received) -> Iterator[Said]:
        """The message in a packet, if there is one for the service; chunks and requests for chunks are dealt with."""
        self._packet = event
        if event.retained and self._is_kept_chunk():
            return
        try:
            address = self._topics.parse(event.topic)
        except TopicError as error:
            self.refuse("wrong-topic", str(error))
            return
        if address.agent is None or address.direction != "up":
            self.refuse("wrong-topic", "only what agents send up is listened to")
            return
        try:
            if address.channel == "blob":
                self._take_chunk(address)
                return
            said = self._read(address.agent, address.channel)
        except SealError as error:
            self.refuse(error.fault, str(error), address.agent)
        except (MessageError, BlobError) as error:
            self.refuse("malformed", str(error), address.agent)
        else:
            if said is not None:
                yield said

    def refuse(self, fault: Fault, reason: str, sender: str = "") -> None:
        """Do not listen to the packet that is being handled, and say so."""
        text = self.refusals.add(fault, sender, self._packet.topic, self._packet.payload, reason)
        if text is not None:
            self._log(text)

    def _is_kept_chunk(self) -> bool:
        """Whether what is marked to be kept is on a chunk's topic, of which there are as many as somebody makes up.

        The broker is made to forget it: nothing else would limit what is kept there, or free it.
        """
        topic = self._packet.topic
        above, blob, _ = topic.partition("/up/blob/")
        if not blob:
            return False
        if not self._packet.payload:
            return True  # the own word to forget, as it comes back
        try:
            sender = self._topics.parse(f"{above}/up/presence").agent or ""
        except TopicError:
            return False
        self.refuse("retained", "the broker was asked to keep a chunk, which no honest agent does: revoke it", sender)
        self.transport.publish(topic, b"", retain=True)
        return True

    def _take_chunk(self, address: Address) -> None:
        """A chunk has no seal: the hash of its whole stands in a sealed message."""
        self._receiver.on_chunk(address, self._packet.payload)

    def _read(self, agent: str, channel: str) -> Said | None:
        event = self._packet
        if not self._pace.allows(agent):
            self.refuse("flood", f"more than {BURST} messages at once and {PER_SECOND:.0f} in a second", agent)
            return None
        if len(event.payload) > MAX_MESSAGE_BYTES:
            self.refuse("oversize", f"{len(event.payload)} bytes, at most {MAX_MESSAGE_BYTES} are read", agent)
            return None
        outside = self._inspector.inspect(agent, event)
        # What this message leads to must not be stored without it: it would be let in again after a kill.
        self.hear(self._inspector.dirty())
        message = decode_from_agent(channel, event.payload, outside.schema)
        if isinstance(message, BlobMissing):
            self._sender.on_request(message.sha256, message.bitmap, agent)
            return None
        return Said(agent, message, outside.message_id)

    def delivered(self, event: Delivered) -> None:
        """The broker acknowledged a publication."""
        self._sender.on_delivered(event.handle)

    def connected(self, event: Connected) -> None:
        """The session is up: send what waited, ask again for what may be lost."""
        unsent, self._unsent = self._unsent, []
        for topic, message, retain in unsent:
            self._publish(topic, message, retain=retain)
        self._sender.on_connected(resumed=event.resumed)
        self._receiver.on_connected(resumed=event.resumed)

    def tick(self, now: float) -> float:
        """Let time pass; the time at which the next call matters."""
        times = [self._sender.tick(now), self._receiver.tick(now)]
        return min((at for at in times if at is not None), default=now + NO_TIMER_S)

    def finished(self) -> Iterator[TransferDone]:
        """Transfers that ended since the last call; requests for chunks are sent on the way."""
        for outcome in self._receiver.take():
            match outcome:
                case BlobWanted(str() as agent, sha256, bitmap):
                    self.send(agent, BlobRequest(sha256=sha256, bitmap=bitmap))
                case BlobArrived(str() as agent, sha256, path):
                    yield TransferDone(agent, sha256, path)
                case BlobFailed(str() as agent, sha256, reason) as failed:
                    text = f"the update did not arrive: {reason}"
                    yield TransferDone(agent, sha256, None, text, hopeless=failed.hopeless, spoilt=failed.spoilt)
                case _:
                    continue
        while self._sender.failures:
            failure = self._sender.failures.popleft()
            self._log(f"blob {failure.sha256[:12]} is not sent any more: {failure.reason}")
