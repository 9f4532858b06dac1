"""A run's records while it is worked on: what is stored with each step, written out after it, and told at the end.

Owns when files are written and what is done about a folder that does not take them: nothing is lost, for what is not in
a file is in the store. It decides nothing about a run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from fedpipe_coordinator.record_trail import RecordTrail
from fedpipe_coordinator.records import RecordError, RecordsFullError, RunFolder, round_record
from fedpipe_coordinator.report import write_report
from fedpipe_coordinator.retelling import Event
from fedpipe_coordinator.run_events import Note, RunAction, SaveRound
from fedpipe_coordinator.run_state import RunState
from fedpipe_coordinator.store import Line, Store
from fedpipe_coordinator.watchers import Watchers

AGAIN_S = 30.0
"""How long a folder that could not be written is left alone."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a run's folder cannot be written; `lasting`: room on the disk would not help."""

    text: str
    lasting: bool


class RecordKeeper:
    """The records of all runs. Used by the owner's thread."""

    def __init__(
        self,
        store: Store,
        folder: Callable[[str], RunFolder],
        watchers: Watchers,
        clock: Callable[[], datetime],
    ) -> None:
        self._store, self._folder, self._watchers = store, folder, watchers
        self._trail = RecordTrail(store, folder, clock)
        self._troubles: dict[str, tuple[Trouble, float]] = {}

    def open(self, state: RunState) -> None:
        """Take up what an earlier process stored and did not write out."""
        if state.open or self._store.lines(state.run):
            self._trail.open(state.run)

    def untold(self, state: RunState) -> bool:
        """Whether a run is over and its folder does not say so: a kill came between the two."""
        folder = self._folder(state.run)
        left = state.run in self._trail.waiting()
        return folder.path.is_dir() and (left or folder.phase() != state.phase)

    def store(self, state: RunState, actions: Sequence[RunAction]) -> list[str]:
        """Store a run and what its step says for the record, in one; what it says, for people.

        Raises:
            StoreError: if the store cannot be written: the step did not happen.
        """
        lines: list[Line] = []
        said: list[str] = []
        for action in actions:
            match action:
                case Note():
                    line = self._trail.note(state.run, action)
                    said.append(action.text)
                case SaveRound(result, metric):
                    assert state.shape is not None
                    down_bytes = state.adapter.size if state.adapter is not None else 0
                    line = self._trail.round(round_record(result, metric, state.shape, down_bytes))
                case _:
                    continue
            lines.append(line)
            self._watchers.say(state.run, self._trail.event(line))
        self._store.save_run(state, lines)
        self._trail.stored(state.run, lines)
        return said

    def write_out(self, runs: Mapping[str, RunState], now: float) -> Iterator[tuple[str, Trouble]]:
        """Write what waits into the files; the runs whose folder does not take it, each when that is news."""
        for run in self._trail.waiting():
            before = self._troubles.get(run)
            if before is not None and now < before[1]:
                continue
            try:
                if self._trail.write_out(run):
                    self._folder(run).write_summary(runs[run], {})
                self._troubles.pop(run, None)
            except RecordError as error:
                trouble = Trouble(str(error), lasting=not isinstance(error, RecordsFullError))
                self._troubles[run] = trouble, now + AGAIN_S
                if before is None or before[0] != trouble:
                    yield run, trouble

    def conclude(self, state: RunState) -> Trouble | None:
        """Write all of a run that is over; its summary last, for that tells that all is written."""
        folder = self._folder(state.run)
        try:
            self._trail.write_out(state.run)
            with folder.writing():
                summary = folder.summary(state, folder.exports())
                write_report(folder.path / "report.html", summary, folder.path / "audit.jsonl")
            folder.write_summary(state, folder.exports())
        except RecordError as error:
            return Trouble(str(error), lasting=not isinstance(error, RecordsFullError))
        return None

    def told(self, run: str) -> list[Event]:
        """All that watchers were told of a run so far, but for progress."""
        return self._trail.told(run)

    def trouble(self, run: str) -> str:
        """What keeps a run's records from being written, or nothing."""
        found = self._troubles.get(run)
        return found[0].text if found is not None else ""
