"""Contribution: how much training a weight helps, as a curve over rank.

Owns the curve and its average over silos. Computing a curve from gradients is the trainer's work.
"""

from collections.abc import Mapping, Sequence

from pydantic import Field

from fedpipe_profiles.values import Gain, PositiveCount, Value


class Contribution(Value):
    """One agent's curves: `curves[weight][k - 1]` is c(k), the first-order loss reduction of a rank-k adapter.

    Curves never fall and are concave, because c(k) sums squared singular values in falling order.
    """

    examples: PositiveCount = Field(description="examples the gradients were taken over")
    curves: dict[str, tuple[Gain, ...]] = Field(min_length=1)


def average_contributions(contributions: Sequence[Contribution]) -> dict[str, tuple[float, ...]]:
    """Average curves by example count, weight by weight.

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
    total = sum(contribution.examples for contribution in contributions)
    return {
        name: tuple(
            sum(c.curves[name][k] * c.examples for c in contributions) / total for k in range(len(reference[name]))
        )
        for name in reference
    }
