"""The heavy work of a run: planning a round, aggregating its updates, exporting the result.

Each function takes what it needs and returns the event that the machine waits for; the service calls them in a worker
thread, so that the session with the broker never waits for a solver.
"""

import hashlib
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from fedpipe_coordinator.aggregation.adapter_making import first_adapter, measure_updates, next_adapter, update_file
from fedpipe_coordinator.aggregation.aggregate import UpdateFile
from fedpipe_coordinator.aggregation.closing_gate import beyond_bound
from fedpipe_coordinator.aggregation.components import draw_components
from fedpipe_coordinator.aggregation.soundness import check_adapter, damage
from fedpipe_coordinator.merging import Merger, WorkError
from fedpipe_coordinator.peft_format import write_peft_adapter
from fedpipe_coordinator.records.run_folder import RunFolder
from fedpipe_coordinator.runs.run_events import (
    AdapterChecked,
    Aggregate,
    Aggregated,
    BroadcastAdapter,
    Damaged,
    Exported,
    MakePlans,
    Planned,
    UpdatesRefused,
)
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_profiles.device import DeviceProfile
from fedpipe_profiles.planning.planner import plan_round
from fedpipe_profiles.planning.problem import DeviceProblem, JobProblem
from fedpipe_wire.blob_files import BlobStore


def make_plans(
    state: RunState, action: MakePlans, profiles: dict[str, DeviceProfile], blobs: BlobStore, folder: Path
) -> Planned:
    """Plan a round; make the first global adapter when there is none yet."""
    if state.shape is None:
        raise WorkError(f"run {state.run} has no model shape: no agent was surveyed")
    job = state.job
    adapter = check_adapter(state, blobs, folder) if state.adapter else first_adapter(state, blobs, folder)
    problem = JobProblem(
        shape=state.shape,
        curves=state.curves,
        rank_ladder=job.adapter.rank_ladder,
        batch_sizes=job.train.batch_sizes,
        global_rank=job.adapter.global_rank,
        sequence_length=job.train.sequence_length,
        task=job.job.task,
        num_labels=len(state.labels),
        examples_per_round=job.train.examples_per_round,
        evaluation_examples=job.data.evaluation_examples,
        learning_rate=job.train.learning_rate,
        scale=job.adapter.scale,
        seed=training_seed(job.job.seed, action.round),
    )
    devices = {name: _device(state, name, profiles[name]) for name in action.agents if name in profiles}
    deadline = job.rounds.deadline_s
    plan = plan_round(
        problem,
        devices,
        round_=action.round,
        deadline_s=None if deadline == "auto" else float(deadline),
        draw=partial(_draw, job.job.seed, action.round),
    )
    return Planned(action.round, plan.deadline_s, dict(plan.plans), dict(plan.none), adapter)


def training_seed(seed: int, round_: int) -> int:
    """What a round's plans are seeded with: another shuffle in every round, or each would train the same examples."""
    return int.from_bytes(hashlib.sha256(f"training/{seed}/{round_}".encode()).digest()[:4], "big")


def _draw(seed: int, round_: int, agent: str, weight: str, global_rank: int, rank: int) -> tuple[int, ...]:
    return draw_components(seed, round_, agent, weight, global_rank, rank)


def _device(state: RunState, name: str, profile: DeviceProfile) -> DeviceProblem:
    member = state.members[name]
    if member.survey is None:
        raise WorkError(f"agent {name} is to be planned and was never surveyed")
    return DeviceProblem(
        profile=profile,
        measurements=member.measurements,
        transfers=member.transfers,
        train_examples=member.survey.train_examples,
        held_out_examples=member.survey.held_out_examples,
        mean_tokens=member.survey.mean_tokens,
        memory_cap_bytes=member.memory_cap_bytes,
        loaded_bits=member.plan.bits if member.plan is not None else None,
    )


def aggregate(
    state: RunState, action: Aggregate, blobs: BlobStore, folder: Path
) -> Aggregated | UpdatesRefused | Damaged:
    """Make the next global adapter of the accepted updates.

    Or say which of them this disk has lost, or which have moved a weight too far beside the others.
    """
    start = check_adapter(state, blobs, folder)
    damaged = damage(state, action, blobs)
    if damaged is not None:
        return damaged
    updates = []
    for name, sha256 in sorted(action.updates.items()):
        member = state.members[name]
        if member.trained is None or member.plan is None:
            raise WorkError(f"the update of {name} has no report or plan")
        updates.append(update_file(name, member.plan, member.trained, blobs.path(sha256)))
    updates += [_late_file(state, name, sha256, blobs) for name, sha256 in sorted(action.late.items())]
    measured = measure_updates(state, start, updates, blobs)
    refused = {} if measured is None else beyond_bound(measured, updates, state.job.aggregation.norm_bound)
    if refused:
        told = [(name, (action.late if late else action.updates)[name], why) for (name, late), why in refused.items()]
        return UpdatesRefused(action.round, tuple(sorted(told)))
    made = next_adapter(state, start, updates, action.round, blobs, folder, measured=measured)
    return Aggregated(action.round, made.adapter, made.truncation_tail, made.treatment.text(), made.treatment.record())


def _late_file(state: RunState, name: str, sha256: str, blobs: BlobStore) -> UpdateFile:
    """An update of the round before, with what it was trained from."""
    entry = next((each for each in state.members[name].late if each.trained.update.sha256 == sha256), None)
    if entry is None:
        raise WorkError(f"the late update {sha256[:12]} of {name} has no report or plan")
    return replace(
        update_file(name, entry.plan, entry.trained, blobs.path(sha256)),
        weight=state.job.rounds.late_weight,
        base=blobs.path(entry.base.sha256),
    )


def check(state: RunState, action: BroadcastAdapter, blobs: BlobStore, folder: Path) -> AdapterChecked:
    """See that what is to be sent to all agents is whole."""
    check_adapter(state, blobs, folder)
    return AdapterChecked(action.ref, action.round)


def export(state: RunState, blobs: BlobStore, folder: RunFolder, merger: Merger) -> Exported:
    """Write the PEFT adapter, and the merged model if the job asks for it."""
    if state.adapter is None or state.shape is None:
        raise WorkError(f"run {state.run} has nothing to export")
    check_adapter(state, blobs, folder.path)
    blobs.check_room(state.adapter.size, "the exported adapter")
    write_peft_adapter(
        folder.adapter,
        blobs.path(state.adapter.sha256),
        state.shape,
        task=state.job.job.task,
        base_model=state.job.job.model,
        scale=state.job.adapter.scale,
        labels=state.labels,
    )
    paths = {"adapter": str(folder.adapter)}
    if state.job.export.merged:
        # of an attempt that was cut short: the folder is this run's own
        shutil.rmtree(folder.merged, ignore_errors=True)
        merger.merge(folder.adapter, state.job.job.model, state.job.job.task, folder.merged)
        paths["merged"] = str(folder.merged)
    return Exported(paths, _hashes(folder.path, [Path(path) for path in paths.values()]))


def _hashes(base: Path, folders: list[Path]) -> dict[str, str]:
    """SHA-256 of every file in some folders, by its place in `base`."""
    found = {}
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[str(path.relative_to(base))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
