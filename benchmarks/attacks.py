"""What two hostile silos of ten do to a federated fine-tune, without a defence and with each of them.

    python -m benchmarks.attacks [--seed N] [--json FILE] [--rounds N] [--steps N] [--workers N]

Ten silos share out E2E (meaning representations to English) and fine-tune TinyStories-656K, with the agent's own
training code; the updates go through the production gate, closing gate and aggregation, in one process per worker.
Printed is the final loss in nats per target token on examples that nobody trained on: a row per attack, a column per
defence. Both the model and the data lie beside the project in `../shared/data` (or where `--data` says) and are not
part of it; where they are missing this benchmark says so and ends with exit code 2.

Attacks, by silos 0 and 1, in every round: `sign-flipped` mirrors both factors at what they were; `scaled x100`
multiplies the change of B; `random x5` replaces it by noise of five times its norm; `label-flipped` trains on the
targets of other examples, words reversed; `copies` sends silo 2's update; `flipped x5` is five times the opposite,
which no norm gives away. Defences: `none` is the mean as it is; `clip` and `norm gate` are the mean with that alone, as
by default; the rules stand alone, without clip and gate, against 2 attackers; `defaults` is what a job gets that says
nothing.

JSON: `defences{name: {attack: loss}}`, `refused{name: {attack: updates refused by the closing gate}}`, `start_loss`,
`seed`, `rounds`, `steps`, `seconds`. A loss that is not finite is written as null.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.attack_kinds import ATTACKS
from benchmarks.attack_rounds import DEFENCES, Cell, Federation, Outcome, prepare
from benchmarks.attack_silos import Effort

DATA = Path(__file__).parents[2] / "shared" / "data"
_NEEDED = ("models/TinyStories-656K", "e2e/train.jsonl", "e2e/dev.jsonl")
EXIT_NO_DATA = 2


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line asked for."""

    data: Path
    seed: int
    effort: Effort
    workers: int


def run_all(given: Given, folder: Path) -> tuple[float, list[tuple[Cell, Outcome]]]:
    """Every attack against every defence; the loss of the base, and the outcomes."""
    start_loss = prepare(given.data, folder, given.effort, given.seed)
    cells = [Cell(defence, attack) for defence in DEFENCES for attack in ATTACKS]
    context = multiprocessing.get_context("spawn")
    arguments = (given.data, folder, given.effort, given.seed)
    with ProcessPoolExecutor(given.workers, context, initializer=_begin, initargs=arguments) as pool:
        outcomes = []
        for cell, outcome in zip(cells, pool.map(_run, cells), strict=True):
            print(f"{cell.attack:14} {cell.defence:13} {outcome.loss:10.4f}", file=sys.stderr, flush=True)
            outcomes.append((cell, outcome))
    return start_loss, outcomes


_federation: list[Federation] = []
"""A worker's own, loaded once."""


def _begin(data: Path, folder: Path, effort: Effort, seed: int) -> None:
    _federation.append(Federation(data, folder, effort, seed))


def _run(cell: Cell) -> Outcome:
    return _federation[0].run(cell)


def table(losses: Mapping[str, Mapping[str, float]]) -> str:
    """Attacks down, defences across."""
    lines = [f"{'attack':14}" + "".join(f"{defence:>14}" for defence in DEFENCES)]
    for attack in ATTACKS:
        values = (losses[defence][attack] for defence in DEFENCES)
        lines.append(
            f"{attack:14}" + "".join(f"{value:14.3f}" if value < 1e4 else f"{'> 10000':>14}" for value in values)
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit code."""
    parser = argparse.ArgumentParser(description="two hostile silos of ten, against each defence")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--rounds", type=int, default=Effort().rounds)
    parser.add_argument("--steps", type=int, default=Effort().steps, help="of a silo in a round")
    parser.add_argument("--workers", type=int, default=min(2, len(os.sched_getaffinity(0))))
    parser.add_argument("--data", type=Path, default=DATA, help="where models/ and e2e/ lie")
    asked = parser.parse_args(arguments)
    missing = [name for name in _NEEDED if not (asked.data / name).exists()]
    if missing:
        print(f"{asked.data} has no {', '.join(missing)}: name the folder that has them with --data", file=sys.stderr)
        return EXIT_NO_DATA
    began = time.monotonic()
    given = Given(asked.data, asked.seed, Effort(rounds=asked.rounds, steps=asked.steps), asked.workers)
    with tempfile.TemporaryDirectory() as name:
        start_loss, outcomes = run_all(given, Path(name))
    losses: dict[str, dict[str, float]] = {defence: {} for defence in DEFENCES}
    refused: dict[str, dict[str, int]] = {defence: {} for defence in DEFENCES}
    for cell, outcome in outcomes:
        losses[cell.defence][cell.attack] = outcome.loss
        refused[cell.defence][cell.attack] = outcome.refused
    print(table(losses))
    print(f"before training {start_loss:.3f}; seed {given.seed}, {time.monotonic() - began:.0f} s")
    if asked.json:
        known = {d: {a: x if math.isfinite(x) else None for a, x in of.items()} for d, of in losses.items()}
        figures = {"defences": known, "refused": refused, "start_loss": start_loss, "seed": given.seed}
        figures |= asdict(given.effort) | {"seconds": time.monotonic() - began}
        asked.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
