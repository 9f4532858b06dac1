"""The agent at work: one thread that owns the session, the journal, the trainer's seat and the outbox.

Thin: events come from one queue, the pure machines decide, this module acts. It stays small because it never imports
the training stack; the trainer is a process of its own.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from queue import Empty

from fedpipe_agent import admission as ad
from fedpipe_agent import agent_events as ev
from fedpipe_agent.audit import AuditRecord
from fedpipe_agent.audited_transport import AuditedTransport
from fedpipe_agent.cgroups import read_oom_kills
from fedpipe_agent.checks import Setup
from fedpipe_agent.ears import Chunk
from fedpipe_agent.errors import StateFolderError, TurnedAwayError, unusable
from fedpipe_agent.freshness import Freshness, Measure
from fedpipe_agent.hands import Hands
from fedpipe_agent.identity import Identity
from fedpipe_agent.introduction import Introduction, link_text
from fedpipe_agent.machine import step
from fedpipe_agent.mouth import Mouth
from fedpipe_agent.seals import Seals
from fedpipe_agent.shelf import Shelf
from fedpipe_agent.state import AgentState
from fedpipe_agent.state_folder import StateFolder
from fedpipe_agent.trainer_seat import FromTrainer, TrainerSeat, ends_work
from fedpipe_agent.upkeep import Upkeep
from fedpipe_profiles.device import MIB, DeviceProfile
from fedpipe_wire.agent_messages import BlobMissing, Profile
from fedpipe_wire.blob_bits import BlobError
from fedpipe_wire.blob_outcomes import BlobArrived, BlobFailed, BlobWanted
from fedpipe_wire.coordinator_messages import Ack, BlobRequest, CoordinatorMessage, RunState, TurnedAway, Welcome
from fedpipe_wire.moments import Moment, read_moment
from fedpipe_wire.transport import (
    Connected,
    Delivered,
    Disconnected,
    Event,
    Posted,
    Received,
    Transport,
    TransportError,
)

TICK_S = 0.5
MAX_HELD = 256
"""Messages kept that overtook the coordinator's welcome."""


