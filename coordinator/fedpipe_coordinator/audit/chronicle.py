"""What this coordinator records in the federation's own record: its starts and ends, its runs, what it refused.

Owns when that is written. What cannot be written now waits, and the coordinator works on: a full disk is said, and a
record that lacks room must not end a run.
"""

import os
from collections import deque
from collections.abc import Callable

from fedpipe_coordinator.audit.federation_audit import AUDIT, AuditError, Entry, FederationAudit
from fedpipe_coordinator.audit.refusals import Refusals
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_coordinator.store import FEDERATION, Store
from fedpipe_wire.sealing import COORDINATOR

MOST_WAITING = 1000
BUSY_S = 0.1
"""How long the session may wait for another process that is writing to the record."""


class Chronicle:
    """Used by the owner's thread.

    Args:
        audit: the record.
        store: keeps the record's newest hash, and what was heard.
        refusals: what was not listened to.
        log: takes lines for people.
    """

    def __init__(self, audit: FederationAudit, store: Store, refusals: Refusals, log: Callable[[str], None]) -> None:
        self._audit, self._store, self._refusals, self._log = audit, store, refusals, log
        self._waiting: deque[Entry] = deque()
        self._lost = 0
        self._known = store.newest(FEDERATION, AUDIT)
        self._trouble = ""
        self._told: dict[str, str] = {}

    def started(self, federation: str) -> None:
        """This process begins to work."""
        try:
            mended = self._audit.mend()
            lines = self._audit.lines()
        except AuditError as error:
            self._say(str(error))
            lines = []
        else:
            if mended is not None:
                self._log(mended)
        for line in lines:
            data_ = line.get("data")
            if line["kind"] in ("run-began", "run-ended") and isinstance(data_, dict):
                self._told[str(data_.get("run"))] = line["kind"]
        data = {"federation": federation, "process": os.getpid()}
        self._add(Entry("coordinator-started", COORDINATOR, f"the coordinator of {federation} started", data))

    def stopped(self) -> None:
        """This process ends, of its own will."""
        self._waiting.extend(self._refusals.take(last=True))
        self._add(Entry("coordinator-stopped", COORDINATOR, "the coordinator stopped"))
        self._store.flush()

    def look(self, state: RunState) -> None:
        """Record that a run began, or ended, if that is not recorded."""
        told = self._told.get(state.run)
        # Of runs that were over before there was this record, their own records tell.
        wanted = "run-began" if state.open else "run-ended" if told == "run-began" else told
        if wanted is None or wanted == told:
            return
        self._told[state.run] = wanted
        word = "began" if state.open else f"ended: {state.phase}"
        data = {"run": state.run} | ({} if state.open else {"phase": state.phase})
        self._add(Entry(wanted, COORDINATOR, f"run {state.run} {word}", data))

    def refused(self) -> dict[str, int]:
        """How many packets were not listened to since this process began, by what was wrong with them."""
        return dict(sorted(self._refusals.counts.items()))

    def tick(self) -> None:
        """Write what waits, and keep what was heard."""
        self._waiting.extend(self._refusals.take())
        self._write()
        self._store.flush()

    def _add(self, entry: Entry) -> None:
        self._waiting.append(entry)
        self._write()

    def _write(self) -> None:
        while len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            self._lost += 1
        if not self._waiting:
            return
        entries = list(self._waiting)
        if self._lost:
            text = f"{self._lost} lines are not in this record: it could not be written"
            entries.append(Entry("lines-lost", COORDINATOR, text, {"lines": self._lost}))
        try:
            newest = self._audit.append_all(entries, wait_s=BUSY_S, known=self._known)
        except AuditError as error:
            self._say(str(error))
            return
        self._known = None  # looked for once, in what was there before this process
        self._waiting.clear()
        self._lost, self._trouble = 0, ""
        self._store.keep_newest(FEDERATION, AUDIT, newest)

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._log(trouble)
        self._trouble = trouble
