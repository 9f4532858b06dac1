"""What the machine asks for, done: messages, transfers, and work for the worker.

Owns the meaning of each action in this process. Each may be done twice without harm, and each is asked for again from
the stored state after a restart.
"""

from collections.abc import Callable

from fedpipe_coordinator import work
from fedpipe_coordinator.exchange import Exchange
from fedpipe_coordinator.intake import Intake
from fedpipe_coordinator.merging import Merger
from fedpipe_coordinator.records.run_folder import RunFolder, gone
from fedpipe_coordinator.registry import Registry
from fedpipe_coordinator.runs.run_events import (
    Aggregate,
    BroadcastAdapter,
    Export,
    Fetch,
    MakePlans,
    Note,
    RunAction,
    RunEvent,
    SaveRound,
    Send,
    StopFetch,
    WorkFailed,
)
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_coordinator.worker import WorkDone, Worker, phase_failed
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.coordinator_messages import RunState as RunStateMessage
from fedpipe_wire.messages import MessageError


class Actor:
    """Does what a run's machine asks for, once the state that asks is stored."""

    def __init__(
        self,
        exchange: Exchange,
        blobs: BlobStore,
        registry: Registry,
        folder: Callable[[str], RunFolder],
        post: Callable[[WorkDone], None],
    ) -> None:
        self._exchange, self._blobs, self._registry, self._folder = exchange, blobs, registry, folder
        self.worker = Worker(post)
        self.intake = Intake(exchange, self.worker)
        self._merger = Merger()

    def close(self) -> None:
        """Begin nothing any more, and end what can be ended."""
        self.worker.close()
        self._merger.stop()

    def act(self, state: RunState, action: RunAction) -> None:
        """Do one action; records and notes are stored with the state, and are not actions here."""
        match action:
            case Send(agent, message):
                try:
                    self._exchange.send(agent, message)
                except MessageError as error:
                    text = f"{error}: use fewer or shorter labels, a lower adapter.rank_ladder, or a smaller model"
                    self._later(state, WorkFailed(f"the task for {agent} is too large", text))
            case Fetch():
                refused = self.intake.fetch(state, action)
                if refused is not None:
                    self._later(state, refused)
            case StopFetch():
                self.intake.stop(action)
            case BroadcastAdapter(ref) if ref.sha256 not in self._blobs.verified:
                folder, blobs = self._folder(state.run), self._blobs
                self.worker.do(
                    state.run, lambda: work.check(state, action, blobs, folder.path), phase_failed(state.phase)
                )
            case BroadcastAdapter(ref, round_):
                self._exchange.broadcast_blob(ref)
                self._exchange.announce(RunStateMessage(run=state.run, state=state.phase, round=round_, adapter=ref))
            case MakePlans() | Aggregate() | Export():
                self._work(state, action)
            case SaveRound() | Note():
                pass

    def _work(self, state: RunState, action: MakePlans | Aggregate | Export) -> None:
        folder, blobs = self._folder(state.run), self._blobs
        name, job = self._job(state, action, folder, blobs)
        self.worker.do(state.run, lambda: _in_folder(folder, job), phase_failed(name))

    def _job(
        self, state: RunState, action: MakePlans | Aggregate | Export, folder: RunFolder, blobs: BlobStore
    ) -> tuple[str, Callable[[], RunEvent]]:
        match action:
            case MakePlans():
                profiles = self._registry.profiles()
                return "planning", lambda: work.make_plans(state, action, profiles, blobs, folder.path)
            case Aggregate():
                return "aggregating", lambda: work.aggregate(state, action, blobs, folder.path)
            case Export():
                merger = self._merger
                return "exporting", lambda: work.export(state, blobs, folder, merger)

    def _later(self, state: RunState, event: RunEvent) -> None:
        """Let the run hear of something after the step that is being done."""
        self.worker.do(state.run, lambda: event, lambda _: event)


def _in_folder(folder: RunFolder, job: Callable[[], RunEvent]) -> RunEvent:
    """Do work that writes into a run's folder, and name the folder where its loss is why that fails."""
    try:
        return job()
    except Exception as error:
        if not folder.path.is_dir():
            raise gone(folder.path) from error
        raise
