"""Runs that the coordinator's store does not know, although the federation's record or a folder tells of them.

Owns finding them. A run is stored before anything else tells of it, and never forgotten: so a store that does not know
one was deleted, or put back from an older backup, or the run's folder was brought here from elsewhere.
"""

from pathlib import Path

from fedpipe_coordinator.audit.federation_audit import FederationAudit
from fedpipe_coordinator.audit.verification import Finding, Known, Verdict, verify
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.records.run_folder import AUDIT
from fedpipe_wire.hash_chain import FIRST

_LONGEST = 200


def told_runs(home: Home) -> dict[str, int]:
    """Runs that the federation's record says have begun: each with the number of the line.

    Raises:
        AuditError: if it cannot be read.
    """
    found: dict[str, int] = {}
    for line in FederationAudit(home.path).lines():
        data = line.get("data")
        if line["kind"] == "run-began" and isinstance(data, dict) and isinstance(data.get("run"), str):
            found.setdefault(data["run"], line["number"])
    return found


def recorded_folders(home: Home) -> list[Path]:
    """The federation's own folders of runs that hold a record."""
    return sorted(path.parent for path in (home.path / "runs").glob(f"*/{AUDIT}"))


def judge_told(home: Home, run: str, number: int) -> Verdict:
    """What is said of a run that only the federation's record tells of."""
    name = str(home.run(run[:_LONGEST]) / AUDIT)
    text = (
        f"run {run[:_LONGEST]} began by line number {number} of the federation's record, and neither the coordinator's "
        f"store nor a folder here knows it: {home.store.name} was deleted, or put back from an older backup"
    )
    return Verdict(name, 0, 0, FIRST, (Finding(name, 1, "unknown", text),), ())


def judge_folder(home: Home, folder: Path) -> Verdict:
    """What is said of a record that the store does not know.

    Raises:
        OSError: if it cannot be read.
    """
    path = folder / AUDIT
    verdict = verify(str(path), path.read_bytes(), Known(None))
    text = (
        f"the coordinator's store knows no run with this record: {home.store.name} was deleted, or put back from an "
        "older backup, or the folder was brought here from elsewhere"
    )
    unknown = Finding(verdict.file, 1, "unknown", text)
    return Verdict(
        verdict.file, verdict.lines, verdict.unchained, verdict.newest, (unknown, *verdict.findings), verdict.notices
    )
