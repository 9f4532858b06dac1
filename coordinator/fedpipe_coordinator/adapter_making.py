"""Making global adapters: the first one, and the next one of a round's updates. The same arguments give the same bytes.

Owns where they are written and that they come into the blob store; the rule is `aggregate.py`'s.
"""

from collections.abc import Sequence
from pathlib import Path

from fedpipe_coordinator.aggregate import UpdateFile, aggregate_files
from fedpipe_coordinator.global_adapter import initial_adapter
from fedpipe_coordinator.run_state import RunState
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.message_values import BlobRef

ROW_NORM = 1.0
"""Norm of the rows of A (the constant c): with orthonormal rows at 1, one constant fits every width."""


def take_in(blobs: BlobStore, path: Path, sha256: str | None = None) -> BlobRef:
    """Move a file into the blob store under its content's name; `sha256` where whoever wrote and synced it knows it."""
    return blobs.add_file(path, move=True, sha256=sha256)


def first_adapter(state: RunState, blobs: BlobStore, folder: Path) -> BlobRef:
    """The adapter that a run begins with."""
    assert state.shape is not None
    path = folder / "adapter-0.safetensors"
    blobs.check_room(4 * _numbers(state), "the first global adapter")
    initial_adapter(
        path,
        state.shape,
        tuple(weight.name for weight in state.shape.weights),
        state.job.adapter.global_rank,
        seed=state.job.job.seed,
        row_norm=ROW_NORM,
    )
    return take_in(blobs, path)


def next_adapter(
    state: RunState, start: BlobRef, updates: Sequence[UpdateFile], round_: int, blobs: BlobStore, folder: Path
) -> tuple[BlobRef, float]:
    """The adapter that updates make of `start`, and the share of it that was lost by truncation."""
    assert state.shape is not None
    blobs.check_room(start.size, f"the global adapter of round {round_}")
    path = folder / f"adapter-{round_}.safetensors"
    report = aggregate_files(
        blobs.path(start.sha256),
        updates,
        path,
        shape=state.shape,
        row_norm=ROW_NORM,
        seed=state.job.job.seed,
        round_=round_,
    )
    return take_in(blobs, path, report.sha256), report.tail


def _numbers(state: RunState) -> int:
    """How many numbers a global adapter holds, its head included."""
    assert state.shape is not None
    rank = state.job.adapter.global_rank
    return rank * sum(weight.d_out + weight.d_in for weight in state.shape.weights) + state.shape.head_parameters
