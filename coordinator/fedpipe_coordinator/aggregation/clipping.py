"""Norm clipping: no update may move the model farther than a multiple of what the median one does.

Pure. Coordinate-free: a change is scaled as a whole, its direction stays. As a bound on what one agent can do: Sun,
Kairouz, Suresh, McMahan 2019, *Can You Really Backdoor Federated Learning?*, arXiv 1911.07963; with a bound around a
centre, here the global adapter: Karimireddy, He, Jaggi 2021, *Learning from History for Byzantine Robust Optimization*,
arXiv 2012.10333.

Breakdown point: as for direction 0, for every agent still pulls; but none can pull farther than the bound, and that
bound is one of honest size while fewer than half are hostile, for then both medians lie among the honest ones.
"""

from collections.abc import Mapping, Sequence

from fedpipe_coordinator.aggregation.change_averaging import Place
from fedpipe_coordinator.aggregation.medians import ENOUGH, per_unit, typical, unit
from fedpipe_coordinator.aggregation.norms import Measured
from fedpipe_coordinator.aggregation.round_files import UpdateFile


def clip_factors(measured: Measured, updates: Sequence[UpdateFile], clip: float) -> dict[Place, float]:
    """What each update's change is multiplied by: min(1, clip * median / norm), by the milder of two medians.

    One is of norms per unit of the plans, one of the norms themselves: a head does not shrink with the plan's rank, so
    the norm per unit of a small plan is large although the update moves the model less than others do. The medians are
    over this round's updates; late ones are clipped by them too. With fewer than three nobody is clipped.

    Args:
        measured: Of all updates.
        updates: The same.
        clip: 0 clips nobody.
    """
    sizes = per_unit(measured.whole, updates)
    middle = _median(sizes)
    plain = _median(measured.whole)
    if clip == 0 or middle is None or plain is None:
        return dict.fromkeys(sizes, 1.0)
    bounds = {update.place: clip * max(middle * unit(update), plain) for update in updates}
    return {
        place: 1.0 if measured.whole[place] <= bound else bound / measured.whole[place]
        for place, bound in bounds.items()
    }


def _median(sizes: Mapping[Place, float]) -> float | None:
    """Over the updates of this round."""
    return typical([size for place, size in sizes.items() if not place[1]], ENOUGH)
