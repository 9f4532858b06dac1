"""How far the predicted peak of a training step is from what the allocator really held, over a grid of cases.

    python -m benchmarks.memory [--seed N] [--json FILE] [--models NAME ...] [--device DEVICE]
        [--no-processes] [--no-meta]

Every case is a step of the trainer's own code, on a processor under torch's memory profiler, on a GPU by its
allocator: models x bits x batch and sequence x checkpointing x ranks x with and without padding. No coefficient is
fitted: the count alone is compared. `mean_abs_error`, `worst_under` and `worst_over` are shares of the true peak;
`too_low_with_margin` counts the cases in which the true peak is above the prediction with the planner's safety
margin. `held_out` has the same figures for the families of which nothing was ever looked at but that error.
`saved_errors` compares the bytes that autograd saves of large models (see `memory_meta.py`), `rss_mean_abs_error`
whole processes (`memory_process.py`).
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

import torch

from benchmarks.memory_meta import MODELS, saved_by_step
from benchmarks.memory_models import Model, models
from benchmarks.memory_process import lines, residents
from benchmarks.memory_steps import Case, Outcome, load, outcome
from fedpipe_agent.train.base import quiet_libraries
from fedpipe_profiles.costs.memory import SAFETY_MARGIN
from fedpipe_profiles.costs.step import DeviceKind
from fedpipe_profiles.device import Bits

BITS: tuple[Bits, ...] = (32, 16, 8, 4)
BATCHES = ((4, 64), (8, 128))
RANKS = ("half", "mixed")
GLOBAL_RANK = 8
WORST = 5
"""So many of the cases that are farthest off are printed with their terms."""


def cases(model: Model, bits: Bits) -> Iterator[Case]:
    """The grid of one model at one bit width; one size only, padded or not, where it is `brief`."""
    chosen = itertools.cycle((*RANKS, *reversed(RANKS)))
    for (size, length), checkpointing, padded in itertools.product(BATCHES, (False, True), (True, False)):
        if model.brief and ((size, length) != BATCHES[-1] or padded != (checkpointing == (bits in BITS[::2]))):
            continue
        yield Case(bits, size, length, checkpointing, next(chosen), GLOBAL_RANK, padded)


def run(seed: int, wanted: Sequence[str], device: DeviceKind = "cpu") -> list[Outcome]:
    """Every case."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models(Path(folder), seed, wanted):
            own = []
            for bits in BITS:
                base, shape = load(model, bits, seed, device)
                own += [outcome(model, base, shape, case, seed + n) for n, case in enumerate(cases(model, bits))]
            sys.stderr.write("\n".join([*table(own), ""]))
            found += own
    return found


def errors_of(found: Sequence[Outcome]) -> dict[str, Any]:
    """The figures over some cases; of none, only their number."""
    errors = [one.error for one in found]
    if not errors:
        return {"cases": 0}
    return {
        "cases": len(found),
        "mean_abs_error": sum(map(abs, errors)) / len(errors),
        "worst_under": -min(0.0, *errors),
        "worst_over": max(0.0, *errors),
        "too_low_with_margin": sum((1 + e) * (1 + SAFETY_MARGIN) < 1 for e in errors),
    }


def summary(found: Sequence[Outcome], kind: DeviceKind = "cpu") -> dict[str, Any]:
    """The figures over all cases, and over those of families that are held out."""
    device = torch.cuda.get_device_name() if kind == "cuda" else platform.processor() or platform.machine()
    return {"device": device, **errors_of(found), "held_out": errors_of([o for o in found if o.model.held_out])}


def worst(found: Sequence[Outcome]) -> list[str]:
    """The cases that are farthest off, with their terms."""
    lines = []
    for one in sorted(found, key=lambda o: -abs(o.error))[:WORST]:
        lines.append(f"{one.model.name}, {one.case}: {one.error:+.1%} of {one.true_bytes} bytes")
        lines += [f"    {line}" for line in one.predicted.lines()]
    return lines


def table(found: Sequence[Outcome]) -> list[str]:
    """A line per model, bits and checkpointing."""
    groups: dict[tuple[str, int, bool], list[float]] = defaultdict(list)
    for one in found:
        groups[one.model.name, one.case.bits, one.case.checkpointing].append(one.error)
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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-processes", action="store_true", help="leave out the resident sets of whole processes")
    parser.add_argument("--no-meta", action="store_true", help="leave out what large models save on the meta device")
    options = parser.parse_args(arguments)
    quiet_libraries()
    figures = summary(found := run(options.seed, options.models, options.device), options.device)
    if not options.no_meta:
        saved = [saved_by_step(name) for name in MODELS]
        figures["saved_errors"] = {one.model: one.error for one in saved}
    if not options.no_processes:
        held = residents(options.seed)
        sys.stdout.write("\n".join([*lines(held), ""]))
        figures["rss_cases"] = len(held)
        figures["rss_mean_abs_error"] = sum(abs(one.error) for one in held) / len(held)
    sys.stdout.write("\n".join([*table(found), "", *worst(found), "", json.dumps(figures, indent=2), ""]))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
