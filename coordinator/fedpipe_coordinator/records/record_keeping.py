"""A run's records while it is worked on: what is stored with each step, written out after it, and told at the end.

Owns when files are written and what is done about a folder that does not take them: nothing is lost, for what is not in
a file is in the store. It decides nothing about a run.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from fedpipe_coordinator.records.note_limits import NoteLimits
from fedpipe_coordinator.records.record_trail import RecordTrail
from fedpipe_coordinator.records.report import write_report
from fedpipe_coordinator.records.retelling import Event
from fedpipe_coordinator.records.run_folder import AUDIT, ROUNDS, RecordError, RecordsFullError, RunFolder, round_record
from fedpipe_coordinator.runs.remains import remains
from fedpipe_coordinator.runs.run_events import Note, RunAction, SaveRound
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_coordinator.store import Line, Store
from fedpipe_coordinator.watchers import Watchers

AGAIN_S = 30.0
"""How long a folder that could not be written is left alone."""

_ENDS_AND_BEGINNINGS = ("run-began", "run-done", "run-failed", "run-stopped")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a run's folder cannot be written; `lasting`: room on the disk would not help."""

    text: str
    lasting: bool


class RecordKeeper:
    """The records of all runs. Used by the owner's thread.

    Args:
        store: where runs are kept, and lines until they are in their files.
        folder: a run's folder.
        watchers: who follows a run.
        clock: the time that lines are stamped with.
        log: takes lines for people.
        look: told of a run that has begun or ended, once that is stored, and again after a restart.
    """

    def __init__(
        self,
        store: Store,
        folder: Callable[[str], RunFolder],
        watchers: Watchers,
        clock: Callable[[], datetime],
        log: Callable[[str], None],
        look: Callable[[RunState], None] = lambda _: None,
    ) -> None:
        self._store, self._folder, self._watchers, self._log, self._look = store, folder, watchers, log, look
        self._trail = RecordTrail(store, folder, clock)
        self._troubles: dict[str, tuple[Trouble, float]] = {}
        self._unconcluded: set[str] = set()
        self._limits = NoteLimits()

    def open(self, state: RunState) -> None:
        """Take up what an earlier process stored and did not write out."""
        self._look(state)
        if state.open or self._store.lines(state.run):
            self._trail.open(state.run)
        if state.open:
            self._look_back(state)
            with contextlib.suppress(RecordError):  # told when the run next writes there
                self._mend(state, self._folder(state.run))

    def _look_back(self, state: RunState) -> None:
        """Say it where the store is older than the run's own records, for nothing in the store itself shows that."""
        missing = self._trail.missing(state.run)
        if missing:
            text = (
                f"the coordinator's store has gone back in time: {AUDIT} tells of {missing} more steps than it knows. "
                f"It was restored from a backup, or its disk lost what was written last. The run goes on from round "
                f"{state.round} ({state.phase}); updates that were acknowledged since then may be lost"
            )
            self._log(f"{state.run}: {text}")
            self.store(state, (Note("went-back", text, None, state.round, {"missing": missing}),))

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
        left_over = self._limits.left_over(state.run, state.round, over=not state.open)
        for action in (*left_over, *actions):
            match action:
                case Note() if self._limits.is_too_much(state.run, action):
                    continue
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
        if any(isinstance(action, Note) and action.kind in _ENDS_AND_BEGINNINGS for action in actions):
            self._look(state)
        return said

    def write_out(self, runs: Mapping[str, RunState], now: float) -> Iterator[tuple[str, Trouble]]:
        """Write what waits into the files; the runs whose folder does not take it, each when that is news."""
        for run in dict.fromkeys([*self._trail.waiting(), *self._unconcluded]):
            before = self._troubles.get(run)
            if before is not None and now < before[1]:
                continue
            trouble = self._write(runs[run])
            if trouble is None:
                self._troubles.pop(run, None)
                continue
            self._troubles[run] = trouble, now + AGAIN_S
            if before is None or before[0] != trouble:
                yield run, trouble

    def finish(self, state: RunState, now: float, *, again: bool = False) -> RunState:
        """Tell in a run's folder how it ended, `again` only where that is not told; what is kept of the run."""
        told = again and not self.untold(state)
        trouble = None if told else self.conclude(state, now)
        if trouble is not None:
            self._log(f"{state.run}: {trouble.text}")
        left = remains(state)
        self.store(left, ())
        return left

    def conclude(self, state: RunState, now: float) -> Trouble | None:
        """Write all of a run that is over; where its folder does not take that now, `write_out` tries it again."""
        self._unconcluded.add(state.run)
        trouble = self._write(state)
        if trouble is None:
            self._troubles.pop(state.run, None)
        else:
            self._troubles[state.run] = trouble, now + AGAIN_S
        return trouble

    def _write(self, state: RunState) -> Trouble | None:
        """What is to be written of a run at this moment; what keeps it from being written, if anything."""
        folder = self._folder(state.run)
        try:
            if state.run in self._unconcluded:
                self._write_end(state, folder)
            elif state.open:
                self._write_open(state, folder)
            elif folder.path.is_dir():
                self._trail.write_out(state.run)
            else:  # its owner has removed a run that is over
                self._trail.drop(state.run)
        except RecordError as error:
            return Trouble(str(error), lasting=not isinstance(error, RecordsFullError))
        return None

    def _write_open(self, state: RunState, folder: RunFolder) -> None:
        """Bring an open run's lines into their files, and its summary up to date after a round."""
        if self._trail.write_out(state.run):
            self._mend(state, folder, (ROUNDS,))
            folder.write_summary(state, {})

    def _write_end(self, state: RunState, folder: RunFolder) -> None:
        """Write all of a run that is over; its summary last, for that tells that all is written."""
        folder.make_again()
        self._mend(state, folder)
        self._trail.write_out(state.run)
        with folder.writing():
            summary = folder.summary(state, folder.exports())
            try:
                write_report(folder.path / "report.html", summary, folder.path / AUDIT)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                # Somebody has changed lines so that they are JSON and yet nothing that was written here.
                self._log(f"{state.run}: {folder.path / 'report.html'} is not written: the records hold {error!r}")
        folder.write_summary(state, folder.exports())
        self._unconcluded.discard(state.run)

    def _mend(self, state: RunState, folder: RunFolder, files: Iterable[str] = (AUDIT, ROUNDS)) -> None:
        """Set aside what cannot be read in a run's files; said once, for it is not there any more afterwards."""
        for file in files:
            done = folder.set_aside(file)
            if done is not None:
                text, data = done
                self._log(f"{state.run}: {text}")
                self.store(state, (Note("records-damaged", text, None, state.round, data),))

    def told(self, run: str) -> list[Event]:
        """All that watchers were told of a run so far, but for progress."""
        return self._trail.told(run)

    def trouble(self, run: str) -> str:
        """What keeps a run's records from being written, or nothing."""
        found = self._troubles.get(run)
        return found[0].text if found is not None else ""
