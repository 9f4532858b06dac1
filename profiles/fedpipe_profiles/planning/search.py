"""Find the best choice for one device and deadline: branch and bound over options and numbers of steps.

For a fixed option and a fixed number of steps, the ranks are a knapsack (`milp.py`). A cheap bound for all of them at
once says which to solve first and when to stop, so that most are never solved.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from fedpipe_profiles.planning.milp import Knapsack, Mask, fractional_bound, greedy, solve
from fedpipe_profiles.planning.options import Budget, Option
from fedpipe_profiles.planning.problem import Floats, Increments

GAP = 2e-4
"""A choice this close to its proved bound, relatively, is good enough."""

SOLVES = 24
"""How many knapsacks of one device are solved exactly; after that the greedy has to do, and `Choice.bound` says so."""

_MOST_STEP_COUNTS = 1024
_MOST_TRIES = 200


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
    options: tuple[Option, ...],
    budget: Budget,
    wanted: int,
    *,
    gap: float = GAP,
    solves: int = SOLVES,
) -> Choice | None:
    """The choice that maximises (examples / wanted) * captured contribution * fidelity.

    Among equals, the option that comes first. With `solves` 0 only the greedy is used.

    Returns:
        The choice, or None if no increment of any option fits.
    """
    search = _Search(increments, options, budget, wanted)
    search.run(gap, solves)
    return search.result()


class _Search:
    """Bounds of all candidates, and the best choice so far."""

    def __init__(self, increments: Increments, options: tuple[Option, ...], budget: Budget, wanted: int) -> None:
        self.increments = increments
        self.options = options
        self.budget = budget
        self.wanted = wanted
        self.best: Choice | None = None
        self.unproved = 0.0
        parts = [self._candidates(index) for index in range(len(options))]
        self.option = np.concatenate([np.full(len(p[0]), i) for i, p in enumerate(parts)])
        self.steps = np.concatenate([p[0] for p in parts])
        self.share = np.concatenate([p[1] for p in parts])
        self.gain = np.concatenate([p[2] for p in parts])

    def _candidates(self, index: int) -> tuple[Floats, Floats, Floats]:
        """Step counts of an option, their share of the wanted examples times fidelity, and a bound of the gain."""
        option, items, budget = self.options[index], self.increments, self.budget
        batch = option.setting.batch_size
        steps = _step_counts(math.ceil(self.wanted / batch))
        with np.errstate(divide="ignore", invalid="ignore"):
            room_s = budget.time_s - option.fixed_s - steps * option.step_s
            each_s = steps * option.step_per_parameter_s + option.up_per_parameter_s
            parameters = np.where(each_s > 0, room_s / each_s, np.where(room_s >= 0, np.inf, -1.0))
        parameters = np.minimum(parameters, (budget.up_bytes - option.up_bytes) / 4)
        by_size = fractional_bound(items.gains, items.parameters, parameters)
        memory = option.memory_per_parameter * items.parameters + option.memory_per_rank * items.ranks
        room = np.array([budget.memory_bytes - option.memory_bytes])
        gain = np.minimum(by_size, fractional_bound(items.gains, memory, room))
        share = np.minimum(1.0, steps * batch / self.wanted) * option.fidelity
        return steps, share, gain

    def run(self, gap: float, solves: int) -> None:
        """Take the most promising candidate until none can be better than the best by more than `gap`."""
        for _ in range(_MOST_TRIES + solves):
            value = self.share * self.gain
            place = int(np.argmax(value))
            reached = self.best.objective if self.best else 0.0
            if value[place] <= max(reached * (1 + gap), 1e-12):
                return
            exact = self._try(place, gap, allowed=solves > 0)
            solves -= exact
        self.unproved = max(self.unproved, float((self.share * self.gain).max()))

    def _try(self, place: int, gap: float, *, allowed: bool) -> bool:
        """Solve one candidate and lower the bounds that this proves; says whether HiGHS was needed."""
        option = self.options[self.option[place]]
        problem = self._knapsack(option, float(self.steps[place]))
        chosen, bound = greedy(problem), float(self.gain[place])
        exact = allowed and float(problem.gains @ chosen) < bound * (1 - gap)
        if exact:
            solution = solve(problem)
            chosen, bound = solution.chosen, min(bound, solution.bound)
        choice = self._choice(option, chosen)
        if choice and (self.best is None or choice.objective > self.best.objective):
            self.best = choice
        # More steps leave less time for ranks, so the gain at this number of steps bounds the gain at any larger one;
        # up to the number of steps that this choice really allows there is nothing left to find.
        alike = (self.option == self.option[place]) & (self.steps >= self.steps[place])
        self.gain[alike] = np.minimum(self.gain[alike], bound)
        done = alike & (self.steps <= (choice.steps if choice else self.steps[place]))
        self.unproved = max(self.unproved, float((self.share * self.gain)[done].max()))
        self.gain[done] = -np.inf
        return exact

    def _knapsack(self, option: Option, steps: float) -> Knapsack:
        items, budget = self.increments, self.budget
        memory = option.memory_per_parameter * items.parameters + option.memory_per_rank * items.ranks
        each_s = steps * option.step_per_parameter_s + option.up_per_parameter_s
        budgets = np.array(
            [
                budget.memory_bytes - option.memory_bytes,
                budget.time_s - option.fixed_s - steps * option.step_s,
                budget.up_bytes - option.up_bytes,
            ]
        )
        costs = np.stack((memory, each_s * items.parameters, 4 * items.parameters))
        # HiGHS and the greedy divide by budgets: one that is endless becomes one that everything fits
        return Knapsack(items.gains, costs, np.minimum(budgets, costs.sum(axis=1) + 1), items.previous)

    def _choice(self, option: Option, chosen: Mask) -> Choice | None:
        """The choice of these increments, with as many steps as then fit."""
        items = self.increments
        captured = float(items.gains @ chosen)
        if captured <= 0:
            return None
        parameters = float(items.parameters @ chosen)
        room_s = self.budget.time_s - option.round_s(0, parameters)
        if room_s < 0:
            return None
        step = option.step_s + option.step_per_parameter_s * parameters
        batch = option.setting.batch_size
        most = math.ceil(self.wanted / batch)
        steps = most if step * most <= room_s * (1 + 1e-9) else math.floor(room_s / step + 1e-9)
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
        open_ = float((self.share * self.gain).max())
        return replace(self.best, bound=max(self.best.objective, self.unproved, open_))


def _step_counts(most: int) -> Floats:
    """All numbers of steps from 1 to `most`, thinned out evenly in ratio where there are very many."""
    if most <= _MOST_STEP_COUNTS:
        return np.arange(1, most + 1, dtype=np.float64)
    return np.unique(np.geomspace(1, most, _MOST_STEP_COUNTS).round())
