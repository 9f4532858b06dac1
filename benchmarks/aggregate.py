"""Aggregation at the size of a 7B Llama, through the production path, against the dense SVD.

    python -m benchmarks.aggregate [--seed N] [--json FILE] [--every-shape]

Ten agents of ranks 4 to 32 (150 in sum), global rank 32, all 224 linear weights of 32 layers:
about 1.9 GB of files, made in a temporary folder. `seconds` counts reading them (from the page cache, as after their
arrival), aggregating and writing the new global adapter, synced; making them is not counted. `cpu_seconds` is the same
in processor time, which other programs disturb less. Peak memory is that of the aggregating process alone, interpreter
and numpy included. The dense reference forms dW+ in float64 and takes its whole SVD: for one 4096 x 4096 weight (one to
two minutes), with `--every-shape` for one weight of each shape (several minutes). All of it uses one BLAS thread, as
`aggregate_files` does in production. `dense_ratio` is the smallest of the measured ratios,
dense seconds over `aggregate_weight` seconds for the same weight in memory; `relative_error` is the Frobenius distance
of what lies in the float32 file from the dense result, over its norm.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from fedpipe_coordinator.aggregation.aggregate import (
    Factors,
    UpdateFile,
    WeightChange,
    aggregate_files,
    aggregate_weight,
)
from fedpipe_coordinator.aggregation.components import draw_components, generator
from fedpipe_profiles.model import ModelShape, WeightShape
from fedpipe_wire.tensors import TensorFile, TensorWriter, a_name, b_name, factors_spec

GLOBAL_RANK = 32
RANKS = (4, 4, 8, 8, 8, 12, 16, 26, 32, 32)
EXAMPLES = (50, 80, 100, 120, 200, 250, 300, 400, 500, 1000)
MODULES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 4096),
    "self_attn.v_proj": (4096, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (11008, 4096),
    "mlp.up_proj": (11008, 4096),
    "mlp.down_proj": (4096, 11008),
}
ROW_NORM = 1.0


@dataclass(frozen=True, slots=True)
class DenseTrial:
    """One weight both ways."""

    weight: str
    dense_s: float
    factors_s: float
    error: float
    error_float64: float

    @property
    def ratio(self) -> float:
        """How many times faster the factors are."""
        return self.dense_s / self.factors_s


def llama_7b(layers: int) -> ModelShape:
    """The linear layers of a 7B Llama."""
    return ModelShape(
        model_type="llama",
        layers=layers,
        hidden_size=4096,
        intermediate_size=11008,
        heads=32,
        vocabulary_size=32000,
        weights=tuple(
            WeightShape(name=f"model.layers.{layer}.{name}", d_out=d_out, d_in=d_in)
            for layer in range(layers)
            for name, (d_out, d_in) in MODULES.items()
        ),
        other_parameters=0,
        fingerprint="0" * 64,
    )


def updates_of(folder: Path, shape: ModelShape, seed: int) -> list[UpdateFile]:
    """The updates that `make_files` writes."""
    return [
        UpdateFile(
            agent=f"silo-{number}",
            examples=examples,
            path=folder / f"silo-{number}.safetensors",
            components={
                weight.name: draw_components(seed, 1, f"silo-{number}", weight.name, GLOBAL_RANK, rank)
                for weight in shape.weights
            },
        )
        for number, (rank, examples) in enumerate(zip(RANKS, EXAMPLES, strict=True))
    ]


def make_files(folder: Path, shape: ModelShape, seed: int) -> None:
    """A global adapter as after some rounds, and updates that moved from it by a fifth."""
    random = np.random.Generator(np.random.SFC64(seed))
    updates = updates_of(folder, shape, seed)
    ranks = [dict.fromkeys((w.name for w in shape.weights), rank) for rank in RANKS]
    start_spec = factors_spec(shape, {w.name: GLOBAL_RANK for w in shape.weights})
    with ExitStack() as stack:
        start = stack.enter_context(TensorWriter(folder / "global.safetensors", start_spec))
        writers = [
            stack.enter_context(TensorWriter(update.path, factors_spec(shape, rank)))
            for update, rank in zip(updates, ranks, strict=True)
        ]
        for weight in shape.weights:
            b = 0.01 * random.standard_normal((weight.d_out, GLOBAL_RANK), np.float32)
            a = random.standard_normal((GLOBAL_RANK, weight.d_in), np.float32)
            a *= np.float32(ROW_NORM / np.sqrt(weight.d_in))
            start.write(a_name(weight.name), a)
            start.write(b_name(weight.name), b)
            for update, writer in zip(updates, writers, strict=True):
                chosen = list(update.components[weight.name])
                writer.write(a_name(weight.name), _moved(a[chosen], random))
                writer.write(b_name(weight.name), _moved(b[:, chosen], random))


def _moved(values: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    step = np.float32(0.2 * values.std())
    return values + step * random.standard_normal(values.shape, np.float32)


def aggregate_all(folder: Path, shape: ModelShape, seed: int) -> dict[str, float]:
    """The timed part: what the coordinator does at the end of a round."""
    updates = updates_of(folder, shape, seed)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    report = aggregate_files(
        folder / "global.safetensors",
        updates,
        folder / "next.safetensors",
        shape=shape,
        row_norm=ROW_NORM,
        seed=seed,
        round_=1,
    )
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - begin_cpu
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_rss_mib": peak_rss_mib(),
        "truncation_tail": report.tail,
    }


def peak_rss_mib() -> float:
    """This program's peak; getrusage would include its parent's from before the exec."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM: this benchmark needs Linux")


