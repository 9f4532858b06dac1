"""The coordinator's side of the wire: messages with their envelope, updates coming in, adapters going out.

Owns what is between the transport and the service: topics, envelopes, blob transfers. It refuses what is malformed and
says so; it decides nothing about runs.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedpipe_wire import envelope
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
    SCHEMA_VERSION,
    MessageError,
    decode_from_agent,
    encode,
)
from fedpipe_wire.topics import TopicError, Topics
from fedpipe_wire.transport import Connected, Delivered, Posted, Received, Transport

NO_TIMER_S = 3600.0


@dataclass(frozen=True, slots=True)
class TransferDone:
    """An agent's blob is here, or is not (`path` is None and `reason` says why).

    `hopeless`: asking again would not help, for the agent sends what the blob's name denies.
    """

    agent: str
    sha256: str
    path: Path | None
    reason: str = ""
    hopeless: bool = False


class Exchange:
    """Used by the service's thread only."""

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        blobs: BlobStore,
        next_counter: Callable[[], int],
        log: Callable[[str], None],
        settings: BlobSettings = BlobSettings(),  # noqa: B008 - a frozen value
    ) -> None:
        self.transport = transport
        self._topics = topics
        self._blobs = blobs
        self._next_counter = next_counter
        self._log = log
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
        outside = envelope.Envelope(SCHEMA_VERSION, uuid.uuid4().hex, self._next_counter())
        sent = self.transport.publish(topic, payload, retain=retain, properties=outside.properties())
        if sent is None:
            self._unsent.append((topic, message, retain))

    # --- receiving ----------------------------------------------------------------------------------------------

    def received(self, event: Received) -> Iterator[tuple[str, AgentMessage]]:
        """The message in a packet, if there is one for the service; chunks and requests for chunks are dealt with."""
        try:
            address = self._topics.parse(event.topic)
            if address.agent is None or address.direction != "up":
                return
            if address.channel == "blob":
                self._receiver.on_chunk(address, event.payload)
                return
            outside = envelope.parse(event.properties)
            message = decode_from_agent(address.channel, event.payload, outside.schema)
            if isinstance(message, BlobMissing):
                self._sender.on_request(message.sha256, message.bitmap, address.agent)
                return
        except (TopicError, envelope.EnvelopeError, MessageError, BlobError) as error:
            self._log(f"refused what came on {event.topic[:120]!r}: {error}")
            return
        yield address.agent, message

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
                case BlobFailed(str() as agent, sha256, reason, hopeless):
                    yield TransferDone(agent, sha256, None, f"the update did not arrive: {reason}", hopeless)
                case _:
                    continue
        while self._sender.failures:
            failure = self._sender.failures.popleft()
            self._log(f"blob {failure.sha256[:12]} is not sent any more: {failure.reason}")
