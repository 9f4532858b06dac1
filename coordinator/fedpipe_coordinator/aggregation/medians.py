"""How far updates should have moved: medians of norms, per unit of what was planned.

Adam moves every value by about the learning rate in every step, so the norm of a change grows with the number of steps
and with the square root of the number of values, whatever the batch: measured from 1 to 64 steps and ranks 4 to 16, the
norm over `steps * sqrt(rank)` stayed within a factor of two. Steps and ranks are those of the plan, never of the
sender's word.
"""

import math
from collections.abc import Iterable, Mapping
from statistics import median

from fedpipe_coordinator.aggregation.round_files import UpdateFile

ENOUGH = 3
"""With fewer updates nobody can tell which one is the outlier."""


def unit(update: UpdateFile, tensor: str | None = None) -> float:
    """What a change's norm is divided by, to compare it with others: `steps * sqrt(rank)` of the plan.

    Args:
        update: Whose change.
        tensor: Of one weight, or of a head parameter, which has no rank; None: of all together.
    """
    if tensor is None:
        rank = max(1, sum(len(indices) for indices in update.components.values()))
    else:
        rank = max(1, len(update.components.get(tensor, ())))
    return update.steps * math.sqrt(rank)


def typical(sizes: Iterable[float], enough: int) -> float | None:
    """The median, of those above 0 where more than half are 0; None where too few are left to tell.

    The median of n numbers lies between the least and the greatest of the honest ones while fewer than n / 2 are not.
    """
    known = list(sizes)
    if len(known) < enough:
        return None
    middle = median(known)
    if middle > 0:
        return middle
    known = [size for size in known if size > 0]
    return median(known) if len(known) >= enough else None


def per_unit(
    norms: Mapping[tuple[str, bool], float], updates: Iterable[UpdateFile], tensor: str | None = None
) -> dict[tuple[str, bool], float]:
    """The norms per unit, of those updates that have one."""
    return {u.place: norms[u.place] / unit(u, tensor) for u in updates if u.place in norms}