class Daemon:
    """Runs until asked to stop. Used by one thread; `request_stop` may be called from a signal handler.

    Args:
        identity: who this is.
        transport: the session with the broker, not started.
        folder: locked, with its journal open.
        setup: what the owner lends, and the measured profile.
        log: takes one line for the owner.
        seals: what messages are sealed with, and whose seals count.
        record: takes a line of everything that leaves the silo.
        within_hours: whether the owner lends the machine at a local time.
        clock: monotonic seconds, the only clock that a task's time is taken by.
        moment: this moment, by all clocks; what the journal says of when.
        oom_kills: how many processes the kernel has killed for memory so far.
        measure: measures again what changes on this machine; None leaves the profile as it is.
    """

    def __init__(  # noqa: PLR0913 - each of the world's parts comes in by itself
        self,
        identity: Identity,
        transport: Transport,
        folder: StateFolder,
        setup: Setup,
        log: Callable[[str], None],
        *,
        seals: Seals,
        record: AuditRecord,
        within_hours: Callable[[datetime], bool] = lambda _: True,
        clock: Callable[[], float] = time.monotonic,
        moment: Callable[[], Moment] = read_moment,
        oom_kills: Callable[[], int] = read_oom_kills,
        measure: Measure | None = None,
    ) -> None:
        transport = AuditedTransport(transport, record)
        self._identity, self._transport, self._folder, self._log = identity, transport, folder, log
        self._within_hours, self._clock, self._moment = within_hours, clock, moment
        self._state = AgentState(setup=setup)
        self._admission = ad.Admission(identity.session)
        self._upkeep = Upkeep(identity, folder.journal, seals, record, transport, clock, log)
        self._mouth = Mouth(identity, transport, seals, log)
        self._introduction = Introduction(setup.profile, self._mouth.probe)
        settings = setup.transfer.to_settings(uplink_bps=setup.profile.limits.uplink_bps)
        try:
            self._shelf = Shelf(folder, transport, identity.topics, identity.name, settings, clock, log)
        except BlobError as error:
            raise StateFolderError(str(error)) from error
        self._mouth.spent = self._shelf.sender.spend
        self._seat = TrainerSeat(folder.trainer_log, lambda item: transport.events.put(Posted(item)), oom_kills)
        self._hands = Hands(self._mouth, self._shelf, self._seat, log)
        self._freshness = Freshness(measure)
        self._held: deque[CoordinatorMessage] = deque(maxlen=MAX_HELD)
        self._resumed = False
        self._asked_in_vain = False
        self._stopping = False

    def request_stop(self) -> None:
        """Let `run` return soon."""
        self._stopping = True

    def run(self) -> None:
        """Go on from the journal, and work until asked to stop.

        Raises:
            TransportError: if the broker refuses this agent for good.
            TurnedAwayError: if another agent of this name lives.
            StateFolderError: if the folder takes or gives nothing any more; what is in it is whole.
        """
        try:
            self._work()
        except OSError as error:
            raise unusable(self._folder.path, error) from error
        except BlobError as error:
            raise StateFolderError(str(error)) from error

    def _work(self) -> None:
        self._remember()
        topics = self._identity.topics
        self._transport.subscribe(topics.all_down(self._identity.name))
        self._transport.subscribe(topics.all_broadcast())
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

    def _remember(self) -> None:
        left = self._folder.journal.load()
        if left is not None:
            memory = left[0].rebased(left[1], self._moment())
            self._state = replace(self._state, memory=memory, loaded=True)
            self._shelf.check(memory)
        self._hands.tidy(self._state.memory)

    def _close(self) -> None:
        self._seat.end()
        self._shelf.receiver.close()
        # Who was turned away leaves without a word: it would be taken for one of the agent that lives.
        if self._transport.connected and self._admission.turned_at is None:
            with contextlib.suppress(StateFolderError):  # a full disk; the first error is the one to tell
                self._mouth.presence("offline")
        self._transport.stop()
        self._upkeep.close(self._moment())

    def _tick(self, now: float) -> float:
        if self._upkeep.tick(self._moment()):
            self._introduction.resealed()
            self._mouth.presence("online")
        self._admit(ad.Woke())
        within = self._within_hours(datetime.now().astimezone())
        if within != self._state.setup.within_hours:
            self._state = replace(self._state, setup=replace(self._state.setup, within_hours=within))
        self._apply(ev.Ticked())
        if not self._state.in_hand and self._freshness.is_due(now):
            self._look_again(now)
        times = [self._shelf.receiver.tick(now), ad.wake_at(self._admission)]
        if self._mouth.open:
            self._introduce(self._introduction.tick(now))
            times.append(self._shelf.sender.tick(now))
        self._transfers()
        return min((at for at in times if at is not None), default=now + TICK_S)

    def _handle(self, event: Event) -> None:
        match event:
            case Received():
                self._received(event)
            case Delivered(handle):
                self._introduction.delivered(handle, self._clock())
                self._shelf.sender.on_delivered(handle)
            case Connected(resumed):
                self._upkeep.connected()
                self._resumed = resumed
                self._shelf.sender.on_connected(resumed=resumed)
                self._shelf.receiver.on_connected(resumed=resumed)
                self._admit(ad.Up())
            case Disconnected(reason, final):
                self._introduction.lost()
                self._upkeep.lost(reason)
                self._admit(ad.Down())
                if final:
                    raise TransportError(reason)
            case Posted(item):
                heard = self._seat.heard(item) if isinstance(item, FromTrainer) else None
                if heard is not None:
                    if ends_work(heard):  # the next plan is made of what is free now
                        self._look_again(self._clock())
                    self._apply(heard)
        self._transfers()

    def _received(self, event: Received) -> None:
        try:
            match self._upkeep.hear(event):
                case Chunk(address, data):
                    # What is expected was asked for while this session was welcome.
                    self._shelf.receiver.on_chunk(address, data)
                case Welcome() | TurnedAway() as word:
                    self._admit(word)
                case None:
                    return
                case message:
                    self._held.append(message)
                    self._act_on_messages()
        except BlobError as error:
            self._log(str(error))

    def _act_on_messages(self) -> None:
        """Act on the messages that came, once this session may act."""
        while self._held and self._mouth.open:
            message = self._held.popleft()
            try:
                self._message(message)
            except BlobError as error:
                self._log(f"refused {message.type}: {error}")

    def _message(self, message: CoordinatorMessage) -> None:
        match message:
            case RunState(run=run, adapter=adapter):
                if adapter is not None and self._state.works_for(run):
                    self._shelf.receiver.expect(adapter, None, pushed=True)
            case Ack():
                self._apply(ev.Acknowledged(message))
            case BlobRequest(sha256=sha256, bitmap=bitmap):
                self._shelf.sender.on_request(sha256, bitmap)
            case Welcome() | TurnedAway():
                return
            case _:
                self._apply(ev.TaskCame(message))

    def _look_again(self, now: float) -> None:
        profile = self._freshness.look(self._state.setup.profile, self._seat.pid, now)
        self._state = replace(self._state, setup=replace(self._state.setup, profile=profile))
        self._introduction.renew(profile)
        if self._freshness.is_news(profile) and self._mouth.say(Profile(profile=profile)):
            self._freshness.said(profile)
            self._log(f"this machine has changed: {profile.memory_limit_bytes() / MIB:.0f} MiB for a trainer now")

    def _transfers(self) -> None:
        sender = self._shelf.sender
        self._freshness.transfers(sender.acknowledged_bytes, self._clock(), busy=sender.in_flight > 0)
        for outcome in self._shelf.receiver.take():
            match outcome:
                case BlobWanted(_, sha256, bitmap):
                    said = self._mouth.say(BlobMissing(sha256=sha256, bitmap=bitmap))
                    self._asked_in_vain = self._asked_in_vain or not said
                case BlobArrived(_, sha256):
                    self._apply(self._shelf.arrived(sha256))
                case BlobFailed(_, sha256, reason, disk=disk):
                    self._apply(ev.DiskRefused(sha256, reason) if disk else ev.TransferFailed(sha256, reason))
        while self._shelf.sender.failures:
            failure = self._shelf.sender.failures.popleft()
            self._apply(ev.NotShelved(failure.sha256, failure.reason))

    def _apply(self, event: ev.AgentEvent) -> None:
        if isinstance(event, ev.AdapterReady) and not self._state.in_hand:
            self._look_again(self._clock())  # the trainer's limit is what is free as its work is handed over
        before = self._state.memory
        self._state, actions = step(self._state, event, self._clock())
        if self._state.memory is not before and self._state.memory != before:
            self._upkeep.save(self._state.memory, self._moment())
        for action in actions:
            outcome = self._hands.act(action, self._state.memory)
            if outcome is not None:
                self._apply(outcome)

    # --- being let in -------------------------------------------------------------------------------------------

    def _admit(self, event: ad.AdmissionEvent) -> None:
        self._admission, actions = ad.step(self._admission, event, self._clock())
        self._mouth.open = self._admission.standing == "welcome"
        for action in actions:
            match action:
                case ad.SayOnline():
                    self._mouth.presence("online")
                case ad.LetIn():
                    self._let_in()
                case ad.Stand(reason):
                    self._held.clear()
                    self._log(ad.turned_away_text(reason))
                case ad.GiveUp():
                    raise TurnedAwayError(ad.given_up_text(self._identity.name))

    def _let_in(self) -> None:
        self._introduce(self._introduction.welcomed(resumed=self._resumed))
        self._resumed = True
        if self._asked_in_vain:
            self._asked_in_vain = False
            self._shelf.receiver.on_connected(resumed=False)
        self._apply(ev.Welcomed())
        self._act_on_messages()

    def _introduce(self, profile: DeviceProfile | None) -> None:
        if profile is None:
            return
        if profile != self._state.setup.profile:
            self._log(link_text(profile))
        self._state = replace(self._state, setup=replace(self._state.setup, profile=profile))
        if self._mouth.say(Profile(profile=profile)):
            self._freshness.said(profile)
