"""The coordinator at work: one thread that owns the session, the store and the runs.

Thin: events come from one queue, the pure machine decides, this module acts. Heavy work is handed to a worker thread
and comes back as an event. Nothing here blocks on the network.
"""

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from fedpipe_coordinator import operations, work
from fedpipe_coordinator.config import Job, make_run_id
from fedpipe_coordinator.control import ControlRequest
from fedpipe_coordinator.exchange import Exchange
from fedpipe_coordinator.gate import RefusedUpdateError, check_offer, check_update
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.records import RunFolder, round_record
from fedpipe_coordinator.registry import Registry
from fedpipe_coordinator.report import write_report
from fedpipe_coordinator.resume import resume
from fedpipe_coordinator.run_events import (
    AgentOffline,
    AgentOnline,
    Aggregate,
    Aggregated,
    BroadcastAdapter,
    Export,
    Exported,
    Fetch,
    Heard,
    MakePlans,
    Note,
    Planned,
    RunAction,
    RunEvent,
    SaveRound,
    Send,
    StopAsked,
    Ticked,
    UpdateRejected,
    UpdateStored,
    WorkFailed,
)
from fedpipe_coordinator.run_machine import step
from fedpipe_coordinator.run_state import RunState
from fedpipe_coordinator.store import Store
from fedpipe_coordinator.watchers import Watchers
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.messages import AgentMessage, BlobMissing, Presence, Profile, Progress
from fedpipe_wire.messages import RunState as RunStateMessage
from fedpipe_wire.transport import Connected, Delivered, Disconnected, Event, Posted, Received, TransportError

TICK_S = 0.5


@dataclass(frozen=True, slots=True)
class WorkDone:
    """A worker's result for a run."""

    run: str
    event: RunEvent


