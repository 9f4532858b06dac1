"""The agent at work: one thread that owns the session, the trainer process and the outbox.

Thin: events come from one queue, the pure machine decides, this module acts. It stays small because it never imports
the training stack; the trainer is a process of its own.
"""

import hashlib
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from queue import Empty

from fedpipe_agent import agent_events as ev
from fedpipe_agent.checks import Setup
from fedpipe_agent.link_probe import LinkProbe
from fedpipe_agent.machine import step
from fedpipe_agent.state import AgentState
from fedpipe_agent.state_folder import StateFolder, StateFolderError
from fedpipe_agent.trainer_process import TrainerProcess
from fedpipe_agent.trainer_protocol import OpenRequest, Request
from fedpipe_profiles.device import DeviceProfile
from fedpipe_wire import envelope
from fedpipe_wire.blob_bits import BlobError
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_outcomes import BlobArrived, BlobFailed, BlobWanted
from fedpipe_wire.blob_receiver import BlobReceiver
from fedpipe_wire.blob_sender import BlobSender
from fedpipe_wire.messages import (
    AGENT_CHANNELS,
    SCHEMA_VERSION,
    Ack,
    AgentMessage,
    BlobMissing,
    BlobRef,
    BlobRequest,
    CoordinatorMessage,
    MessageError,
    Presence,
    Profile,
    Progress,
    RunState,
    TurnedAway,
    Welcome,
    decode_from_coordinator,
    encode,
)
from fedpipe_wire.topics import TopicError, Topics
from fedpipe_wire.transport import (
    Connected,
    Delivered,
    Disconnected,
    Event,
    Posted,
    Received,
    Transport,
    TransportError,
    Will,
)

