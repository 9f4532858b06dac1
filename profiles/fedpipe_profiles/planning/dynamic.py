"""The knapsack of a single row, exactly, where few different sums of costs occur: dynamic programming over ladders.

A model has few different shapes of weights, so that the costs of its increments add up to few different sums. Branch
and bound takes longest on just these problems, because so many choices cost the same.
"""

import numpy as np
import numpy.typing as npt

from fedpipe_profiles.planning.frontier import Floats, Integers

_MOST_SUMS = 4000


def best_of_one_row(gains: Floats, costs: Floats, budget: float, previous: Integers) -> npt.NDArray[np.bool_] | None:
    """The choice that gains most within the budget; None where too many different sums occur.

    `gains`, `costs` and `previous` are `(K,)`; `previous[k]` is `k - 1`, without which `k` may not be chosen, or -1.
    """
    begins = np.flatnonzero(previous < 0).tolist()
    spent, gained = np.zeros(1), np.zeros(1)
    steps: list[tuple[Integers, Integers]] = []
    for first, after in zip(begins, [*begins[1:], len(gains)], strict=True):
        cost = np.concatenate(([0.0], np.cumsum(costs[first:after])))
        gain = np.concatenate(([0.0], np.cumsum(gains[first:after])))
        sums, values = (spent[:, None] + cost).ravel(), (gained[:, None] + gain).ravel()
        order = np.lexsort((-values, sums))
        order = order[sums[order] <= budget]
        # what costs no less and gains no more than another is never needed
        best_before = np.concatenate(([-np.inf], np.maximum.accumulate(values[order])[:-1]))
        order = order[values[order] > best_before]
        if len(order) > _MOST_SUMS:
            return None
        spent, gained = sums[order], values[order]
        steps.append((order // len(cost), order % len(cost)))
    chosen = np.zeros(len(gains), dtype=np.bool_)
    place = len(gained) - 1
    for first, (parent, taken) in zip(reversed(begins), reversed(steps), strict=True):
        chosen[first : first + int(taken[place])] = True
        place = int(parent[place])
    return chosen
