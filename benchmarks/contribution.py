"""Which weights and ranks are worth a budget of trainable parameters, by each way to choose them.

    python -m benchmarks.contribution [--seed N] [--seeds 3] [--setting e2e] [--budgets 0.25 0.5] [--steps 150]
                                      [--learning-rates 1e-2 2e-2 4e-2] [--data ../shared/data] [--json FILE]

A real pretrained model is fine-tuned in one process with adapters of at most the same number of trainable parameters, a
share (`--budgets`) of all-linear at rank 8. Weights and ranks are chosen by the contribution that the agents' own code
measures, by either method, and the planner's own knapsack; or are those of all linear layers, of queries and values
alone, both as evenly as whole ranks allow, or drawn at random. `loss` is that of held-out examples after the same
number of steps on the same examples. Every way to choose has the learning rate that is best for it at the budget, found
on a seed of its own (`TUNING_SEED`), which is never among those that are judged.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.contribution_bench import METHODS, SETTINGS, Bench, Effort, Run

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
EXIT_NO_DATA = 3
TUNING_SEED = 100_000
BUDGETS = (0.25, 0.5)
LEARNING_RATES = (1e-2, 2e-2, 4e-2)


@dataclass(frozen=True, slots=True)
class Given:
    """What was asked for."""

    seeds: tuple[int, ...]
    budgets: tuple[float, ...]
    rates: tuple[float, ...]


def best_rate(bench: Bench, name: str, budget: float, rates: Sequence[float]) -> float:
    """The learning rate with the lowest loss on the tuning seed; the lower one of two that are level."""
    if len(rates) == 1:
        return rates[0]
    losses = {rate: bench.run(name, budget, rate, TUNING_SEED).loss for rate in sorted(rates)}
    return min(losses, key=lambda rate: losses[rate])


def judged(bench: Bench, given: Given) -> dict[str, dict[str, Any]]:
    """Figures of every budget and way to choose, told as they come."""
    found: dict[str, dict[str, Any]] = {}
    for budget in given.budgets:
        for name in METHODS:
            rate = best_rate(bench, name, budget, given.rates)
            runs = [bench.run(name, budget, rate, seed) for seed in given.seeds]
            found.setdefault(f"{budget:g}", {})[name] = _figures(runs, rate)
            told = " ".join(f"{run.loss:.4f}" for run in runs)
            print(f"{budget:5.0%}  {name:16} {told}  at {rate:g}", file=sys.stderr, flush=True)
    return found


def _figures(runs: Sequence[Run], rate: float) -> dict[str, Any]:
    losses = [run.loss for run in runs]
    return {
        "loss": mean(losses),
        "spread": stdev(losses) if len(losses) > 1 else 0.0,
        "losses": losses,
        "trainable_parameters": [run.parameters for run in runs],
        "learning_rate": rate,
        "ranks": [run.ranks for run in runs],
    }


def table(found: dict[str, dict[str, Any]], seeds: int) -> str:
    """Budgets across, ways to choose down: mean loss, and its standard deviation over the seeds."""
    lines = [f"{'held-out loss':18}" + "".join(f"{float(budget):>20.0%}" for budget in found)]
    for name in METHODS:
        cells = (of[name] for of in found.values())
        lines.append(f"{name:18}" + "".join(f"{c['loss']:12.4f} ± {c['spread']:.4f}" for c in cells))
    return "\n".join([*lines, f"mean and standard deviation over {seeds} seeds"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit code."""
    parser = argparse.ArgumentParser(description="which weights and ranks are worth a budget of parameters")
    parser.add_argument("--seed", type=int, default=0, help="the first of the judged seeds")
    parser.add_argument("--seeds", type=int, default=3, help="how many are judged")
    parser.add_argument("--setting", choices=sorted(SETTINGS), default="e2e")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="of all-linear at rank 8")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=LEARNING_RATES)
    parser.add_argument("--data", type=Path, default=DATA, help="where models/, e2e/ and banking77/ lie")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    asked = parser.parse_args(arguments)
    setting = SETTINGS[asked.setting]
    missing = [name for name in setting.needed if not (asked.data / name).exists()]
    if missing:
        print(f"{asked.data} has no {', '.join(missing)}: name the folder that has them with --data", file=sys.stderr)
        return EXIT_NO_DATA
    began = time.monotonic()
    seeds = tuple(range(asked.seed, asked.seed + asked.seeds))
    bench = Bench(setting, asked.data, Effort(steps=asked.steps))
    found = judged(bench, Given(seeds, tuple(asked.budgets), tuple(asked.learning_rates)))
    print(table(found, len(seeds)))
    print(f"{setting.model}, {asked.steps} steps of {setting.batch_size}, {time.monotonic() - began:.0f} s")
    if asked.json:
        first = next(iter(found.values()))
        figures = {
            "methods": {name: of["loss"] for name, of in first.items()},
            "budgets": found,
            "seeds": seeds,
            "setting": asked.setting,
            "steps": asked.steps,
            "learning_rates": asked.learning_rates,
            "seconds": time.monotonic() - began,
        }
        asked.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
