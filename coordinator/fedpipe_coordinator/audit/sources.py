"""Where the records of a federation's folder are, and what the coordinator's store knows of their ends.

Owns reading them, also while a coordinator works in the folder. Nothing is written, not even by opening the store.
"""

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedpipe_coordinator.audit.federation_audit import KEYS as FEDERATION_KEYS
from fedpipe_coordinator.audit.federation_audit import NEWEST, NEWEST_GONE, FederationAudit
from fedpipe_coordinator.audit.strays import judge_folder, judge_told, recorded_folders, told_runs
from fedpipe_coordinator.audit.verification import Finding, Known, Verdict, verify
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.records.line_files import sort_lines
from fedpipe_coordinator.records.run_folder import AUDIT
from fedpipe_coordinator.store_interface import FEDERATION, Line, Newest
from fedpipe_coordinator.store_schema import StoreError
from fedpipe_wire.hash_chain import FIRST, written

_TRIES = 20
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as far as its record is concerned; `ours`: its folder is one of the federation's own."""

    run: str
    folder: Path
    ours: bool = True


class AuditSources:
    """The records of one federation's folder."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def runs(self) -> list[StoredRun]:
        """All runs that the store knows, in their order.

        Raises:
            StoreError: if there is a store and it cannot be read.
        """
        with self._store() as store:
            rows = [] if store is None else store.execute("SELECT run, state FROM runs ORDER BY number").fetchall()
        found = []
        for run, text in rows:
            folder = json.loads(text).get("folder")
            found.append(StoredRun(run, Path(folder) if folder else self._home.run(run), not folder))
        return found

    def strays(self) -> dict[str, Verdict]:
        """What is said of runs that the store does not know, by their names.

        Raises:
            AuditError: if the federation's record cannot be read.
            StoreError: if there is a store and it cannot be read.
            OSError: if a run's record is there and cannot be read.
        """
        told, folders = told_runs(self._home), recorded_folders(self._home)
        runs = self.runs()  # after the others: a run is stored before anything tells of it
        known, places = {stored.run for stored in runs}, {stored.folder.resolve() for stored in runs}
        found = {folder.name: judge_folder(self._home, folder) for folder in folders if folder.resolve() not in places}
        for run in told.keys() - known - found.keys():
            found[run] = judge_told(self._home, run, told[run])
        return dict(sorted(found.items()))

    def verify_run(self, stored: StoredRun, *, asked: bool) -> Verdict:
        """Judge a run's record; `asked`: by name.

        That it is not there any more is a finding, but for a run that was not asked for in a folder that its owner
        named: that may be on a disk that is not mounted, or be wherever he wanted it.

        Raises:
            StoreError: if the store cannot be read.
            OSError: if the record is there and cannot be read.
        """
        path = stored.folder / AUDIT
        for left in range(_TRIES, 0, -1):
            data = path.read_bytes() if path.exists() else None
            known = self._known(stored.run)
            now = path.stat().st_size if path.exists() else None
            if now == (None if data is None else len(data)) or left == 1:
                break
            time.sleep(_PAUSE_S)  # a coordinator has just written to it
        name = str(path)
        if data is not None:
            return verify(name, data, known)
        text = f"{name} is not there any more, with all of its lines"
        lost = known.newest is not None and known.newest.number > len(known.waiting)
        wrong = lost and (asked or stored.ours)
        findings = (Finding(name, 1, "gone", text),) if wrong else ()
        return Verdict(name, 0, 0, FIRST, findings, (text,) if lost and not wrong else ())

    def verify_federation(self) -> Verdict:
        """Judge the federation's own record.

        Raises:
            AuditError: if it cannot be read.
            StoreError: if the store cannot be read.
        """
        audit = FederationAudit(self._home.path)
        data, beside = audit.snapshot()
        stored = self._known(FEDERATION).newest
        noted = [
            Line(AUDIT, line["number"], written(line), str(line.get("hash", FIRST)))
            for line in sort_lines(beside, FEDERATION_KEYS).lines
        ]
        newest = Newest(noted[-1].number, noted[-1].hash or FIRST) if noted else stored
        verdict = _without_newest(verify(str(audit.path), data, Known(newest, noted)), data, noted)
        if stored is None or verdict.findings:
            return verdict
        found = next((line for line in sort_lines(data, {"number": int}).lines if line["number"] == stored.number), {})
        if found.get("hash") == stored.hash or any(each.hash == stored.hash for each in noted):
            return verdict
        text = f"the coordinator has written another line as number {stored.number}: the record was made anew"
        finding = Finding(verdict.file, max(1, verdict.lines), "edited", text)
        return Verdict(verdict.file, verdict.lines, 0, verdict.newest, (finding,), verdict.notices)

    def _known(self, run: str) -> Known:
        with self._store() as store:
            if store is None:
                return Known(None)
            store.execute("BEGIN")
            tables = {row[0] for row in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "newest" not in tables:
                return Known(None)
            row = store.execute("SELECT number, hash FROM newest WHERE run = ? AND file = ?", (run, AUDIT)).fetchone()
            lines = store.execute(
                "SELECT number, text FROM lines WHERE run = ? AND file = ? ORDER BY number", (run, AUDIT)
            ).fetchall()
        waiting = [Line(AUDIT, number, text, json.loads(text).get("hash")) for number, text in lines]
        return Known(Newest(*row) if row else None, waiting)

    @contextlib.contextmanager
    def _store(self) -> Iterator[sqlite3.Connection | None]:
        path = self._home.store
        if not path.exists():
            yield None
            return
        try:
            connection = _open(path)
            try:
                yield connection
            finally:
                connection.close()
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(
                f"the coordinator's store {path} cannot be read ({error}): restore it from a backup, together with the "
                "files that lie beside it"
            ) from error


def _without_newest(verdict: Verdict, data: bytes, noted: Sequence[Line]) -> Verdict:
    """Say it where `audit.newest` is gone beside lines, or once was."""
    lines = [line for line in sort_lines(data, FEDERATION_KEYS).lines if "hash" in line]
    said = [(line["number"], str(line["text"])) for line in lines if line["kind"] == NEWEST_GONE]
    if lines and not noted:
        said.append((lines[-1]["number"], f"{NEWEST} is gone or damaged: lines may have been taken away at the end"))
    found = tuple(Finding(verdict.file, number, "gone", text) for number, text in said)
    return replace(verdict, findings=(*verdict.findings, *found))


def _open(path: Path) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(address, uri=True, isolation_level=None)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except sqlite3.OperationalError:
        # On a disk that takes nothing, such as a mounted backup, there is no place for what readers share.
        connection.close()
        connection = sqlite3.connect(f"{address}&immutable=1", uri=True, isolation_level=None)
    return connection
