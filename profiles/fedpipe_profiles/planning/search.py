"""Find the best choice for one device and deadline: branch and bound over options and ranges of steps.

For a fixed option and a fixed number of steps, the ranks are a knapsack (`relax.py`, `milp.py`). Bounds that cost
little for all of them at once say which to look at closely and when to stop, so that few are looked at and fewer
solved.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from fedpipe_profiles.planning.frontier import Floats, Integers
from fedpipe_profiles.planning.milp import Mask
from fedpipe_profiles.planning.option import Budget, Option
from fedpipe_profiles.planning.options import Prepared
from fedpipe_profiles.planning.problem import Increments
from fedpipe_profiles.planning.relax import Limits, choose, improve, limits, relax
from fedpipe_profiles.planning.table import look, step_ranges

GAP = 2e-4
"""A choice this close to its proved bound, relatively, is good enough."""

SOLVES = 24
"""How many knapsacks of one device are solved exactly; after that the greedy has to do, and `Choice.bound` says so."""

_MOST_TRIES = 400
_NOTHING = 1e-12
_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Choice:
    """How a device trains: `bound` is what no choice can be better than."""

    option: Option
    ranks: dict[str, int]
    parameters: int
    rank_sum: int
    steps: int
    examples: int
    captured: float
    objective: float
    bound: float


def best_choice(
    increments: Increments,
    prepared: Prepared,
    budget: Budget,
    *,
    gap: float = GAP,
    solves: int = SOLVES,
) -> Choice | None:
    """The choice that maximises (examples / wanted) * captured contribution * fidelity.

    Among equals, the option that comes first. With `solves` 0 only the greedy is used. Where any choice trains the
    device's least share of examples, only such choices count, and the bound is of these.

    Returns:
        The choice, or None if no increment of any option fits.
    """
    for least in dict.fromkeys((prepared.least, 0)):
        search = _Search(increments, prepared, budget, least)
        search.run(gap, solves)
        found = search.result()
        if found is not None:
            return found
    return None


class _Search:
    """Bounds of all candidates, and the best choice so far. A candidate is an option with a range of steps."""

    def __init__(self, increments: Increments, prepared: Prepared, budget: Budget, least: int) -> None:
        self.increments, self.frontier = increments, increments.frontier
        self.options, self.table, self.wanted = prepared.options, prepared.table, prepared.wanted
        self.budget, self.least = budget, least
        self.best: Choice | None = None
        self.unproved = 0.0
        self.held = self.table.most_parameters(budget, self.frontier.widest)
        self.memory: set[int] = set()
        self.timeless: set[int] = set()
        batches = [option.setting.batch_size for option in self.options]
        ranges = [step_ranges(-(-self.wanted // batch), max(1, -(-least // batch))) for batch in batches]
        option = np.repeat(np.arange(len(batches)), [len(first) for first, _ in ranges])
        self._set(option, np.concatenate([r[0] for r in ranges]), np.concatenate([r[1] for r in ranges]))
        self._begin()

    def _set(self, option: Integers, first: Floats, last: Floats) -> None:
        self.option, self.first, self.last = option, first, last
        self.share, self.gain = self._bounds(option, first, last)

    def _bounds(self, option: Integers, first: Floats, last: Floats) -> tuple[Floats, Floats]:
        """The most share of the wanted examples, times fidelity, and a bound of the gain: few steps leave more time."""
        parameters = np.minimum(self.table.parameters_in_time(option, first, self.budget.time_s), self.held[option])
        by_size = self.frontier.by_size
        gain = np.interp(parameters, by_size.spent, by_size.most)
        gain = np.where(parameters < self.increments.first[0] * (1 - 1e-12), -np.inf, gain)
        share = np.minimum(1.0, last * self.table.batch[option] / self.wanted) * self.table.fidelity[option]
        return share, gain

    def _begin(self) -> None:
        """Start from what a quick look finds."""
        found = look(self.frontier, self.table, self.budget, (self.budget.time_s,), self.wanted, self.least)[0]
        if found is not None and found.examples >= self.least:
            chosen = np.zeros(len(self.frontier.gains), dtype=np.bool_)
            chosen[self.frontier.by_size.order[: found.count]] = True
            self._keep(self._choice(self.options[found.option], chosen))

    def _keep(self, choice: Choice | None) -> None:
        if choice and choice.examples >= self.least and (not self.best or choice.objective > self.best.objective):
            self.best = choice

    def run(self, gap: float, solves: int) -> None:
        """Look closer at the most promising candidate until none can be better than the best by more than `gap`."""
        for _ in range(_MOST_TRIES + solves):
            value = self.share * self.gain
            place = int(np.argmax(value))
            reached = self.best.objective if self.best else 0.0
            if value[place] <= max(reached * (1 + gap), _NOTHING):
                break
            option = int(self.option[place])
            if option not in self.memory:
                self._bound_memory(option)
            elif self.last[place] > self.first[place]:
                self._split(option, reached * (1 + gap))
            else:
                solves -= self._try(place, gap, allowed=solves > 0)
        self.unproved = max(self.unproved, float((self.share * self.gain).max()))

    def _bound_memory(self, option: int) -> None:
        """Bound an option by each of its memory rows, whatever the number of steps."""
        rows = self._limits(option, math.inf)
        bound = -np.inf
        if rows is not None:
            bound = min(
                (
                    self.frontier.direction(float(a), float(c)).bound(float(budget))
                    for a, c, budget in zip(rows.a, rows.c, rows.budgets, strict=True)
                ),
                default=np.inf,
            )
        self.memory.add(option)
        mine = self.option == option
        self.gain[mine] = np.minimum(self.gain[mine], bound)

    def _split(self, option: int, promising: float) -> None:
        """Part the ranges of an option that may still hold something better."""
        wide = (self.option == option) & (self.last > self.first) & (self.share * self.gain > promising)
        parts = [
            step_ranges(int(last), int(first)) for first, last in zip(self.first[wide], self.last[wide], strict=True)
        ]
        first, last = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
        of = np.full(len(first), option)
        share, gain = self._bounds(of, first, last)
        above = np.repeat(self.gain[wide], [len(part[0]) for part in parts])
        gain = np.minimum(gain, above)
        self.option = np.concatenate((self.option[~wide], of))
        self.first = np.concatenate((self.first[~wide], first))
        self.last = np.concatenate((self.last[~wide], last))
        self.share = np.concatenate((self.share[~wide], share))
        self.gain = np.concatenate((self.gain[~wide], gain))

    def _try(self, place: int, gap: float, *, allowed: bool) -> bool:
        """Solve one candidate and lower the bounds that this proves; says whether HiGHS was needed."""
        option, steps = int(self.option[place]), float(self.first[place])
        rows, mine = self._limits(option, steps), self.option == option
        # More steps leave less time for ranks: what bounds the gain at this number bounds it at any larger one.
        alike = mine & (self.first >= steps)
        if rows is None:
            self.gain[alike] = -np.inf
            return False
        endless = self._timeless(option, rows)
        if endless is not None:
            self.timeless.add(option)
            rows, alike = endless, mine
        chosen, bound, exact = self._solve(rows, option, float(self.share[place]), gap, allowed=allowed)
        choice = self._choice(self.options[option], chosen)
        self._keep(choice)
        self.gain[alike] = np.minimum(self.gain[alike], bound)
        # up to the number of steps that this choice really allows there is nothing left to find
        done = alike & (self.last <= (choice.steps if choice else 0))
        done[place] |= endless is None
        if done.any():
            self.unproved = max(self.unproved, float((self.share * self.gain)[done].max()))
            self.gain[done] = -np.inf
        return exact

    def _timeless(self, option: int, rows: Limits) -> Limits | None:
        """The limits without time and link, if these are slack; asked once, because what it proves is for all steps."""
        if option in self.timeless:
            return None
        endless = self._limits(option, math.inf)
        if endless is None:
            return None
        relaxed = relax(self.frontier, endless)
        parameters, ranks = relaxed.direction.cut(relaxed.budget)
        return endless if (rows.a * parameters + rows.c * ranks <= rows.budgets * (1 + _SLACK)).all() else None

    def _solve(self, rows: Limits, option: int, share: float, gap: float, *, allowed: bool) -> tuple[Mask, float, bool]:
        """A choice within these limits, a bound of the gain of all of them, and whether HiGHS was needed."""
        relaxed = relax(self.frontier, rows)
        chosen = choose(self.frontier, rows, relaxed.direction)
        self._keep(self._choice(self.options[option], chosen))
        reached = self.best.objective if self.best else 0.0
        # what cannot beat the best by more than the gap needs no exact solution
        if not allowed or share * relaxed.bound <= reached * (1 + gap):
            return chosen, relaxed.bound, False
        chosen, bound = improve(self.frontier, rows, relaxed, chosen, gap)
        return chosen, bound, True

    def _limits(self, option: int, steps: float) -> Limits | None:
        """What limits the ranks of an option: its memory, and unless steps are endless, time and link."""
        table, budget = self.table, self.budget
        a, c = table.row_per_parameter[:, option], table.row_per_rank[:, option]
        room = budget.memory_bytes - table.row_bytes[:, option]
        if math.isfinite(steps):
            timely = table.parameters_in_time(np.array([option]), np.array([steps]), budget.time_s)[0]
            most = min(float(timely), float((budget.up_bytes - table.up_bytes[option]) / 4))
            a, c, room = np.append(a, 1.0), np.append(c, 0.0), np.append(room, most)
        return limits(a, c, room)

    def _choice(self, option: Option, chosen: Mask) -> Choice | None:
        """The choice of these increments, with as many steps as then fit."""
        items = self.increments
        captured = float(items.gains @ chosen)
        if captured <= 0:
            return None
        parameters = float(items.parameters @ chosen)
        room_s = option.room_s(parameters, self.budget.time_s)
        if room_s < 0:
            return None
        step = option.step_s + option.step_per_parameter_s * parameters
        batch = option.setting.batch_size
        most = -(-self.wanted // batch)
        steps = most if step * most <= room_s * (1 + 1e-9) else math.floor(room_s / step * (1 + 1e-9) + 1e-9)
        if steps < 1:
            return None
        examples = min(self.wanted, steps * batch)
        counts = np.bincount(items.weight[chosen], items.ranks[chosen], len(items.names))
        ranks = {name: int(count) for name, count in zip(items.names, counts, strict=True)}
        objective = examples / self.wanted * captured * option.fidelity
        total = sum(ranks.values())
        return Choice(option, ranks, int(parameters), total, steps, examples, captured, objective, objective)

    def result(self) -> Choice | None:
        """The best choice with the bound that was proved for it."""
        if self.best is None:
            return None
        return replace(self.best, bound=max(self.best.objective, self.unproved))
