"""Which weights and ranks are worth a budget of trainable parameters, by each way to choose them.

    OMP_NUM_THREADS=1 python -m benchmarks.contribution [--setting e2e] [--seed N] [--seeds 5] [--tuning-seeds 1]
        [--budgets 0.125 0.25 0.5] [--ways NAME ...] [--steps N] [--held-out 256] [--start-rate 2e-2]
        [--rows FILE.jsonl] [--json FILE] [--data ../shared/data] [--quick]

A real pretrained model is fine-tuned in one process with adapters of at most the same number of trainable parameters, a
share (`--budgets`) of all-linear at rank 8; a classification's head is trained in all of them. Weights and ranks are
chosen by the contribution that the agents' own code measures, by either method, and the planner's own knapsack; or are
those of all linear layers, of queries and values alone, both as evenly as whole ranks allow, or drawn at random.
`sketch-later` scores where a short training has brought the model, as a refresh does; ways that end in `-even` have
the same ranks, but weights of all ranks move alike (see `contribution_bench`). `loss` is that of held-out examples
after the same number of steps on the same examples. Every way has the learning rate that is best for it at the
budget: from `--start-rate` it is doubled and halved until both neighbours are worse, on seeds of their own (from
`TUNING_SEED`), which are never among those that are judged.

With `--rows`, every finished fine-tuning is appended there, and one that is there already is not run again: a
comparison that was broken off goes on, and two processes with different ways or budgets can run at once, each with its
own file. `--quick` is a minute's run, whose figures say nothing.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from benchmarks.contribution_bench import WAYS, Bench, Effort
from benchmarks.contribution_data import SETTINGS, MissingError, read_material
from benchmarks.contribution_rows import Figures, Key, Row, Rows, best_rate, figures
from fedpipe_agent.train.errors import ModelError

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
EXIT_NO_DATA = 3
TUNING_SEED = 100_000
BUDGETS = (0.125, 0.25, 0.5)
COMPARED = "all-linear"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is compared. `seeds` are judged, `tuning_seeds` are not."""

    setting: str
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    ways: tuple[str, ...]
    steps: int
    held_out: int
    start_rate: float

    def key(self, way: str, budget: float, rate: float, seed: int) -> Key:
        """Of one fine-tuning."""
        return Key(self.setting, way, budget, rate, seed, self.steps, self.held_out)


@dataclass(frozen=True, slots=True)
class Judged:
    """A way at a budget: the rows of the judged seeds, at its best learning rate."""

    way: str
    budget: float
    learning_rate: float
    rows: tuple[Row, ...]


def run_on(bench: Bench, key: Key) -> Row:
    """Do one fine-tuning; one whose numbers are not finite any more has an infinite loss."""
    began = time.monotonic()
    try:
        found = bench.run(key.way, key.budget, key.learning_rate, key.seed)
    except ModelError:
        return Row(key, math.inf, seconds=time.monotonic() - began)
    seconds = round(time.monotonic() - began, 1)
    return Row(key, found.loss, found.accuracy, found.parameters, seconds, found.ranks)


def judge(rows: Rows, asked: Asked, way: str, budget: float) -> Judged:
    """Find a way's learning rate on the tuning seeds, and run it on the judged ones."""

    def tuned(rate: float) -> float:
        return mean(rows(asked.key(way, budget, rate, seed)).loss for seed in asked.tuning_seeds)

    rate = best_rate(tuned, asked.start_rate) if asked.tuning_seeds else asked.start_rate
    return Judged(way, budget, rate, tuple(rows(asked.key(way, budget, rate, seed)) for seed in asked.seeds))


def compared(found: Sequence[Judged]) -> list[tuple[Judged, Figures]]:
    """Every way with its figures, and how far it is behind all-linear at the same budget where that was run too."""
    even = {each.budget: [row.loss for row in each.rows] for each in found if each.way == COMPARED}
    return [(each, figures([row.loss for row in each.rows], even.get(each.budget, ()))) for each in found]


