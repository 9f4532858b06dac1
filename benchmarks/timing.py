"""How well the time model predicts rounds whose plans change from one to the next.

    python -m benchmarks.timing [--seed N] [--data DIR] [--models NAME ...] [--threads N ...] [--rounds N]
        [--processor-time] [--json FILE]

For every model and number of threads an agent's own trainer surveys, scores, and trains round after round on real data;
each round asks for other bits, batch, checkpointing or ranks than the one before, and is predicted from what was
measured before it: from the scoring's steps and the rounds so far. Counted is a round's compute: loading the base where
its bits change, evaluating, training, reading the adapter and writing the update. Transfers are not: `time_error` in a
run's `rounds.jsonl` has them. `mean_abs_error` and `worst` are over the rounds from the second on, `by_round` over the
models of each; `new_bits` over rounds whose bits were never measured before. `step_error` is of single steps, in
settings that were never fitted. The last round is the one before it again, word for word: `noise` is by how much the
steps of the two differ, which no model can predict. With `--processor-time` seconds are those of this process on its
processors, which other programs disturb less, and one thread is used.
"""

import argparse
import itertools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.timing_rounds import Agent, Case, models, settings
from fedpipe_agent.probe import probe_device
from fedpipe_profiles.device import DeviceProfile, Limits

DATA = Path("../shared/data")
FIRST = 2
"""The round from which on errors count."""


def table(cases: Sequence[Case], device: str) -> dict[str, Any]:
    """The figures of all rounds."""
    counted = [case for case in cases if case.round >= FIRST]
    known = [case for case in counted if case.known_bits]
    fresh = [case for case in counted if not case.known_bits]
    steps = [case for case in counted if not case.repeats]
    rounds = sorted({case.round for case in cases})
    return {
        "device": device,
        "cases": len(counted),
        "mean_abs_error": _mean_abs([case.error for case in counted]),
        "worst": max((case.error for case in counted), key=abs),
        "known_bits": _mean_abs([case.error for case in known]),
        "new_bits": _mean_abs([case.error for case in fresh]),
        "by_round": {str(n): _mean_abs([case.error for case in cases if case.round == n]) for n in rounds},
        "step_error": _mean_abs([case.step_error for case in steps]),
        "step_worst": max((case.step_error for case in steps), key=abs),
        "noise": _mean_abs(list(_noise(cases))),
    }


def _noise(cases: Sequence[Case]) -> list[float]:
    """By how much a repeated round differs from the one before it; both have their base loaded already."""
    pairs = itertools.pairwise(cases)
    return [
        second.trained.measurement.step_s / first.trained.measurement.step_s - 1
        for first, second in pairs
        if second.repeats
    ]


def _mean_abs(errors: Sequence[float]) -> float | None:
    return round(mean(abs(error) for error in errors), 4) if errors else None


def run(given: argparse.Namespace, folder: Path, clock: Callable[[], float]) -> tuple[list[Case], DeviceProfile]:
    """All rounds of all models and threads."""
    cases: list[Case] = []
    for threads in given.threads:
        profile, _ = probe_device("benchmark", limits=Limits(threads=threads), device=given.device)
        for name in given.models:
            seed = given.seed + 1000 * threads
            agent = Agent(name, given.data, profile, folder / f"{name}-{threads}", clock, seed)
            for case in agent.rounds(settings(profile.supported_bits, given.rounds, seed)):
                cases.append(case)
                _tell(case, threads)
    return cases, profile


def _tell(case: Case, threads: int) -> None:
    setting = case.setting
    print(
        f"{case.model:12} {threads} threads, round {case.round}: {setting.bits:2} bits, batch {setting.batch_size:2}"
        f"{', checkpointing' if setting.gradient_checkpointing else ''}: {case.predicted.compute_s:.2f} s predicted, "
        f"{case.trained.compute_s:.2f} s measured, {case.error:+.1%}; a step {case.step_error:+.1%}",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="the time model against real rounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the shared data")
    parser.add_argument("--models", nargs="+", default=["minilm", "tinystories", "stories260k"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processor-time", action="store_true", help="count processor time, with one thread")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    if "OMP_WAIT_POLICY" not in os.environ:
        # As for an agent's trainer: threads that spin while they wait cost a busy machine far more than they gain.
        command = [sys.executable, "-m", "benchmarks.timing", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    if unknown := set(given.models) - models(given.data).keys():
        raise SystemExit(f"no such models: {', '.join(sorted(unknown))}; there are {', '.join(models(given.data))}")
    if not given.data.is_dir():
        raise SystemExit(f"{given.data} is not there: name the folder of the shared data with --data")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if given.processor_time:
        given.threads = [1]
    with tempfile.TemporaryDirectory() as folder:
        clock = time.process_time if given.processor_time else time.monotonic
        cases, profile = run(given, Path(folder), clock)
    device = profile.accelerator.name if profile.accelerator is not None else profile.host.cpu
    figures = table(cases, device)
    for key, value in figures.items():
        print(f"{key:16} {value:.4f}" if isinstance(value, float) else f"{key:16} {value}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
