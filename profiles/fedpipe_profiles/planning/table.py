"""A device's options as arrays, and a quick look at what the best of them reaches: for many deadlines at once.

The look tries some prefixes of the increments in order of gain per parameter. What it finds can be trained; it is not
the best. The search starts from it, the deadline is chosen by it, and what bounds a plan is found by it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedpipe_profiles.plan import EVALUATION_PART
from fedpipe_profiles.planning import evaluating
from fedpipe_profiles.planning.frontier import Floats, Frontier, Integers
from fedpipe_profiles.planning.option import Budget, Option

Resource = Literal["memory", "time", "link"]

_MOST_STEP_COUNTS = 48


@dataclass(frozen=True, slots=True)
class OptionTable:
    """Columns `(O,)`, named as in `Option`, with the memory rows `(J, O)`: fixed bytes, per parameter, per rank.

    `transfer_s` does not count the adapters' upload.
    """

    batch: Floats
    fidelity: Floats
    step_s: Floats
    step_per_parameter_s: Floats
    transfer_s: Floats
    fixed_s: Floats
    evaluate_s: Floats
    evaluate_batch_s: Floats
    up_per_parameter_s: Floats
    up_bytes: Floats
    row_bytes: Floats
    row_per_parameter: Floats
    row_per_rank: Floats

    def most_parameters(self, budget: Budget, widest: float) -> Floats:
        """Parameters `(O,)` that memory and link can hold at most; negative where not even the fixed parts fit.

        A rank has at most `widest` parameters, so that so many parameters have some ranks at least.
        """
        room = budget.memory_bytes - self.row_bytes
        each = self.row_per_parameter + self.row_per_rank / widest
        held: Floats = _quotient(room, each).min(axis=0)
        sent: Floats = (budget.up_bytes - self.up_bytes) / 4
        return np.minimum(held, sent)

    def parameters_in_time(self, option: Integers, steps: Floats, time_s: float) -> Floats:
        """The most parameters with which so many steps of these options fit; negative where none do."""
        work_s, each_s = steps * self.step_s[option], steps * self.step_per_parameter_s[option]
        full_s, batch_s = self.evaluate_s[option], self.evaluate_batch_s[option]
        fixed_s, sent_s = self.fixed_s[option], self.up_per_parameter_s[option]
        # with all of the evaluation or with a part of it: whichever leaves more
        whole = _quotient(time_s - fixed_s - full_s - work_s, each_s + sent_s)
        room_s = evaluating.room_s(time_s, fixed_s, np.inf, batch_s) - work_s
        return np.maximum(whole, _quotient(room_s, each_s + (1 - EVALUATION_PART) * sent_s))

    def fits(self, budget: Budget, parameters: Floats, ranks: Floats) -> npt.NDArray[np.bool_]:
        """Which options `(O, 1)` hold which sizes `(G,)` in memory and send them within the link's budget: `(O, G)`."""
        memory: Floats = (
            self.row_bytes[:, :, None]
            + self.row_per_parameter[:, :, None] * parameters
            + self.row_per_rank[:, :, None] * ranks
        ).max(axis=0)
        sent = self.up_bytes[:, None] + 4 * parameters
        return np.logical_and(memory <= budget.memory_bytes, sent <= budget.up_bytes)

    def needed_s(self, steps: Floats, parameters: float) -> Floats:
        """The least usable time in which there is room for so many steps of every option, `(O,)`."""
        work_s = steps * (self.step_s + self.step_per_parameter_s * parameters)
        fixed_s = self.fixed_s + self.up_per_parameter_s * parameters
        return evaluating.needed_s(work_s, fixed_s, self.evaluate_s, self.evaluate_batch_s)


@dataclass(frozen=True, slots=True)
class Look:
    """The best of the prefixes that were tried: its option, how many increments, steps, examples and objective."""

    option: int
    count: int
    steps: float
    examples: float
    objective: float


