"""The coordinator at work: one thread that owns the session, the store and the runs.

Thin: events come from one queue, the pure machine decides, what it decided is stored, and only then is it acted on.
Heavy work is handed to a worker thread and comes back as an event. Nothing here blocks on the network.
"""

import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from queue import Empty, SimpleQueue

from fedpipe_coordinator import operations
from fedpipe_coordinator.acting import Actor
from fedpipe_coordinator.audit.chronicle import Chronicle
from fedpipe_coordinator.audit.federation_audit import FederationAudit
from fedpipe_coordinator.config import Job, make_run_id
from fedpipe_coordinator.control import ControlRequest
from fedpipe_coordinator.exchange import Exchange, Said, TransferDone
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.housekeeping import needed_blobs
from fedpipe_coordinator.reception import Reception
from fedpipe_coordinator.records.record_keeping import RecordKeeper
from fedpipe_coordinator.records.run_folder import RunFolder, folder_of
from fedpipe_coordinator.registry import Registry
from fedpipe_coordinator.runs.mishap import let_hear
from fedpipe_coordinator.runs.remains import still_told
from fedpipe_coordinator.runs.resume import rebase, resume
from fedpipe_coordinator.runs.run_events import (
    AgentOffline,
    AgentOnline,
    Heard,
    Note,
    RunAction,
    RunEvent,
    StopAsked,
    Ticked,
    WorkFailed,
)
from fedpipe_coordinator.runs.run_machine import step
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_coordinator.store import Store
from fedpipe_coordinator.watchers import Watchers
from fedpipe_coordinator.worker import WorkDone
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.moments import read_moment
from fedpipe_wire.transport import Connected, Delivered, Disconnected, Event, Posted, Received, TransportError

TICK_S = 0.5


