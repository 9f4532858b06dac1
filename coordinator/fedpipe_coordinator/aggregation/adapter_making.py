"""Making global adapters: the first one, and the next one of a round's updates. The same arguments give the same bytes.

Owns where they are written and that they come into the blob store; the rule is `aggregate.py`'s, and which one, and
what is clipped, is `robust.py`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpipe_coordinator.aggregation.aggregate import UpdateFile, aggregate_files
from fedpipe_coordinator.aggregation.global_adapter import initial_adapter
from fedpipe_coordinator.aggregation.medians import ENOUGH
from fedpipe_coordinator.aggregation.norms import Measured, measure
from fedpipe_coordinator.aggregation.robust import Treatment, needs_measures, needs_products, treat
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_profiles.plan import Plan
from fedpipe_wire.agent_messages import Trained
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


@dataclass(frozen=True, slots=True)
class NextAdapter:
    """A new global adapter: the share of it that was lost by truncation, and how the updates were treated."""

    adapter: BlobRef
    truncation_tail: float
    treatment: Treatment


def update_file(agent: str, plan: Plan, trained: Trained, path: Path) -> UpdateFile:
    """An update as aggregation sees it; how many steps it should have taken is the plan's word, not its sender's."""
    steps = -(-plan.examples // plan.batch_size)
    return UpdateFile(agent, trained.examples, path, dict(plan.components), steps=steps)


def measure_updates(
    state: RunState, start: BlobRef, updates: Sequence[UpdateFile], blobs: BlobStore
) -> Measured | None:
    """How far updates moved from `start`, where the job's defences ask for it and there are enough to compare."""
    settings = state.job.aggregation
    comparable = len({update.agent for update in updates}) >= ENOUGH or needs_products(settings)
    if state.shape is None or not needs_measures(settings) or not comparable:
        return None
    return measure(
        blobs.path(start.sha256),
        updates,
        shape=state.shape,
        scale=state.job.adapter.scale,
        products=needs_products(settings),
    )


def next_adapter(
    state: RunState,
    start: BlobRef,
    updates: Sequence[UpdateFile],
    round_: int,
    blobs: BlobStore,
    folder: Path,
    *,
    measured: Measured | None = None,
) -> NextAdapter:
    """The adapter that updates make of `start`; they are measured first where they are not `measured` yet."""
    assert state.shape is not None
    blobs.check_room(start.size, f"the global adapter of round {round_}")
    treatment = treat(updates, state.job.aggregation, measured or measure_updates(state, start, updates, blobs))
    path = folder / f"adapter-{round_}.safetensors"
    report = aggregate_files(
        blobs.path(start.sha256),
        treatment.updates,
        path,
        shape=state.shape,
        row_norm=ROW_NORM,
        seed=state.job.job.seed,
        round_=round_,
        rule=treatment.rule,
        head_rule=treatment.head_rule,
    )
    return NextAdapter(take_in(blobs, path, report.sha256), report.tail, treatment)


def _numbers(state: RunState) -> int:
    """How many numbers a global adapter holds, its head included."""
    assert state.shape is not None
    rank = state.job.adapter.global_rank
    return rank * sum(weight.d_out + weight.d_in for weight in state.shape.weights) + state.shape.head_parameters
