"""Updates coming in: checked before a byte is fetched, fetched, and checked again before they are called stored.

Owns the way of an update from an agent's offer to the outcome that the machine hears. It decides nothing about rounds.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from fedpipe_coordinator.aggregation.gate import RefusedUpdateError, check_offer, check_update
from fedpipe_coordinator.exchange import Exchange, TransferDone
from fedpipe_coordinator.runs.run_events import Fetch, RunEvent, StopFetch, UpdateDelayed, UpdateRejected, UpdateStored
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_coordinator.worker import Worker
from fedpipe_profiles.plan import Plan
from fedpipe_wire.agent_messages import Trained

SPOILT_FETCHES = 3
"""So often the fetch of an update ends with other bytes than its name says, before that is called hopeless.

A broker may spoil what it carries, and must not have a good update rejected by that. A round waits for it no longer
than for any other that does not come.
"""


class Intake:
    """Used by the owner's thread; only the checks of whole files run in the worker."""

    def __init__(self, exchange: Exchange, worker: Worker) -> None:
        self._exchange, self._worker = exchange, worker
        self._checking: set[tuple[str, str, str]] = set()
        self._spoilt: Counter[tuple[str, str, str]] = Counter()

    def fetch(self, state: RunState, fetch: Fetch) -> UpdateRejected | None:
        """Begin to fetch an update, or say why it will never be taken."""
        found = awaited(state, fetch.agent, fetch.ref.sha256)
        if found is None or state.shape is None:
            return None
        plan, trained = found
        try:
            check_offer(state.shape, plan, trained)
        except RefusedUpdateError as error:
            return UpdateRejected(fetch.agent, fetch.round, fetch.ref.sha256, str(error))
        self._exchange.fetch(fetch.agent, fetch.ref)
        return None

    def stop(self, action: StopFetch) -> None:
        """Fetch an update no more; what has come of it stays until it is collected."""
        self._exchange.stop_fetching(action.agent, action.sha256)

    def ended(self, runs: Iterable[RunState], done: TransferDone) -> Iterator[tuple[str, RunEvent]]:
        """A transfer ended: what the runs that await it hear at once; what came whole is looked into first."""
        for state in runs:
            found = awaited(state, done.agent, done.sha256)
            if not state.open or found is None or state.shape is None:
                continue
            plan, trained = found
            if done.path is not None:
                self._check(state, done, plan, trained.round)
            elif done.hopeless or self._is_spoilt_for_good(state.run, done):
                yield state.run, UpdateRejected(done.agent, trained.round, done.sha256, done.reason)
            else:
                yield state.run, UpdateDelayed(done.agent, trained.round, done.sha256, done.reason)

    def _is_spoilt_for_good(self, run: str, done: TransferDone) -> bool:
        if not done.spoilt:
            return False
        key = (run, done.agent, done.sha256)
        self._spoilt[key] += 1
        if self._spoilt[key] < SPOILT_FETCHES:
            return False
        del self._spoilt[key]
        return True

    def heard(self, run: str, event: RunEvent) -> None:
        """A check's outcome was taken by the owner."""
        if isinstance(event, UpdateStored | UpdateRejected | UpdateDelayed):
            self._checking.discard((run, event.agent, event.sha256))
            self._spoilt.pop((run, event.agent, event.sha256), None)

    def _check(self, state: RunState, done: TransferDone, plan: Plan, round_: int) -> None:
        key = (state.run, done.agent, done.sha256)
        path, shape = done.path, state.shape
        if key in self._checking or path is None or shape is None:
            return
        self._checking.add(key)

        def look() -> RunEvent:
            check_update(path, shape, plan)
            return UpdateStored(done.agent, round_, done.sha256)

        def failed(error: Exception) -> RunEvent:
            if isinstance(error, OSError):  # this machine's fault: the bytes are those of their name
                return UpdateDelayed(done.agent, round_, done.sha256, f"it cannot be read: {error}")
            reason = str(error) if isinstance(error, RefusedUpdateError) else f"it could not be checked: {error!r}"
            return UpdateRejected(done.agent, round_, done.sha256, reason[:1000])

        self._worker.do(state.run, look, failed)


def awaited(state: RunState, agent: str, sha256: str) -> tuple[Plan, Trained] | None:
    """The plan that an update answers and what its agent said of it, if a run waits for it, in time or late."""
    member = state.members.get(agent)
    if member is None:
        return None
    trained = member.trained
    if trained is not None and trained.update.sha256 == sha256 and member.plan is not None:
        return member.plan, trained
    late = next((each for each in member.late if each.trained.update.sha256 == sha256), None)
    return None if late is None else (late.plan, late.trained)
