"""Updates that are not what their plan asked for, handed to the gate: `python -m benchmarks.badinput_updates FOLDER`.

Owns the offers of this kind, how all of it is handed over, and the process of its own in which that is measured. Prints
JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.badinput_cases import AcceptedError, Case, judge
from benchmarks.badinput_tensors import FILES, PLAN, SHAPE, whole
from benchmarks.processes import resident_bytes, watch_peak
from fedpipe_coordinator.aggregation.gate import RefusedUpdateError, check_offer, check_update, expected_update_bytes
from fedpipe_profiles.plan import StepMeasurement
from fedpipe_wire.agent_messages import Trained
from fedpipe_wire.coordinator_messages import Ack
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.messages import encode

KIND = "update"
SPARSE = {"4 GiB of holes": 4 << 30, "one byte too large": expected_update_bytes(SHAPE, PLAN) + 1}


def _offer(**changes: Any) -> Trained:
    measured = StepMeasurement(
        bits=32,
        batch_size=4,
        sequence_length=16,
        gradient_checkpointing=False,
        trainable_parameters=1,
        side_parameters=1,
        steps=1,
        step_s=1.0,
        peak_bytes=1,
        context_bytes=1,
    )
    fields: dict[str, Any] = {
        "run": "r",
        "round": 1,
        "update": BlobRef(sha256="0" * 64, size=1000, chunk_bytes=1000),
        "examples": PLAN.examples,
        "steps": 10,
        "train_loss": 1.0,
        "measurement": measured,
        "download_s": 0.0,
        "compute_s": 0.0,
    }
    return Trained(**fields | changes)


OFFERS: Mapping[str, tuple[dict[str, Any], str]] = {
    "an offer of one example too many": ({"examples": PLAN.examples + 1}, "were planned"),
    "an offer of 2^53 examples": ({"examples": 1 << 53}, "were planned"),
    "an offer of one byte too many": (
        {"update": BlobRef(sha256="0" * 64, size=expected_update_bytes(SHAPE, PLAN) + 1, chunk_bytes=1000)},
        "its plan allows",
    ),
    "an offer of 2^53 bytes": (
        {"update": BlobRef(sha256="0" * 64, size=1 << 53, chunk_bytes=1 << 40)},
        "its plan allows",
    ),
}


def _refusal(check: Callable[[], None]) -> str:
    try:
        check()
    except RefusedUpdateError as error:
        # It goes to the sender in a message, so it must be fit for one.
        encode(Ack(run="r", round=1, sha256="0" * 64, accepted=False, reason=str(error)[:1000]))
        return str(error)
    raise AcceptedError("the gate let it in")


def _try_file(path: Path, make: Callable[[], bytes]) -> str:
    path.write_bytes(make())
    try:
        return _refusal(lambda: check_update(path, SHAPE, PLAN))
    finally:
        path.unlink()


def _try_sparse(path: Path, size: int) -> str:
    with path.open("wb") as file:
        file.truncate(size)
    try:
        return _refusal(lambda: check_update(path, SHAPE, PLAN))
    finally:
        path.unlink()


def cases(folder: Path) -> list[Case]:
    """All of this kind; each writes its file into `folder` and removes it."""
    path = folder / "update"
    found = [Case(KIND, name, partial(_try_file, path, make), says) for name, (make, says) in FILES.items()]
    found += [
        Case(KIND, name, partial(_try_sparse, path, size), "at most .* are read") for name, size in SPARSE.items()
    ]
    for name, (changes, says) in OFFERS.items():
        offer = _offer(**changes)
        found.append(Case(KIND, name, lambda offer=offer: _refusal(lambda: check_offer(SHAPE, PLAN, offer)), says))  # type: ignore[misc]  # the default binds the offer of this turn
    return found


def check_good(folder: Path) -> None:
    """A good update passes; raises RefusedUpdateError where even that does not."""
    check_offer(SHAPE, PLAN, _offer())
    (folder / "update").write_bytes(whole())
    check_update(folder / "update", SHAPE, PLAN)


def main() -> int:
    """Judge all cases in this process, and print what became of them and what they cost it."""
    parser = argparse.ArgumentParser(description="updates that are not what their plan asked for")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    check_good(folder)  # what is loaded once is no growth
    before = resident_bytes()
    watch_peak()
    results = [judge(case) for case in cases(folder)]
    check_good(folder)
    peak = resident_bytes(peak=True)
    lines = [asdict(result) | {"case": {"kind": result.case.kind, "name": result.case.name}} for result in results]
    print(json.dumps({"results": lines, "rss_growth_bytes": peak - before}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