def table(found: Sequence[Judged]) -> str:
    """A line per budget and way: mean loss, how far it lies above all-linear's, accuracy, learning rate."""
    head = f"{'budget':>6}  {'way':16}{'loss':>18}{'above ' + COMPARED:>22}{'accuracy':>10}{'rate':>9}"
    lines = [head]
    for each, of in compared(found):
        accuracies = [row.accuracy for row in each.rows if row.accuracy is not None]
        right = f"{mean(accuracies):10.3f}" if accuracies else f"{'':10}"
        own = f"{of.loss:.4f} ± {of.error:.4f}"
        apart = "" if of.behind is None else f"{of.behind:+.4f} ± {of.behind_error:.4f}"
        lines.append(f"{each.budget:6.1%}  {each.way:16}{own:>18}{apart:>22}{right}{each.learning_rate:9.2g}")
    return "\n".join([*lines, "means and their standard errors over the seeds; differences are of the same seed"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="which weights and ranks are worth a budget of parameters")
    parser.add_argument("--setting", choices=sorted(SETTINGS), default="e2e")
    parser.add_argument("--seed", type=int, default=0, help="the first of the judged seeds")
    parser.add_argument("--seeds", type=int, default=5, help="how many are judged")
    parser.add_argument("--tuning-seeds", type=int, default=1, help="how many find the rate; 0: the first is it")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="of all-linear at rank 8")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=WAYS)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--held-out", type=int, default=256, help="examples that a loss is measured on")
    parser.add_argument("--start-rate", type=float, default=2e-2, help="the learning rate tried first")
    parser.add_argument("--rows", type=Path, help="finished fine-tunings: to go on with, and appended to")
    parser.add_argument("--data", type=Path, default=DATA, help="where models/, e2e/ and banking77/ lie")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="few steps, two seeds, one budget, one learning rate")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit code."""
    given = _parser().parse_args(arguments)
    setting = SETTINGS[given.setting]
    try:
        material = read_material(setting, given.data)
    except MissingError as error:
        print(error, file=sys.stderr)
        return EXIT_NO_DATA
    seeds, tuning = (2, 0) if given.quick else (given.seeds, given.tuning_seeds)
    asked = Asked(
        setting=given.setting,
        seeds=tuple(range(given.seed, given.seed + seeds)),
        tuning_seeds=tuple(range(TUNING_SEED, TUNING_SEED + tuning)),
        ways=tuple(given.ways),
        steps=4 if given.quick else given.steps,
        held_out=32 if given.quick else given.held_out,
        start_rate=given.start_rate,
    )
    bench = Bench(setting, material, Effort(asked.steps, asked.held_out))
    rows = Rows(given.rows, lambda key: run_on(bench, key), _tell)
    budgets = given.budgets[:1] if given.quick else given.budgets
    found = [judge(rows, asked, way, budget) for budget in budgets for way in asked.ways]
    print(table(found))
    print(f"{setting.model}, {asked.steps} steps of {setting.batch_size}, {len(asked.seeds)} seeds")
    if given.json:
        given.json.write_text(json.dumps(_figures(asked, found), indent=2) + "\n", encoding="utf-8")
    return 0


def _tell(row: Row) -> None:
    key = row.key
    said = f"{key.budget:6.1%}  {key.way:16} seed {key.seed:<7} at {key.learning_rate:<8.3g} {row.loss:.4f}"
    print(f"{said}  {row.seconds:.0f} s", file=sys.stderr, flush=True)


def _figures(asked: Asked, found: Sequence[Judged]) -> dict[str, object]:
    def of(each: Judged, its: Figures) -> dict[str, object]:
        return {
            "way": each.way,
            "budget": each.budget,
            "learning_rate": each.learning_rate,
            **asdict(its),
            "losses": [row.loss for row in each.rows],
            "accuracies": [row.accuracy for row in each.rows],
            "parameters": [row.parameters for row in each.rows],
            "ranks": [row.ranks for row in each.rows],
        }

    return {"asked": asdict(asked), "ways": [of(*each) for each in compared(found)]}


if __name__ == "__main__":
    sys.exit(main())