def option_table(options: Sequence[Option]) -> OptionTable:
    """Write the options in columns; where one has fewer memory rows than another, its last is repeated."""
    depth = max(len(option.memory_rows) for option in options)
    rows = [(*o.memory_rows, *[o.memory_rows[-1]] * (depth - len(o.memory_rows))) for o in options]
    columns = np.array(
        [
            (
                o.setting.batch_size,
                o.fidelity,
                o.step_s,
                o.step_per_parameter_s,
                o.down_s + o.up_s,
                o.fixed_s,
                o.evaluate_s,
                o.evaluate_batch_s,
                o.up_per_parameter_s,
                o.up_bytes,
            )
            for o in options
        ],
        dtype=np.float64,
    ).T
    held = np.array([[(r.fixed_bytes, r.per_parameter, r.per_rank) for r in found] for found in rows], dtype=np.float64)
    return OptionTable(*columns, *held.T)


def relaxed(table: OptionTable, budget: Budget, resource: Resource) -> tuple[OptionTable, Budget]:
    """The same problem as if one resource were endless: its memory, its speed, or its link."""
    nothing = np.zeros_like(table.step_s)
    match resource:
        case "memory":
            return table, replace(budget, memory_bytes=math.inf)
        case "time":
            sent_s = table.transfer_s
            still = {"step_s": nothing, "step_per_parameter_s": nothing, "evaluate_s": nothing}
            return replace(table, **still, evaluate_batch_s=nothing, fixed_s=sent_s), budget
        case "link":
            return replace(table, fixed_s=table.fixed_s - table.transfer_s, up_per_parameter_s=nothing), replace(
                budget, up_bytes=math.inf
            )


def look(
    frontier: Frontier, table: OptionTable, budget: Budget, times_s: Sequence[float], wanted: int, least: int = 0
) -> list[Look | None]:
    """The best prefix of the increments for each of several usable times; None where none fits.

    Where something fits that trains `least` examples, only that counts.
    """
    samples = frontier.samples
    places = np.nonzero(table.fits(budget, samples.parameters, samples.ranks))
    option, sample = places
    if not len(option):
        return [None] * len(times_s)
    parameters, batch = samples.parameters[sample], table.batch[option]
    fixed_s = table.fixed_s[option] + table.up_per_parameter_s[option] * parameters
    step_s = table.step_s[option] + table.step_per_parameter_s[option] * parameters
    full_s, batch_s = table.evaluate_s[option], table.evaluate_batch_s[option]
    most = np.ceil(wanted / batch)
    worth = table.fidelity[option] * samples.gained[sample]
    found: list[Look | None] = []
    for time_s in times_s:
        room_s = evaluating.room_s(time_s, fixed_s, full_s, batch_s)
        steps = np.minimum(np.floor(_quotient(room_s, step_s) * (1 + 1e-9)), most)
        examples = np.minimum(steps * batch, wanted)
        reached = examples * worth
        enough = examples >= least
        if least and (enough & (reached > 0)).any():
            reached = np.where(enough, reached, 0.0)
        place = int(np.argmax(reached))
        if reached[place] <= 0:
            found.append(None)
            continue
        found.append(
            Look(
                int(option[place]),
                int(samples.counts[sample[place]]),
                float(steps[place]),
                float(examples[place]),
                float(reached[place]) / wanted,
            )
        )
    return found


@lru_cache(maxsize=256)
def step_ranges(most: int, least: int) -> tuple[Floats, Floats]:
    """Ranges of steps, first and last, from `least` to `most`: single ones, or of equal ratio where there are many."""
    if most - least < _MOST_STEP_COUNTS:
        edges = np.arange(least, most + 2, dtype=np.float64)
    else:
        edges = np.unique(np.geomspace(least, most + 1, _MOST_STEP_COUNTS + 1).round())
    return edges[:-1], edges[1:] - 1


def _quotient(room: Floats, each: Floats) -> Floats:
    """Room over what each takes; endless where each takes nothing, -1 where there is no room."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(room < 0, -1.0, np.where(each > 0, room / each, np.inf))
