"""Mallory: an agent of the federation that says whatever a case wants it to, straight over MQTT.

Owns its session: it joins, answers surveys and scores as the echo does, and keeps the task that it is given for the
cases. One thread uses it; nothing happens but while one of its methods runs.
"""

import contextlib
import hashlib
import itertools
import ssl
import time
from collections.abc import Callable, Mapping
from functools import partial
from queue import Empty
from typing import Any, TypeVar

from benchmarks.badinput_cases import CrashedError
from benchmarks.badinput_honest import profile, scored, survey, trained
from benchmarks.badinput_waiting import handle_until
from fedpipe_wire.agent_messages import AgentMessage, Presence, Profile, Refused
from fedpipe_wire.blob_bits import decode_bitmap
from fedpipe_wire.coordinator_messages import (
    Ack,
    BlobRequest,
    CoordinatorMessage,
    EndTask,
    ScoreTask,
    SurveyTask,
    TrainTask,
    Welcome,
)
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.messages import AGENT_CHANNELS, MessageError, decode_from_coordinator, encode
from fedpipe_wire.mqtt import MqttTransport
from fedpipe_wire.sealing import Sealer
from fedpipe_wire.topics import Topics
from fedpipe_wire.transport import Connected, Delivered, Disconnected, Event, Received

WAIT_S = 10.0
CHUNK_BYTES = 16 * 1024
GIB = 1 << 30
Tls = Callable[[], ssl.SSLContext]
Message = TypeVar("Message", bound=CoordinatorMessage)