def compare(folder: Path, shape: ModelShape, seed: int, weight: str) -> DenseTrial:
    """Aggregate one weight with the factors and with the dense SVD."""
    before, changes = _read(folder, shape, seed, weight)
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        exact = aggregate_weight(before, changes, row_norm=ROW_NORM, reseed=generator("bench"), dtype=np.float64)
        seconds.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    wanted = _dense(before, changes)
    dense_s = time.perf_counter() - begin
    norm = float(np.linalg.norm(wanted))
    with TensorFile(folder / "next.safetensors") as file:
        b, a = file.read(b_name(weight)), file.read(a_name(weight))
    error = float(np.linalg.norm(wanted - b.astype(np.float64) @ a)) / norm
    wanted -= exact.factors.b @ exact.factors.a
    error_float64 = float(np.linalg.norm(wanted)) / norm
    return DenseTrial(weight, dense_s, float(np.median(seconds)), error, error_float64)


def _read(folder: Path, shape: ModelShape, seed: int, weight: str) -> tuple[Factors, list[WeightChange]]:
    changes = []
    for update in updates_of(folder, shape, seed):
        with TensorFile(update.path) as file:
            changes.append(
                WeightChange(
                    update.agent,
                    update.examples,
                    update.components[weight],
                    file.read(b_name(weight)),
                    file.read(a_name(weight)),
                )
            )
    with TensorFile(folder / "global.safetensors") as file:
        return Factors(file.read(b_name(weight)), file.read(a_name(weight))), changes


def _dense(before: Factors, changes: Sequence[WeightChange]) -> NDArray[np.float64]:
    """The best rank-32 approximation of the averaged matrix."""
    b, a = before.b.astype(np.float64), before.a.astype(np.float64)
    total = sum(change.examples for change in changes)
    matrix = b @ a
    for change in changes:
        chosen = list(change.indices)
        share = change.examples / total
        matrix += share * (change.b.astype(np.float64) @ change.a - b[:, chosen] @ a[chosen])
    u, values, vt = np.linalg.svd(matrix, full_matrices=False)
    best: NDArray[np.float64] = u[:, :GLOBAL_RANK] * values[:GLOBAL_RANK] @ vt[:GLOBAL_RANK]
    return best


def _in_own_process(folder: Path, layers: int, seed: int) -> dict[str, float]:
    """Run the timed part where nothing else has been allocated."""
    command = [sys.executable, "-m", "benchmarks.aggregate", "--seed", str(seed)]
    command += ["--layers", str(layers), "--files", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measure(seed: int, layers: int, *, every_shape: bool) -> dict[str, object]:
    """All figures of the table."""
    shape = llama_7b(layers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("making files", file=sys.stderr)
        make_files(folder, shape, seed)
        print("aggregating", file=sys.stderr)
        figures = _in_own_process(folder, layers, seed)
        chosen = {(w.d_out, w.d_in): w.name for w in reversed(shape.weights)}
        if not every_shape:
            chosen = dict(list(chosen.items())[-1:])
        trials = []
        for size, weight in chosen.items():
            print(f"dense SVD of {size[0]} x {size[1]}", file=sys.stderr)
            with threadpool_limits(limits=1, user_api="blas"):
                trials.append(compare(folder, shape, seed, weight))
    return {
        **figures,
        "relative_error": max(trial.error for trial in trials),
        "relative_error_float64": max(trial.error_float64 for trial in trials),
        "dense_ratio": min(trial.ratio for trial in trials),
        "dense_seconds": {trial.weight: trial.dense_s for trial in trials},
        "factor_seconds": {trial.weight: trial.factors_s for trial in trials},
        "weights": len(shape.weights),
        "agents": len(RANKS),
        "processors": len(os.sched_getaffinity(0)),
        "seed": seed,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="aggregation of a 7B Llama's adapters")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--every-shape", action="store_true", help="dense SVD of every shape")
    parser.add_argument("--layers", type=int, default=32, help="fewer for a quick look")
    parser.add_argument("--files", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.files:
        print(json.dumps(aggregate_all(given.files, llama_7b(given.layers), given.seed)))
        return
    figures = measure(given.seed, given.layers, every_shape=given.every_shape)
    for key, value in figures.items():
        print(f"{key:24} {value:.6g}" if isinstance(value, float) else f"{key:24} {value}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
