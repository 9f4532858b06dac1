"""Choose rank increments under a few linear limits: exactly (HiGHS), from a quick choice (greedy) that it improves.

Owns the knapsack and nothing of what its rows mean.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpipe_profiles.planning.dynamic import best_of_one_row
from fedpipe_profiles.planning.frontier import Floats, Integers
from fedpipe_profiles.planning.quiet import stdout_as_stderr

Mask = npt.NDArray[np.bool_]

_MOST_NODES = 2000
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Knapsack:
    """Maximise the gains of the chosen items, with every row's costs within its budget.

    `gains` is `(K,)`, `costs` is `(rows, K)` and never negative, `budgets` is `(rows,)` and finite; `previous[k]` is
    the item without which `k` may not be chosen, with a smaller index, or -1.
    """

    gains: Floats
    costs: Floats
    budgets: Floats
    previous: Integers

    def holds(self, chosen: Mask) -> bool:
        """Whether a choice keeps all limits and the order."""
        within = self.costs @ chosen <= self.budgets + _TOLERANCE * np.abs(self.budgets)
        ordered = chosen[self.previous] | (self.previous < 0) | ~chosen
        return bool(within.all() and ordered.all())


@dataclass(frozen=True, slots=True)
class Solution:
    """A choice, what it gains, and what no choice can gain more than."""

    chosen: Mask
    gain: float
    bound: float


def greedy(problem: Knapsack) -> Mask:
    """Take items in falling order of gain per share of the tightest budget, then whatever still fits."""
    shares = problem.costs / np.maximum(problem.budgets, 1e-300)[:, None]
    density = problem.gains / np.maximum(shares.max(axis=0), 1e-300)
    for item in np.flatnonzero(problem.previous >= 0):
        density[item] = min(density[item], density[problem.previous[item]])
    order = np.argsort(-density, kind="stable")
    spent = np.cumsum(problem.costs[:, order], axis=1)
    fits = (spent <= problem.budgets[:, None]).all(axis=0)
    prefix = len(order) if fits.all() else int(np.argmin(fits))
    chosen = np.zeros(len(order), dtype=np.bool_)
    chosen[order[:prefix]] = True
    left = problem.budgets - (spent[:, prefix - 1] if prefix else 0.0)
    rest = order[prefix:]
    while len(rest):
        open_ = chosen[problem.previous[rest]] | (problem.previous[rest] < 0)
        usable = open_ & (problem.costs[:, rest] <= left[:, None]).all(axis=0)
        if not usable.any():
            break
        place = int(np.argmax(usable))
        chosen[rest[place]] = True
        left = left - problem.costs[:, rest[place]]
        rest = np.delete(rest, place)
    return chosen


def solve(problem: Knapsack, enough: float = 0.0) -> Solution:
    """Solve exactly by branch and bound; on very hard instances the best found, with the bound that is proved.

    Where a single row can bind, dynamic programming does it, if its costs add up to few different sums. With `enough`,
    what gains less than the best by no more than that will do.

    HiGHS keeps a row to a relative 1e-6 only. Where its choice is over a budget by that much, it is asked again with
    budgets smaller by 1e-5.
    """
    binding = np.flatnonzero(problem.costs.sum(axis=1) > problem.budgets)
    if len(binding) == 1:
        row = int(binding[0])
        found = best_of_one_row(problem.gains, problem.costs[row], float(problem.budgets[row]), problem.previous)
        if found is not None:
            gain = float(problem.gains @ found)
            return Solution(found, gain, gain)
    incumbent = greedy(problem)
    gain = float(problem.gains @ incumbent)
    chosen, bound = _highs(problem, 1.0, enough)
    if chosen is not None and not problem.holds(chosen):
        chosen, _ = _highs(problem, 1.0 - 1e-5, enough)
    if chosen is not None and problem.holds(chosen) and float(problem.gains @ chosen) > gain:
        incumbent, gain = chosen, float(problem.gains @ chosen)
    return Solution(incumbent, gain, max(gain, bound))


def _highs(problem: Knapsack, share: float, enough: float) -> tuple[Mask | None, float]:
    from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415 - most plans need no solver, which loads for long
    from scipy.sparse import coo_array  # noqa: PLC0415 - likewise

    scale = np.maximum(problem.budgets, 1e-300)[:, None]
    count = len(problem.gains)
    unit = float(problem.gains.max())  # its tolerances are absolute
    constraints = [LinearConstraint(problem.costs / scale, -np.inf, share)]
    later = np.flatnonzero(problem.previous >= 0)
    if len(later):
        rows = np.tile(np.arange(len(later)), 2)
        columns = np.concatenate((later, problem.previous[later]))
        signs = np.repeat([1.0, -1.0], len(later))
        order = coo_array((signs, (rows, columns)), shape=(len(later), count)).tocsc()
        constraints.append(LinearConstraint(order, -np.inf, 0.0))
    with stdout_as_stderr():
        result = milp(
            -problem.gains / unit,
            integrality=np.ones(count, dtype=np.int64),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={
                "mip_rel_gap": enough / max(float(problem.gains.sum()), enough, 1e-300),
                "node_limit": _MOST_NODES,
            },
        )
    bound = result.get("mip_dual_bound")
    proved = float(problem.gains.sum()) if bound is None else -float(bound) * unit
    return (None if result.x is None else result.x > 0.5), proved  # noqa: PLR2004 - nearest integer