class Mallory:
    """One hostile agent.

    Args:
        port: Of the broker on loopback.
        topics: Of the federation.
        sealer: Seals as this agent; a case may leave the seal away or change it.
        dataset: That it claims to hold.
        tls: Logs in as this agent; None where the federation is insecure.
    """

    def __init__(self, port: int, topics: Topics, sealer: Sealer, dataset: str, tls: Tls | None = None) -> None:
        self.name, self.topics, self.sealer = sealer.sender, topics, sealer
        self.task: TrainTask | None = None
        self.heard: list[CoordinatorMessage] = []
        self.blobs: dict[str, tuple[BlobRef, bytes]] = {}
        self.chunk: Callable[[BlobRef, int, bytes], bytes] = lambda _ref, _index, data: data
        self.instead: Callable[[AgentMessage], AgentMessage] = lambda message: message
        self.dataset = dataset
        self._numbers = itertools.count(1)
        self._connected = False
        self._shift = self._served = 0
        self._dial = partial(MqttTransport, "127.0.0.1", port, tls=tls)
        self._transport = self._dial(f"fedpipe-{self.name}")

    def join(self) -> None:
        """Connect, be welcomed, and say a profile that any planner likes."""
        self._transport.subscribe(self.topics.all_down(self.name))
        self._transport.start()
        self.until("a connection", lambda: self._connected)
        self.greet()
        self.say(Profile(profile=profile(self.name, self.dataset)), retain=True)

    def greet(self) -> None:
        """Say that it is there, as an agent does after every connection."""
        self.say(Presence(state="online", session=f"session-{self.name}"), retain=True)
        self.wait_for(Welcome)

    def leave(self) -> None:
        """Say goodbye."""
        with contextlib.suppress(CrashedError):
            self.say(Presence(state="offline", session=f"session-{self.name}"), retain=True)
        self._transport.stop()

    # --- speaking ---------------------------------------------------------------------------------------------------

    def say(self, message: AgentMessage, *, retain: bool = False) -> None:
        """Say something as an honest agent would."""
        self.send(AGENT_CHANNELS[type(message)], encode(message), retain=retain)

    def send(self, channel: str, payload: bytes, *, retain: bool = False) -> None:
        """Send any payload, sealed, on one of this agent's channels."""
        topic = self.topics.up(self.name, channel)
        self.publish(topic, payload, self.sealer.seal(topic, payload, retain=retain).properties(), retain=retain)

    def publish(
        self, topic: str, payload: bytes, properties: Mapping[str, str] | None = None, *, retain: bool = False
    ) -> None:
        """Send anything.

        Raises:
            CrashedError: if there is no connection.
        """
        if self._transport.publish(topic, payload, retain=retain, properties=properties) is None:
            self.until("a connection", lambda: self._transport.connected)
            self._transport.publish(topic, payload, retain=retain, properties=properties)

    def alone(self, topic: str, payload: bytes, properties: Mapping[str, str] | None, *, retain: bool = False) -> str:
        """Send something over a connection of its own, and tell what the broker did with it.

        What a broker refuses ends the connection, and another one would send it again.
        """
        transport = self._dial(f"fedpipe-{self.name}-{next(self._numbers)}")
        transport.start()
        deadline = time.monotonic() + WAIT_S
        try:
            while time.monotonic() < deadline:
                with contextlib.suppress(Empty):
                    match transport.events.get(timeout=0.1):
                        case Connected():
                            transport.publish(topic, payload, retain=retain, properties=properties)
                        case Disconnected(reason):
                            return f"the broker: {reason[-300:]}"
                        case Delivered():
                            return "the broker took it"
                        case _:
                            pass
        finally:
            transport.stop()
        raise CrashedError(f"the broker said nothing for {WAIT_S:.0f} s")

    def fence(self) -> None:
        """Return once the coordinator has handled everything that was sent before.

        It answers a report of a run that it does not know, and it handles packets in their order.
        """
        run = f"fence-{next(self._numbers)}"
        self.say(Refused(run=run, round=0, reason="a fence"))
        self.wait_for(EndTask, lambda message: message.run == run)

    # --- hearing ----------------------------------------------------------------------------------------------------

    def wait_for(
        self, kind: type[Message], fits: Callable[[Message], bool] = lambda _: True, limit_s: float = WAIT_S
    ) -> Message:
        """The next message of a kind; those before it are let go.

        Raises:
            CrashedError: if none comes in time.
        """
        found: list[Message] = []

        def there() -> bool:
            while self.heard:
                message = self.heard.pop(0)
                if isinstance(message, kind) and fits(message):
                    found.append(message)
                    return True
            return False

        self.until(f"a message {kind.__name__}", there, limit_s)
        return found[0]

    def until(self, what: str, condition: Callable[[], bool], limit_s: float = WAIT_S) -> None:
        """Handle what comes until something holds.

        Raises:
            CrashedError: if it does not in time, or the broker lets this agent in no more.
        """
        handle_until(self._transport.events, self._handle, condition, f"{self.name} waits for {what}", limit_s)

    def _handle(self, event: Event) -> None:
        match event:
            case Connected():
                self._connected = True
            case Disconnected(reason, final):
                self._connected = False
                if final:
                    raise CrashedError(f"{self.name} is let in no more: {reason}")
            case Received():
                self._received(event)
            case _:
                pass

    def _received(self, event: Received) -> None:
        address = self.topics.parse(event.topic)
        if address.sha256 is not None:
            return
        try:
            message = decode_from_coordinator(address.channel, event.payload, 1)
        except MessageError as error:
            raise CrashedError(f"the coordinator said what nobody can read: {error}") from error
        match message:
            case BlobRequest(sha256=sha256, bitmap=bitmap):
                self._serve(sha256, bitmap)
            case SurveyTask(run=run, terms=terms):
                self.say(self.instead(survey(run, terms)))
            case ScoreTask(run=run, terms=terms):
                self.say(self.instead(scored(run, terms)))
            case TrainTask():
                self.task = message
            case _:
                pass
        self.heard.append(message)

    # --- rounds -----------------------------------------------------------------------------------------------------

    def in_a_round(self) -> TrainTask:
        """The task of the present round; the round waits for this agent until it settles."""
        self.until("a task", lambda: self.task is not None)
        assert self.task is not None
        return self.task

    def let_go(self) -> TrainTask:
        """Give the present round up, and return the next one's task: the good agent has done a whole round between."""
        before = self.in_a_round()
        self.say(Refused(run=before.run, round=before.round, reason="nothing today"))
        self.until("the next round", lambda: self.task is not None and self.task.round > before.round, 6 * WAIT_S)
        return self.in_a_round()

    def offer(self, data: bytes, **changes: Any) -> Ack:
        """Offer these bytes as the update of the present round; what comes back of it."""
        task = self.in_a_round()
        ref, _ = self.promise(data)
        ref = ref.model_copy(update=changes.pop("ref", {}))
        self.blobs[ref.sha256] = (ref, data)
        self.say(trained(task, ref, **changes))
        # Bytes that do not match their name are asked for three times.
        ack = self.wait_for(Ack, lambda ack: ack.sha256 == ref.sha256, 6 * WAIT_S)
        if (ack.run, ack.round) == (task.run, task.round) and not ack.accepted:
            self.task = None  # the round goes on without this agent
        return ack

    def promise(self, data: bytes, shift: int = 0) -> tuple[BlobRef, Callable[[], int]]:
        """Be ready to serve bytes, under chunk numbers that are `shift` too high; the name, and how many were sent."""
        ref = BlobRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data), chunk_bytes=CHUNK_BYTES)
        self.blobs[ref.sha256] = (ref, data)
        self._shift, before = shift, self._served
        return ref, lambda: self._served - before

    def _serve(self, sha256: str, bitmap: str) -> None:
        if sha256 not in self.blobs:
            return
        ref, data = self.blobs[sha256]
        count = -(-ref.size // ref.chunk_bytes)
        bits = decode_bitmap(bitmap, count)
        for index in range(count):
            if bits >> index & 1:
                part = data[index * ref.chunk_bytes : (index + 1) * ref.chunk_bytes]
                topic = self.topics.up_chunk(self.name, sha256, index + self._shift)
                self.publish(topic, self.chunk(ref, index, part))
                self._served += 1
