"""The rank increments of one option and number of steps: bounded from above, chosen greedily, and reduced for HiGHS.

Every limit is linear in the two sums that are trained, parameters and ranks. Multiplying limits by numbers that are not
negative and adding them up gives another limit, which every choice keeps; the best choice within that one alone, with
one increment in part, bounds all (Lagrangian duality). Two limits are nearly always enough, so the weight between the
two is searched. Order within a ladder is kept by `Frontier.hull`.
"""

from dataclasses import dataclass

import numpy as np

from fedpipe_profiles.planning.frontier import Direction, Floats, Frontier
from fedpipe_profiles.planning.milp import Knapsack, Mask, solve

_HALVINGS = 12
_DIFFERENT = 1e-7


@dataclass(frozen=True, slots=True)
class Limits:
    """`a[j] * parameters + c[j] * ranks <= budgets[j]`, `(J,)` each; `a + c` is 1, no budget is negative or endless."""

    a: Floats
    c: Floats
    budgets: Floats


@dataclass(frozen=True, slots=True)
class Relaxed:
    """The strongest bound found, with the direction and budget that prove it."""

    bound: float
    direction: Direction
    budget: float


def limits(a: Floats, c: Floats, budgets: Floats) -> Limits | None:
    """Scale rows, `(J,)` each, and leave out those that limit nothing; None if no choice keeps them."""
    if (budgets < 0).any():
        return None
    size = a + c
    kept = (size > 0) & np.isfinite(budgets)
    size = size[kept]
    return Limits(a[kept] / size, c[kept] / size, budgets[kept] / size)


def relax(frontier: Frontier, rows: Limits) -> Relaxed:
    """The best bound of single limits and of two together."""
    if not len(rows.budgets):
        return _everything(frontier)
    alone = [
        Relaxed(found.bound(float(budget)), found, float(budget))
        for a, c, budget in zip(rows.a, rows.c, rows.budgets, strict=True)
        for found in (frontier.direction(float(a), float(c)),)
    ]
    first = min(range(len(alone)), key=lambda row: alone[row].bound)
    best = alone[first]
    over = _over(best, rows)
    second = int(np.argmax(over))
    if over[second] <= 1 + _DIFFERENT:
        return best
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        share = (low + high) / 2
        a, c, budget = (
            (1 - share) * values[first] + share * values[second] for values in (rows.a, rows.c, rows.budgets)
        )
        direction = frontier.sort(float(a), float(c))
        tried = Relaxed(direction.bound(float(budget)), direction, float(budget))
        best = min(best, tried, key=lambda each: each.bound)
        over = _over(tried, rows)
        if over[first] <= 1 + _DIFFERENT and over[second] <= 1 + _DIFFERENT:
            break
        low, high = (low, share) if over[first] > over[second] else (share, high)
    return best


def _everything(frontier: Frontier) -> Relaxed:
    by_size = frontier.by_size
    return Relaxed(float(by_size.most[-1]), by_size, float(by_size.spent[-1]))


def _over(relaxed: Relaxed, rows: Limits) -> Floats:
    """What the bound's own choice uses of every limit, as a share of its budget."""
    parameters, ranks = relaxed.direction.cut(relaxed.budget)
    return (rows.a * parameters + rows.c * ranks) / np.maximum(rows.budgets, 1e-300)


def choose(frontier: Frontier, rows: Limits, direction: Direction) -> Mask:
    """Take increments in the order of a direction while they fit, then whatever still fits."""
    chosen = np.zeros(len(frontier.gains), dtype=np.bool_)
    order = direction.order
    used = rows.a[:, None] * direction.parameters + rows.c[:, None] * direction.ranks
    fits = (used <= rows.budgets[:, None]).all(axis=0)
    prefix = len(order) if fits.all() else int(np.argmin(fits)) - 1
    chosen[order[:prefix]] = True
    left = rows.budgets - used[:, prefix]
    rest = order[prefix:]
    costs = rows.a[:, None] * frontier.parameters[rest] + rows.c[:, None] * frontier.ranks[rest]
    before = frontier.previous[rest]
    while len(rest):
        fits = (costs <= left[:, None]).all(axis=0)
        rest, costs, before = rest[fits], costs[:, fits], before[fits]
        open_ = (before < 0) | chosen[before]
        if not open_.any():
            break
        place = int(np.argmax(open_))
        chosen[rest[place]] = True
        left = left - costs[:, place]
        keep = np.arange(len(rest)) != place
        rest, costs, before = rest[keep], costs[:, keep], before[keep]
    return chosen


def improve(frontier: Frontier, rows: Limits, relaxed: Relaxed, incumbent: Mask, gap: float) -> tuple[Mask, float]:
    """Solve exactly, as far as that can still improve on `incumbent`; returns the choice and the bound it proves.

    An increment whose gain differs from its price by more than what is left between incumbent and bound is as the bound
    has it in every better choice (reduced costs), so that HiGHS decides on the others only.
    """
    gain = float(frontier.gains @ incumbent)
    slack = relaxed.bound - gain
    price = relaxed.direction.price(relaxed.budget)
    cost = relaxed.direction.a * frontier.parameters + relaxed.direction.c * frontier.ranks
    worth = frontier.hull - price * cost
    margin = slack + 1e-9 * relaxed.bound
    taken, left = worth > margin, worth < -margin
    before, later = frontier.previous, frontier.previous >= 0
    while (below := later & taken & ~taken[before]).any():
        taken[before[below]] = True
    costs = rows.a[:, None] * frontier.parameters + rows.c[:, None] * frontier.ranks
    budgets = rows.budgets - costs @ taken
    left |= ~taken & (costs > np.maximum(budgets, 0.0)[:, None]).any(axis=0)
    while (above := later & left[before] & ~left).any():
        left |= above
    if (budgets < 0).any() or (taken & left).any():
        return incumbent, gain
    open_ = ~(taken | left)
    place = np.cumsum(open_) - 1
    previous = np.where(later & open_[before], place[before], -1)[open_]
    if not open_.any():
        return (taken, float(frontier.gains @ taken)) if frontier.gains @ taken > gain else (incumbent, gain)
    core = Knapsack(frontier.gains[open_], costs[:, open_], budgets, previous)
    certain = float(frontier.gains @ taken)
    solution = solve(core, gap * gain / 2)
    found = taken.copy()
    found[np.flatnonzero(open_)[solution.chosen]] = True
    bound = min(relaxed.bound, max(gain, certain + solution.bound))
    return (found, bound) if certain + solution.gain > gain else (incumbent, bound)