class Service:
    """Runs, one after the other; each open run waits for the one before it.

    Args:
        home: the federation's folder.
        federation: its name.
        store: runs and agents.
        blobs: adapters and updates.
        exchange: the wire.
        log: takes lines for people.
        each_tick: called about twice a second in the thread of `serve`, with monotonic seconds.
    """

    def __init__(
        self,
        home: Home,
        federation: str,
        store: Store,
        blobs: BlobStore,
        exchange: Exchange,
        log: Callable[[str], None],
        *,
        each_tick: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.home, self.federation = home, federation
        self.registry = Registry(store.profiles())
        self.watchers = Watchers()
        now, saved, self._epoch = read_moment(), store.moments(), store.begin_epoch()
        self.runs = {state.run: rebase(state, saved.get(state.run), now, self._epoch) for state in store.runs()}
        self._exchange = exchange
        exchange.hear = store.hear
        self._log = log
        self._reception = Reception(store, self.registry, exchange, self.watchers, log, self.runs.__contains__)
        self._each_tick = each_tick
        self.chronicle = Chronicle(FederationAudit(home.path), store, exchange.refusals, log)
        self._actor = Actor(exchange, blobs, self.registry, self._folder_of, self.post)
        clock = partial(datetime.now, UTC)
        self.keeper = RecordKeeper(store, self._folder_of, self.watchers, clock, log, self.chronicle.look)
        self._stopping, self._collect_due = False, True
        self._active: str | None = None

    @property
    def _queue(self) -> SimpleQueue[Event]:
        return self._exchange.transport.events

    def post(self, item: object) -> None:
        """Hand something to the owner's thread, from any thread."""
        self._queue.put(Posted(item))

    def request_stop(self) -> None:
        """Let `serve` return soon; may be called from a signal handler."""
        self._stopping = True

    def serve(self) -> None:
        """Work until asked to stop.

        Raises:
            TransportError: if the broker refuses this coordinator for good.
            StoreError: if the store cannot be written; what was acknowledged is in it.
        """
        self._exchange.start()
        self.take_up()
        next_tick = time.monotonic() + TICK_S
        while not self._stopping:
            now = time.monotonic()
            if now >= next_tick:
                self._tick(now)
                next_tick = now + TICK_S
            wake = min(next_tick, self._exchange.tick(now))
            self._settle_transfers()
            try:
                event = self._queue.get(timeout=max(0.0, wake - time.monotonic()))
            except Empty:
                continue
            self._handle(event)

    def take_up(self) -> None:
        """Go on where an earlier process was stopped or killed."""
        self.chronicle.started(self.federation)
        for state in list(self.runs.values()):
            self.keeper.open(state)
            if not state.open:
                self.runs[state.run] = self.keeper.finish(state, time.monotonic(), again=True)
        self._start_next(resumed=True)
        self._collect()

    def close(self) -> None:
        """Let go of everything."""
        self._write_out()
        self.chronicle.stopped()
        self._actor.close()
        self._exchange.stop()
        for run in list(self.runs):
            self.watchers.end(run)

    # --- events -------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        match event:
            case Received():
                for said in self._exchange.received(event):
                    self._message(said)
            case Delivered():
                self._exchange.delivered(event)
            case Connected(resumed):
                self._log("connected to the broker")
                self._exchange.connected(event)
                for gone in self.registry.reconnected(resumed=resumed):
                    self._member_changed(gone)
            case Disconnected(reason, final):
                self._log(f"no connection to the broker: {reason}")
                if final:
                    raise TransportError(reason)
            case Posted(item):
                self._posted(item)
        self._settle_transfers()

    def _settle_transfers(self) -> None:
        """Act on what transfers came to, by a packet or by time alone."""
        for done in self._exchange.finished():
            self._transfer_done(done)

    def _transfer_done(self, done: TransferDone) -> None:
        for run, event in list(self._actor.intake.ended(self.runs.values(), done)):
            self._apply(run, event)

    def _posted(self, item: object) -> None:
        if isinstance(item, WorkDone):
            self._actor.worker.taken()
            self._actor.intake.heard(item.run, item.event)
            self._apply(item.run, item.event)
        elif isinstance(item, ControlRequest):
            operations.handle(self, item)
        elif isinstance(item, AgentOffline):  # it was revoked: the broker will not say so
            self._member_changed(self.registry.expel(item.agent))

    def _message(self, said: Said) -> None:
        match self._reception.hear(said):
            case AgentOnline() | AgentOffline() as news:
                self._member_changed(news)
            case Heard() as heard:
                self._apply(heard.message.run, heard)
            case None:
                pass

    def _member_changed(self, change: AgentOnline | AgentOffline) -> None:
        if isinstance(change, AgentOffline):
            if self._active is not None:
                self._apply(self._active, change)
            return
        for run in still_told(self.runs.values(), change.agent):
            self._apply(run, change)
        active = None if self._active is None else self.runs[self._active]
        if active is not None and self.registry.has_dataset(change.agent, active.job.data.dataset):
            self._apply(active.run, change)

    def _tick(self, now: float) -> None:
        self._each_tick(now)
        self.chronicle.tick()
        if self._active is not None:
            self._apply(self._active, Ticked())
        self._write_out()  # many lines at a time: a message must not cost a sync of its own for each file
        if self._collect_due:
            self._collect()

    def _apply(self, run: str, event: RunEvent) -> None:
        let_hear(partial(self._step, run), event, lambda text: self._log(f"{run}: {text}"))

    def _step(self, run: str, event: RunEvent) -> None:
        state = self.runs.get(run)
        if state is None:
            return
        after, actions = step(state, event, time.monotonic())
        self._become(state, after, actions)

    def _become(self, before: RunState, after: RunState, actions: tuple[RunAction, ...]) -> None:
        """Store what was decided and what is to be told of it, in one; then act."""
        self.runs[after.run] = after
        for text in self.keeper.store(after, actions):
            self._log(f"{after.run}: {text}")
        for action in actions:
            self._actor.act(after, action)
        if (before.phase, after.phase) == ("planning", "training"):
            self._collect()
        if before.open and not after.open:
            self._ended(after)

    # --- records ------------------------------------------------------------------------------------------------

    def _write_out(self) -> None:
        """Bring the runs' records into their files; a run whose folder is not there any more ends."""
        for run, trouble in self.keeper.write_out(self.runs, time.monotonic()):
            self._log(f"{run}: {trouble.text}")
            if trouble.lasting:
                self._apply(run, WorkFailed("records", trouble.text))

    def _collect(self) -> None:
        """Remove what no run needs; not while the worker may have made something that no run names yet."""
        self._collect_due = not self._actor.worker.idle
        if not self._collect_due:
            self._exchange.forget_all(needed_blobs(self.runs.values()))

    def _folder_of(self, run: str) -> RunFolder:
        return folder_of(self.runs[run], self.home)

    # --- runs ---------------------------------------------------------------------------------------------------

    def submit(self, job: Job, folder: str | None) -> str:
        """Take a job; it starts at once, or when the runs before it are over.

        Raises:
            RecordError: if the run's folder cannot be written, or holds another run.
        """
        run = make_run_id(job.job.name, datetime.now(UTC), secrets.token_bytes(2))
        state = RunState(run=run, job=job, phase="surveying", members={}, epoch=self._epoch, folder=folder)
        folder_of(state, self.home).claim()
        self._become(state, state, (Note("run-began", f"job {job.job.name}: {job.job.model} on {job.data.dataset}"),))
        self._start_next()
        return run

    def stop_run(self, run: str) -> None:
        """End an open run."""
        self._apply(run, StopAsked())

    def _start_next(self, *, resumed: bool = False) -> None:
        if self._active is not None:
            return
        state = next((state for state in self.runs.values() if state.open), None)
        if state is None:
            return
        self._active = state.run
        now = time.monotonic()
        after, actions = resume(state, now) if resumed else (state.model_copy(update={"phase_began": now}), ())
        if resumed:
            self._log(f"{state.run}: going on in phase {state.phase}, round {state.round}")
        self._become(state, after, actions)
        for agent in self.registry.eligible(state.job.data.dataset):
            self._apply(state.run, agent)

    def _ended(self, state: RunState) -> None:
        self.runs[state.run] = self.keeper.finish(state, time.monotonic())
        self._collect()
        self.watchers.end(state.run)
        if self._active == state.run:
            self._active = None
            self._start_next()
