"""Contribution: how much training a weight helps, as a curve over rank.

Owns the curve and its average over silos. Computing a curve from gradients is the trainer's work.
"""

from collections.abc import Mapping, Sequence
from statistics import median_low

from pydantic import Field

from fedpipe_profiles.values import Gain, PositiveCount, Value

REACH = 4
"""An agent's curves count for at most so many times as much, all weights together, as the median agent's."""


class Contribution(Value):
    """One agent's curves: `curves[weight][k - 1]` is c(k), the first-order loss reduction of a rank-k adapter.

    Curves never fall and are concave, because c(k) sums squared singular values in falling order.
    """

    examples: PositiveCount = Field(description="examples the gradients were taken over")
    curves: dict[str, tuple[Gain, ...]] = Field(min_length=1)


def average_contributions(contributions: Sequence[Contribution]) -> dict[str, tuple[float, ...]]:
    """Average curves by example count, weight by weight; curves far larger than the others' are scaled down as a whole.

    What curves show is which weights matter more than others, and their size follows the loss: scaled, they still show
    it, and while fewer than half of the agents lie, none drowns the others by magnitude.

    Args:
        contributions: One per agent, in any order; all must name the same weights with curves of the same length.

    Returns:
        The averaged curve of every weight.

    Raises:
        ValueError: if there is none, or if two differ in weights or in curve length.
    """
    if not contributions:
        raise ValueError("no contribution to average: at least one agent must have scored its weights")
    reference: Mapping[str, tuple[float, ...]] = contributions[0].curves
    for other in contributions[1:]:
        if {name: len(curve) for name, curve in other.curves.items()} != {
            name: len(curve) for name, curve in reference.items()
        }:
            raise ValueError("two agents scored different weights or ranks: do they hold the same base model?")
    weights = [
        contribution.examples * share for contribution, share in zip(contributions, _shares(contributions), strict=True)
    ]
    total = sum(contribution.examples for contribution in contributions)
    return {
        name: tuple(
            sum(c.curves[name][k] * weight for c, weight in zip(contributions, weights, strict=True)) / total
            for k in range(len(reference[name]))
        )
        for name in reference
    }


def _shares(contributions: Sequence[Contribution]) -> list[float]:
    """What each agent's curves are multiplied by: at most 1, so that none ends beyond `REACH` medians; 0 has no say."""
    sizes = [sum(curve[-1] for curve in each.curves.values() if curve) for each in contributions]
    above = [size for size in sizes if size > 0]
    bound = REACH * median_low(above) if above else 0.0
    return [1.0 if size <= bound else bound / size for size in sizes]
