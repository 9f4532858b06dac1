"""How far the predicted peak of a training step is from what the allocator really held, over a grid of cases.

    python -m benchmarks.memory [--seed N] [--json FILE] [--models NAME ...]

Every case is a step of the trainer's own code on a processor, under torch's memory profiler: models x bits x batch and
sequence x checkpointing x ranks x with and without padding. No coefficient is fitted: the count alone is compared.
`mean_abs_error`, `worst_under` and `worst_over` are shares of the true peak; `with_margin_under` counts the cases in
which the true peak is above the prediction with the planner's safety margin.
"""

import argparse
import itertools
import json
import platform
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory_models import models
from benchmarks.memory_steps import Case, Outcome, load, outcome
from fedpipe_agent.train.base import quiet_libraries
from fedpipe_profiles.costs.memory import SAFETY_MARGIN
from fedpipe_profiles.device import Bits

BITS: tuple[Bits, ...] = (32, 16, 8, 4)
BATCHES = ((4, 64), (8, 128))
RANKS = ("half", "mixed")
GLOBAL_RANK = 8


def cases(bits: Bits) -> Iterator[Case]:
    """The grid of one model at one bit width."""
    for (size, length), checkpointing, ranks, padded in itertools.product(BATCHES, (False, True), RANKS, (True, False)):
        yield Case(bits, size, length, checkpointing, ranks, GLOBAL_RANK, padded)


def run(seed: int, wanted: Sequence[str]) -> list[Outcome]:
    """Every case."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models(Path(folder), seed):
            if wanted and model.name not in wanted:
                continue
            for bits in BITS:
                base, shape = load(model, bits, seed)
                found += [outcome(model, base, shape, case, seed + n) for n, case in enumerate(cases(bits))]
                sys.stderr.write(f"{model.name} at {bits} bits done\n")
    return found


def summary(found: Sequence[Outcome]) -> dict[str, Any]:
    """The figures over all cases."""
    errors = [one.error for one in found]
    return {
        "device": platform.processor() or platform.machine(),
        "cases": len(found),
        "mean_abs_error": sum(map(abs, errors)) / len(errors),
        "worst_under": -min(0.0, *errors),
        "worst_over": max(0.0, *errors),
        "with_margin_under": sum((1 + e) * (1 + SAFETY_MARGIN) < 1 for e in errors),
    }


def table(found: Sequence[Outcome]) -> list[str]:
    """A line per model, bits and checkpointing."""
    groups: dict[tuple[str, int, bool], list[float]] = defaultdict(list)
    for one in found:
        groups[one.model, one.case.bits, one.case.checkpointing].append(one.error)
    lines = [
        f"{'model':<18} {'bits':>4} {'checkpointing':>13} {'cases':>5} {'mean |error|':>12} {'least':>7} {'most':>7}"
    ]
    for (model, bits, checkpointing), errors in groups.items():
        mean = sum(map(abs, errors)) / len(errors)
        lines.append(
            f"{model:<18} {bits:>4} {'yes' if checkpointing else 'no':>13} {len(errors):>5} {mean:>12.1%} "
            f"{min(errors):>7.1%} {max(errors):>7.1%}"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the grid and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="*", default=[])
    options = parser.parse_args(arguments)
    quiet_libraries()
    found = run(options.seed, options.models)
    figures = summary(found)
    sys.stdout.write("\n".join([*table(found), "", json.dumps(figures, indent=2), ""]))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
