"""Finished fine-tunings of `benchmarks.contribution`, a line of JSON each, so that a long comparison can go on.

Owns the file, the search for the best learning rate and the figures over seeds. Never trains: how to is handed in.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev

LOWEST_RATE, HIGHEST_RATE = 1e-4, 1.0
"""Learning rates beyond these are not tried: what does not train here trains nowhere."""


@dataclass(frozen=True, slots=True)
class Key:
    """Which fine-tuning; two alike are the same."""

    setting: str
    way: str
    budget: float
    learning_rate: float
    seed: int
    steps: int
    held_out: int


@dataclass(frozen=True, slots=True)
class Row:
    """What came of it. `loss` is infinite where the training's numbers were not finite any more."""

    key: Key
    loss: float
    accuracy: float | None = None
    parameters: int = 0
    seconds: float = 0.0
    ranks: Mapping[str, int] = field(default_factory=dict)


class Rows:
    """Finished ones by key.

    Args:
        path: To go on with, and to append to; None keeps them in memory. A last line that was cut off is passed over.
        run: Does one that is not there.
        told: Told every one that was done now.
    """

    def __init__(self, path: Path | None, run: Callable[[Key], Row], told: Callable[[Row], None]) -> None:
        self._path, self._run, self._told = path, run, told
        text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
        self._rows = {row.key: row for row in _read(text.splitlines())}
        self._cut_off = bool(text) and not text.endswith("\n")

    def __call__(self, key: Key) -> Row:
        """The row of `key`, run only if it was not."""
        if key not in self._rows:
            row = self._run(key)
            self._rows[key] = row
            self._append(row)
            self._told(row)
        return self._rows[key]

    def _append(self, row: Row) -> None:
        if self._path is None:
            return
        line = json.dumps({**asdict(row), "loss": row.loss if math.isfinite(row.loss) else None})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(("\n" if self._cut_off else "") + line + "\n")
        self._cut_off = False


def _read(lines: Iterable[str]) -> Iterable[Row]:
    for line in lines:
        try:
            values = json.loads(line)
            loss = math.inf if values["loss"] is None else float(values["loss"])
            yield Row(**{**values, "loss": loss, "key": Key(**values["key"])})
        except (ValueError, TypeError, KeyError):
            continue


def best_rate(loss: Callable[[float], float], start: float) -> float:
    """The learning rate with the lowest loss, of `start` times powers of 2, with a worse neighbour on either side.

    Climbs from `start`: each `loss(rate)` is asked for once. Of two that are level, the one first tried.
    """
    known = {start: loss(start)}
    while True:
        best = min(known, key=lambda rate: known[rate])
        beside = [rate for rate in (best / 2, best * 2) if LOWEST_RATE <= rate <= HIGHEST_RATE and rate not in known]
        if not beside:
            return best
        for rate in beside:
            known[rate] = loss(rate)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; infinite for a single value, of which nothing is known."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf


@dataclass(frozen=True, slots=True)
class Figures:
    """A way's over the judged seeds, and how far behind another way it is on the same seeds, where that was run."""

    loss: float
    error: float
    behind: float | None = None
    behind_error: float | None = None


def figures(losses: Sequence[float], others: Sequence[float] = ()) -> Figures:
    """Mean and standard error of `losses`, and of how far each lies above that of `others` on the same seed, if any."""
    if not others:
        return Figures(mean(losses), standard_error(losses))
    apart = [own - other for own, other in zip(losses, others, strict=True)]
    return Figures(mean(losses), standard_error(losses), mean(apart), standard_error(apart))
