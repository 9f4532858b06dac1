"""Whether what an earlier process stored still is what its name says, looked at once before it is used.

Owns what can be done about a global adapter that is not: it is made again where what it was made of still is here. For
updates the machine asks their agents. Called in the worker: a file is read whole.
"""

from collections.abc import Sequence
from pathlib import Path

from fedpipe_coordinator.aggregation.adapter_making import first_adapter, next_adapter, update_file
from fedpipe_coordinator.aggregation.aggregate import UpdateFile
from fedpipe_coordinator.merging import WorkError
from fedpipe_coordinator.runs.run_events import Aggregate, Damaged
from fedpipe_coordinator.runs.run_state import Member, RunState
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.message_values import BlobRef


def check_adapter(state: RunState, blobs: BlobStore, folder: Path) -> BlobRef:
    """The run's global adapter, once it is sure to be whole.

    Raises:
        WorkError: if it is damaged or gone, and cannot be made again.
    """
    ref = state.adapter
    if ref is None:
        raise WorkError(f"run {state.run} has no global adapter")
    if blobs.verify(ref.sha256) or _made_again(state, ref, blobs, folder):
        return ref
    raise WorkError(
        f"the global adapter {blobs.path(ref.sha256)} is damaged or gone, and what it was made of is not here any "
        "more: look after this disk and leave that folder alone, then run the job again or restore a backup of the "
        "federation's folder"
    )


def damage(state: RunState, action: Aggregate, blobs: BlobStore) -> Damaged | None:
    """The updates of an aggregation that this disk has lost, or None."""
    missing = [each for each in action.updates.items() if not blobs.verify(each[1])]
    useless = []
    for name, sha256 in action.late.items():
        base = next((e.base for e in state.members[name].late if e.trained.update.sha256 == sha256), None)
        if base is not None and not blobs.verify(base.sha256):
            useless.append((name, sha256))
        elif not blobs.verify(sha256):
            missing.append((name, sha256))
    return Damaged(action.round, tuple(missing), tuple(useless)) if missing or useless else None


def _made_again(state: RunState, ref: BlobRef, blobs: BlobStore, folder: Path) -> bool:
    """Whether the adapter is here again, of the same bytes."""
    if state.former is None:
        return first_adapter(state, blobs, folder).sha256 == ref.sha256
    made = state.pending
    if made is None or made.late or not blobs.verify(state.former.sha256):
        return False
    updates = _updates(made.members, blobs)
    if not updates:
        return False
    again = next_adapter(state, state.former, updates, made.round, blobs, folder)
    return again.adapter.sha256 == ref.sha256


def _updates(members: Sequence[Member], blobs: BlobStore) -> list[UpdateFile]:
    """The updates that a round aggregated, if all are here."""
    found = []
    for member in members:
        if member.standing != "accepted" or member.trained is None or member.plan is None:
            continue
        sha256 = member.trained.update.sha256
        if not blobs.verify(sha256):
            return []
        found.append(update_file(member.name, member.plan, member.trained, blobs.path(sha256)))
    return found