class Service:
    """Runs, one after the other; each open run waits for the one before it."""

    def __init__(
        self,
        home: Home,
        federation: str,
        store: Store,
        blobs: BlobStore,
        exchange: Exchange,
        log: Callable[[str], None],
    ) -> None:
        self.home = home
        self.federation = federation
        self.registry = Registry(store.profiles())
        self.watchers = Watchers()
        self._store = store
        self._blobs = blobs
        self._exchange = exchange
        self._log = log
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="work")
        self._stopping = False
        self.runs: dict[str, RunState] = {state.run: state for state in store.runs()}
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
        """
        self._exchange.start()
        self._finish_what_ended()
        self._start_next(resumed=True)
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

    def _finish_what_ended(self) -> None:
        """Write the summaries of runs whose end was stored and not told: a kill came between the two."""
        for state in list(self.runs.values()):
            if not state.open and self._folder(state).phase() not in (None, state.phase):
                self._ended(state)

    def close(self) -> None:
        """Let go of everything."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._exchange.stop()
        for run in list(self.runs):
            self.watchers.end(run)

    # --- events -------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        match event:
            case Received():
                for agent, message in self._exchange.received(event):
                    self._message(agent, message)
            case Delivered():
                self._exchange.delivered(event)
            case Connected():
                self._log("connected to the broker")
                self._exchange.connected(event)
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
            self._transfer_done(done.agent, done.sha256, done.path, done.reason)

    def _posted(self, item: object) -> None:
        if isinstance(item, WorkDone):
            self._apply(item.run, item.event)
        elif isinstance(item, ControlRequest):
            operations.handle(self, item)

    def _message(self, agent: str, message: AgentMessage) -> None:
        match message:
            case Presence():
                change = self.registry.presence(agent, message)
                if change is not None:
                    self._log(f"agent {agent} is {message.state}")
                    self._member_changed(change)
            case Profile() if message.profile.agent != agent:
                self._log(f"refused a profile of {message.profile.agent!r} that agent {agent} sent")
            case Profile():
                self._store.save_profile(message.profile)
                change = self.registry.profile(agent, message.profile)
                if change is not None:
                    self._member_changed(change)
            case Progress():
                self.watchers.say(
                    message.run, {"event": "progress", "agent": agent} | message.model_dump(exclude={"run", "type"})
                )
            case BlobMissing():
                return
            case _:
                self._apply(message.run, Heard(agent, message))

    def _member_changed(self, change: AgentOnline | AgentOffline) -> None:
        if isinstance(change, AgentOffline):
            if self._active is not None:
                self._apply(self._active, change)
            return
        for name, state in self.runs.items():
            known = change.agent in state.members
            wanted = name == self._active and self.registry.has_dataset(change.agent, state.job.data.dataset)
            if wanted or (known and not state.open):
                self._apply(name, change)

    def _tick(self, now: float) -> None:
        del now
        if self._active is not None:
            self._apply(self._active, Ticked())

    def _apply(self, run: str, event: RunEvent) -> None:
        state = self.runs.get(run)
        if state is None:
            return
        after, actions = step(state, event, time.monotonic())
        self._become(state, after, actions)

    def _become(self, before: RunState, after: RunState, actions: tuple[RunAction, ...]) -> None:
        self.runs[after.run] = after
        # A round is recorded before the state that no longer holds it is stored; twice is once.
        for action in actions:
            if isinstance(action, SaveRound):
                self._act(after, action)
        if after != before:
            self._store.save_run(after)
        for action in actions:
            if not isinstance(action, SaveRound):
                self._act(after, action)
        if (before.phase, after.phase) == ("planning", "training"):
            self._exchange.forget_all(self._needed_blobs())
        if before.open and not after.open:
            self._ended(after)

    # --- actions ------------------------------------------------------------------------------------------------

    def _act(self, state: RunState, action: RunAction) -> None:
        match action:
            case Send(agent, message):
                self._exchange.send(agent, message)
            case Fetch():
                self._fetch(state, action)
            case BroadcastAdapter(ref, round_):
                self._exchange.broadcast_blob(ref)
                self._exchange.announce(RunStateMessage(run=state.run, state=state.phase, round=round_, adapter=ref))
            case MakePlans():
                profiles = self.registry.profiles()
                folder = self._folder(state).path
                self._work(state, "planning", lambda: work.make_plans(state, action, profiles, self._blobs, folder))
            case Aggregate():
                folder = self._folder(state).path
                self._work(state, "aggregating", lambda: work.aggregate(state, action, self._blobs, folder))
            case Export():
                run_folder = self._folder(state)
                self._work(state, "exporting", lambda: work.export(state, self._blobs, run_folder))
            case SaveRound(result, metric):
                assert state.shape is not None
                down_bytes = state.adapter.size if state.adapter is not None else 0
                record = round_record(result, metric, state.shape, down_bytes)
                self._folder(state).add_round(record)
                self._folder(state).write_summary(state, {})
                self.watchers.say(state.run, {"event": "round", "round": result.round, "data": record})
            case Note():
                self._note(state, action)

    def _note(self, state: RunState, note: Note) -> None:
        self._folder(state).add_audit(note, datetime.now(UTC))
        self._log(f"{state.run}: {note.text}")
        event = {"event": note.kind, "text": note.text, "agent": note.agent, "round": note.round, "data": note.data}
        self.watchers.say(state.run, event)

    def _work(self, state: RunState, name: str, job: Callable[[], Planned | Aggregated | Exported]) -> None:
        def do() -> None:
            event: RunEvent
            try:
                event = job()
            except Exception as error:  # noqa: BLE001  # a worker's failure ends the run with its reason, not the service
                event = WorkFailed(name, f"{error}" or type(error).__name__)
            self.post(WorkDone(state.run, event))

        self._pool.submit(do)

    # --- updates ------------------------------------------------------------------------------------------------

    def _fetch(self, state: RunState, fetch: Fetch) -> None:
        member = state.members[fetch.agent]
        assert state.shape is not None
        assert member.plan is not None
        assert member.trained is not None
        try:
            check_offer(state.shape, member.plan, member.trained)
        except RefusedUpdateError as error:
            self.post(WorkDone(state.run, UpdateRejected(fetch.agent, fetch.round, fetch.ref.sha256, str(error))))
            return
        self._exchange.fetch(fetch.agent, fetch.ref)

    def _transfer_done(self, agent: str, sha256: str, path: Path | None, reason: str) -> None:
        for state in self.runs.values():
            member = state.members.get(agent)
            trained = member.trained if member is not None else None
            if state.open and trained is not None and trained.update.sha256 == sha256:
                self._check_update(state, agent, sha256, path, reason)

    def _check_update(self, state: RunState, agent: str, sha256: str, path: Path | None, reason: str) -> None:
        shape, plan = state.shape, state.members[agent].plan
        if path is None or shape is None or plan is None:
            self._apply(state.run, UpdateRejected(agent, state.round, sha256, reason))
            return

        def do() -> None:
            event: RunEvent
            try:
                check_update(path, shape, plan)
                event = UpdateStored(agent, state.round, sha256)
            except RefusedUpdateError as error:
                event = UpdateRejected(agent, state.round, sha256, str(error))
            except Exception as error:  # noqa: BLE001  # a check that fails must not leave the round waiting for ever
                event = UpdateRejected(agent, state.round, sha256, f"it could not be checked: {error!r}"[:1000])
            self.post(WorkDone(state.run, event))

        self._pool.submit(do)

    # --- runs ---------------------------------------------------------------------------------------------------

    def submit(self, job: Job, folder: str | None) -> str:
        """Take a job; it starts at once, or when the runs before it are over.

        Raises:
            RecordError: if the run's folder cannot be written, or holds another run.
        """
        run = make_run_id(job.job.name, datetime.now(UTC), secrets.token_bytes(2))
        now = time.monotonic()
        state = RunState(run=run, job=job, phase="surveying", members={}, phase_began=now, began=now, folder=folder)
        self._folder(state).claim()
        self.runs[run] = state
        self._store.save_run(state)
        self._note(state, Note("run-began", f"job {job.job.name}: {job.job.model} on {job.data.dataset}"))
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
        folder = self._folder(state)
        summary = folder.write_summary(state, folder.exports())
        write_report(folder.path / "report.html", summary, folder.path / "audit.jsonl")
        self._exchange.forget_all(self._needed_blobs())
        self.watchers.end(state.run)
        if self._active == state.run:
            self._active = None
            self._start_next()

    def _needed_blobs(self) -> set[str]:
        """The last adapter of every run, and the updates of those that are open."""
        adapters = {state.adapter.sha256 for state in self.runs.values() if state.adapter is not None}
        members = (member for state in self.runs.values() if state.open for member in state.members.values())
        return adapters | {member.trained.update.sha256 for member in members if member.trained is not None}

    def _folder(self, state: RunState) -> RunFolder:
        return RunFolder(Path(state.folder) if state.folder else self.home.run(state.run))

    def describe_runs(self) -> list[dict[str, Any]]:
        """All runs, newest first, as plain data."""
        return [operations.describe(state) for state in reversed(self.runs.values())]
