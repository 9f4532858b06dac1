"""What the gate costs, per MiB of update, on one core.

    python -m benchmarks.gate [--seed N] [--layers N] [--json FILE]

The ten updates of `benchmarks.aggregate` (ranks 4 to 32 on all weights of some layers of a 7B Llama), from the page
cache. Counted is processor time, which other programs disturb less, of the best of `REPEATS`. `gate_ms_per_mib` is the
check of a file that has come whole: header, names, shapes, dtypes and every value. `closing_ms_per_mib` is the norms of
all changes and who is over the bound, when a round closes; `closing_krum_ms_per_mib` with the inner products that
multi-krum takes too. `total_ms_per_mib` is the first two. For comparison: `sha256_ms_per_mib` of the same bytes, and
`aggregate_ms_per_mib` of the mean, `median_ms_per_mib` of the median.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.aggregate import GLOBAL_RANK, ROW_NORM, llama_7b, make_files, updates_of
from fedpipe_coordinator.aggregation.aggregate import UpdateFile, aggregate_files
from fedpipe_coordinator.aggregation.closing_gate import beyond_bound
from fedpipe_coordinator.aggregation.gate import check_update
from fedpipe_coordinator.aggregation.norms import measure
from fedpipe_coordinator.aggregation.robust import treat
from fedpipe_coordinator.config import AggregationSection
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import Plan, Prediction

REPEATS = 3
MIB = 1024 * 1024


def plan_of(update: UpdateFile) -> Plan:
    """A plan that an update answers."""
    return Plan(
        agent=update.agent,
        round=1,
        bits=32,
        batch_size=1,
        gradient_checkpointing=False,
        sequence_length=1,
        learning_rate=1.0,
        seed=0,
        examples=update.examples,
        deadline_s=1.0,
        scale=1.0,
        global_rank=GLOBAL_RANK,
        components=dict(update.components),
        predicted=Prediction(peak_bytes=1, round_s=1.0, compute_s=1.0, up_bytes=1, down_bytes=1),
        bound="nothing",
        reason="",
    )


def measure_all(folder: Path, shape: ModelShape, seed: int) -> dict[str, float]:
    """Every figure of the table."""
    start, updates = folder / "global.safetensors", updates_of(folder, shape, seed)
    mib = sum(update.path.stat().st_size for update in updates) / MIB

    def check() -> None:
        for update in updates:
            check_update(update.path, shape, plan_of(update))

    def close(*, products: bool) -> None:
        beyond_bound(measure(start, updates, shape=shape, products=products, threads=1), updates, 10.0)

    def aggregate(rule: str) -> None:
        treatment = treat(updates, AggregationSection.model_validate({"rule": rule}), None)
        aggregate_files(
            start,
            treatment.updates,
            folder / "next.safetensors",
            shape=shape,
            row_norm=ROW_NORM,
            seed=seed,
            round_=1,
            rule=treatment.rule,
            head_rule=treatment.head_rule,
            threads=1,
        )

    figures = {
        "gate_ms_per_mib": _best_s(check),
        "closing_ms_per_mib": _best_s(lambda: close(products=False)),
        "closing_krum_ms_per_mib": _best_s(lambda: close(products=True)),
        "sha256_ms_per_mib": _best_s(lambda: _hash(updates)),
        "aggregate_ms_per_mib": _best_s(lambda: aggregate("mean")),
        "median_ms_per_mib": _best_s(lambda: aggregate("median")),
    }
    figures = {name: 1000 * seconds / mib for name, seconds in figures.items()}
    total = figures["gate_ms_per_mib"] + figures["closing_ms_per_mib"]
    return figures | {"total_ms_per_mib": total, "updates_mib": mib}


def _best_s(work: Callable[[], None]) -> float:
    """Processor seconds of the best repeat."""
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def _hash(updates: list[UpdateFile]) -> None:
    for update in updates:
        with update.path.open("rb") as file:
            hashlib.file_digest(file, "sha256")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="what the gate costs per MiB of update")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=4, help="of a 7B Llama; all have equal shapes")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    shape = llama_7b(given.layers)
    with tempfile.TemporaryDirectory() as name:
        make_files(Path(name), shape, given.seed)
        figures = measure_all(Path(name), shape, given.seed)
    for key, value in figures.items():
        print(f"{key:26} {value:.4g}")
    if given.json:
        given.json.write_text(json.dumps(figures | {"seed": given.seed}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