TICK_S = 0.5
LINK_PROBE_S = 30.0
_PROBE_BLOB = hashlib.sha256(b"link probe").hexdigest()


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this agent is to its federation in this session."""

    name: str
    topics: Topics
    session: str

    def will(self) -> Will:
        """What the broker says when this session dies."""
        message = Presence(state="offline", session=self.session)
        outside = envelope.Envelope(SCHEMA_VERSION, f"will-{self.session}", 0)
        return Will(self.topics.up(self.name, "presence"), encode(message), outside.properties())


@dataclass(frozen=True, slots=True)
class _FromTrainer:
    """What one of the trainer processes, counted from 1, says."""

    number: int
    event: ev.TrainerReplied | ev.TrainerEnded


class Daemon:
    """Runs until asked to stop. Used by one thread; `request_stop` may be called from a signal handler."""

    def __init__(
        self,
        identity: Identity,
        transport: Transport,
        folder: StateFolder,
        setup: Setup,
        log: Callable[[str], None],
        *,
        within_hours: Callable[[datetime], bool] = lambda _: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = identity
        self._topics = identity.topics
        self._transport = transport
        self._folder = folder
        self._log = log
        self._within_hours = within_hours
        self._clock = clock
        self._state = AgentState(setup=setup)
        limit = setup.profile.limits.uplink_bps
        settings = setup.transfer.to_settings(uplink_bps=limit)
        self._blobs = BlobStore(folder.blobs, chunk_bytes=settings.chunk_bytes)
        self._sender = BlobSender(transport, self._topics, self._blobs, clock, agent=identity.name, settings=settings)
        self._receiver = BlobReceiver(
            self._blobs, clock, settings=settings, wake=lambda: transport.events.put(Posted(None))
        )
        self._probe = LinkProbe(self._publish_probe, limit)
        self._profile_sent = False
        self._started = clock()
        self._trainer: TrainerProcess | None = None
        self._trainer_number = 0
        self._unsaid: list[AgentMessage] = []
        self._stopping = False

    def request_stop(self) -> None:
        """Let `run` return soon."""
        self._stopping = True

    def run(self) -> None:
        """Work until asked to stop.

        Raises:
            TransportError: if the broker refuses this agent for good.
        """
        self._transport.subscribe(self._topics.all_down(self._identity.name))
        self._transport.subscribe(self._topics.all_broadcast())
        self._transport.start()
        try:
            while not self._stopping:
                now = self._clock()
                wake = self._tick(now)
                try:
                    event = self._transport.events.get(timeout=max(0.0, min(TICK_S, wake - now)))
                except Empty:
                    continue
                self._handle(event)
        finally:
            self._close()

    def _close(self) -> None:
        if self._trainer is not None:
            self._trainer.end()
        self._receiver.close()
        if self._transport.connected:
            self._say_presence("offline")
        self._transport.stop()

    # --- events -------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> float:
        if self._transport.connected and not self._profile_sent:
            self._probe.tick(now)
            if self._probe.link is not None or now - self._started > LINK_PROBE_S:
                self._send_profile()
        setup = self._state.setup
        within = self._within_hours(datetime.now().astimezone())
        if within != setup.within_hours:
            self._state = replace(self._state, setup=replace(setup, within_hours=within))
        self._apply(ev.Ticked())
        times = [self._sender.tick(now), self._receiver.tick(now)]
        self._transfers()
        return min((at for at in times if at is not None), default=now + TICK_S)

    def _handle(self, event: Event) -> None:
        match event:
            case Received():
                self._received(event)
            case Delivered(handle):
                self._probe.delivered(handle, self._clock())
                self._sender.on_delivered(handle)
            case Connected(resumed):
                self._log("connected to the broker")
                self._say_presence("online")
                if self._profile_sent and not resumed:
                    # a broker without what it had has lost the retained profile too
                    self._say(Profile(profile=self._state.setup.profile))
                unsaid, self._unsaid = self._unsaid, []
                for message in unsaid:
                    self._say(message)
                self._sender.on_connected(resumed=resumed)
                self._receiver.on_connected(resumed=resumed)
            case Disconnected(reason, final):
                self._probe.lost()
                self._log(f"no connection to the broker: {reason}")
                if final:
                    raise TransportError(reason)
            case Posted(item):
                # What an ended trainer said before its end may still lie in the queue: it answers nothing any more.
                if isinstance(item, _FromTrainer) and item.number == self._trainer_number and self._trainer is not None:
                    self._apply(item.event)
        self._transfers()

    def _received(self, event: Received) -> None:
        try:
            address = self._topics.parse(event.topic)
            if address.channel == "blob" and address.sha256 is not None:
                self._receiver.on_chunk(address, event.payload)
                return
            outside = envelope.parse(event.properties)
            message = decode_from_coordinator(address.channel, event.payload, outside.schema)
            self._message(message, retained=event.retained)
        except (TopicError, envelope.EnvelopeError, MessageError, BlobError) as error:
            self._log(f"refused what came on {event.topic[:120]!r}: {error}")

    def _message(self, message: CoordinatorMessage, *, retained: bool) -> None:
        match message:
            case RunState():
                if message.adapter is not None and self._works_for(message.run) and not retained:
                    self._receiver.expect(message.adapter, None, pushed=True)
            case Ack():
                self._apply(ev.Acknowledged(message))
            case Welcome() | TurnedAway():
                return
            case BlobRequest():
                self._sender.on_request(message.sha256, message.bitmap)
            case _:
                self._apply(ev.TaskCame(message))

    def _works_for(self, run: str) -> bool:
        return self._state.opened_for == run or (self._state.task is not None and self._state.task.run == run)

    def _transfers(self) -> None:
        for outcome in self._receiver.take():
            match outcome:
                case BlobWanted(_, sha256, bitmap):
                    self._say(BlobMissing(sha256=sha256, bitmap=bitmap))
                case BlobArrived(_, sha256, path):
                    self._apply(ev.AdapterReady(self._blobs.ref(sha256), path))
                case BlobFailed(_, sha256, reason):
                    self._apply(ev.TransferFailed(sha256, reason))
        while self._sender.failures:
            failure = self._sender.failures.popleft()
            self._log(f"blob {failure.sha256[:12]} is not sent any more: {failure.reason}")

    def _apply(self, event: ev.AgentEvent) -> None:
        self._state, actions = step(self._state, event, self._clock())
        for action in actions:
            self._act(action)

    # --- actions ------------------------------------------------------------------------------------------------

    def _act(self, action: ev.AgentAction) -> None:
        match action:
            case ev.Say(message):
                self._say(message)
            case ev.FetchAdapter(ref):
                self._fetch(ref)
            case ev.Ask(request):
                self._ask(request)
            case ev.ShelveUpdate(path):
                try:
                    ref = self._blobs.add_file(path, move=True)
                except BlobError as error:
                    raise StateFolderError(f"the update cannot be kept in {self._folder.path}: {error}") from error
                self._sender.offer(ref)
                self._apply(ev.UpdateShelved(ref))
            case ev.DropUpdate(sha256):
                self._sender.withdraw(sha256)
                self._blobs.remove(sha256)
            case ev.StopTrainer(reason):
                if self._trainer is not None:
                    self._log(f"ending the trainer: {reason}")
                    self._trainer.end()
                    self._trainer = None
            case ev.Log(text):
                self._log(text)

    def _fetch(self, ref: BlobRef) -> None:
        # Every adapter that is not wanted any more makes room for the one that is.
        for sha256 in self._blobs.names():
            if sha256 != ref.sha256 and not self._sender.busy(sha256) and not self._is_offered(sha256):
                self._blobs.remove(sha256)
        try:
            self._receiver.expect(ref, None)
        except BlobError as error:
            self._apply(ev.TransferFailed(ref.sha256, str(error)))

    def _is_offered(self, sha256: str) -> bool:
        return self._state.offered is not None and self._state.offered.update.sha256 == sha256

    def _ask(self, request: Request) -> None:
        if isinstance(request, OpenRequest):
            if self._trainer is not None:
                self._trainer.end()
            self._trainer_number += 1
            try:
                self._trainer = TrainerProcess(
                    self._folder.trainer_log,
                    request.threads,
                    request.memory_limit_bytes,
                    partial(self._post_from_trainer, self._trainer_number),
                )
            except OSError as error:
                raise StateFolderError(
                    f"no trainer can be started with its log in {self._folder.path}: {error.strerror}. "
                    "Free space or memory, or make the folder writable"
                ) from error
        if self._trainer is not None:
            self._trainer.ask(request)

    def _post_from_trainer(self, number: int, event: ev.TrainerReplied | ev.TrainerEnded) -> None:
        self._transport.events.put(Posted(_FromTrainer(number, event)))

    def _say(self, message: AgentMessage) -> None:
        topic = self._topics.up(self._identity.name, AGENT_CHANNELS[type(message)])
        retain = isinstance(message, Presence | Profile)
        outside = envelope.Envelope(SCHEMA_VERSION, uuid.uuid4().hex, self._folder.next_counter())
        payload = encode(message)
        sent = self._transport.publish(topic, payload, retain=retain, properties=outside.properties())
        if sent is not None:
            self._sender.spend(len(payload))
        if sent is None and not isinstance(message, Progress | Presence):
            self._unsaid.append(message)

    def _say_presence(self, state: str) -> None:
        self._say(Presence(state="online" if state == "online" else "offline", session=self._identity.session))

    def _send_profile(self) -> None:
        profile: DeviceProfile = self._state.setup.profile.model_copy(update={"link": self._probe.link})
        self._state = replace(self._state, setup=replace(self._state.setup, profile=profile))
        self._profile_sent = True
        if self._probe.link is not None:
            link = self._probe.link
            self._log(
                f"uplink {link.uplink_bps / 1e6:.1f} Mbit/s ({link.uplink_source}), {link.latency_s * 1e3:.1f} ms"
            )
        self._say(Profile(profile=profile))

    def _publish_probe(self, size: int) -> int | None:
        self._sender.spend(size)
        return self._transport.publish(self._topics.up_chunk(self._identity.name, _PROBE_BLOB, 0), bytes(size))
