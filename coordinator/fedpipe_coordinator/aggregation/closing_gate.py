"""The gate's last check, when a round closes: no update may have moved a weight absurdly farther than the others did.

Pure. Owns who is refused, and the reason that its sender is told. Norms and units are `norms.py`'s and `medians.py`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedpipe_coordinator.aggregation.change_averaging import Place
from fedpipe_coordinator.aggregation.medians import ENOUGH, per_unit, typical
from fedpipe_coordinator.aggregation.norms import Measured
from fedpipe_coordinator.aggregation.round_files import UpdateFile
from fedpipe_wire.tensor_header import shown


@dataclass(frozen=True, slots=True)
class Excess:
    """A change that is too large: `times` the median of the others, both per unit of the plan."""

    tensor: str
    norm: float
    times: float
    others: int

    def reason(self, bound: float, more: int) -> str:
        """What its sender is told."""
        besides = f" (and {more} other weights)" if more else ""
        return (
            f"its change of {shown(self.tensor)}{besides} has norm {self.norm:.4g}, {self.times:.4g} times the median "
            f"of the {self.others} other agents that trained it, per planned step and root of rank; at most {bound:g} "
            "times is taken (aggregation.norm_bound). Look at this agent's data, precision and learning rate"
        )


def beyond_bound(measured: Measured, updates: Sequence[UpdateFile], bound: float) -> dict[Place, str]:
    """The updates that are refused for the norm of a weight's change, each with its reason.

    An update is over the bound where its norm, per `steps * sqrt(rank)` of its plan, is more than `bound` times the
    median of the other agents' that trained the weight in this round. Medians are taken anew without those that were
    refused, until nobody is: so the answer is the same whether the round is judged in one go or taken up again in
    between. Late updates are judged beside the others and are nobody's measure. A weight that fewer than three agents
    trained, or that all but one left as it was, is not judged.

    Args:
        measured: Of all updates.
        updates: The same.
        bound: 0 refuses nobody.
    """
    refused: dict[Place, str] = {}
    while bound > 0:
        left = [update for update in updates if update.place not in refused]
        found = {
            place: sorted(each, key=lambda e: (-e.times, e.tensor)) for place, each in _excesses(measured, left, bound)
        }
        if not found:
            break
        refused |= {place: each[0].reason(bound, len(each) - 1) for place, each in found.items()}
    return refused


def _excesses(measured: Measured, updates: Sequence[UpdateFile], bound: float) -> list[tuple[Place, list[Excess]]]:
    found: dict[Place, list[Excess]] = {}
    for tensor, norms in measured.norms.items():
        sizes = per_unit(norms, updates, tensor)
        for place, size in sizes.items():
            others = [each for of, each in sizes.items() if not of[1] and of[0] != place[0]]
            middle = typical(others, ENOUGH - 1)
            if middle is not None and size > bound * middle:
                excess = Excess(tensor, norms[place], size / middle, len(others))
                found.setdefault(place, []).append(excess)
    return sorted(found.items())
