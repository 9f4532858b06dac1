"""Contribution: how much training a weight helps, as a curve over rank.

Owns the curve, its average over silos and its refresh. Computing a curve from gradients is the trainer's work.
"""

from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import Literal

from pydantic import Field

from fedpipe_profiles.values import MAX_GAIN, Gain, PositiveCount, Value

ContributionMethod = Literal["gradient-sketch", "sensitivity"]
"""How curves are measured; those of different methods have different units and never mix."""

REFRESH_WEIGHT = 0.5
"""What newly measured curves count against all those measured before."""

REACH = 4
"""An agent's curves count for at most so many times as much, all weights together, as the median agent's."""


class Contribution(Value):
    """One agent's curves: `curves[weight][k - 1]` is c(k), the first-order loss reduction of a rank-k adapter.

    Curves never fall and are concave, because c(k) sums squared singular values, or importances, in falling order.
    """

    method: ContributionMethod = "gradient-sketch"
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
        ValueError: if there is none, or if two differ in method, in weights or in curve length.
    """
    if not contributions:
        raise ValueError("no contribution to average: at least one agent must have scored its weights")
    methods = sorted({contribution.method for contribution in contributions})
    if len(methods) > 1:
        raise ValueError(f"curves of different methods cannot be averaged: {', '.join(methods)}")
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


def refreshed(before: Contribution, measured: Contribution) -> Contribution:
    """One agent's curves after a refresh: half of what they were, half of what was measured now.

    Both count by their shares: gradients shrink as the loss does, and a weight is worth what it is beside the others.
    Size and examples stay as they were, so that an agent's word weighs no more, and no less, for being renewed.

    Args:
        before: The agent's curves so far.
        measured: New ones, of the same method, weights and lengths.

    Returns:
        Curves that are concave if both are; those of `before` where nothing new was found, because all gradients were
        zero.
    """
    size, new = _size(before), _size(measured)
    if new == 0:
        return before
    if size == 0:
        return before.model_copy(update={"curves": measured.curves})
    curves = {
        name: tuple(
            min(MAX_GAIN, (1 - REFRESH_WEIGHT) * old + REFRESH_WEIGHT * size * (now / new))
            for old, now in zip(curve, measured.curves[name], strict=True)
        )
        for name, curve in before.curves.items()
    }
    return before.model_copy(update={"curves": curves})


def moved_share(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """By how much each weight's share of the whole contribution rose or fell; sums to 0.

    Args:
        before: Curves of every weight.
        after: Curves of the same weights.
    """
    old, new = _weight_shares(before), _weight_shares(after)
    return {name: new[name] - old[name] for name in after}


def _weight_shares(curves: Mapping[str, Sequence[float]]) -> dict[str, float]:
    total = sum(curve[-1] for curve in curves.values() if curve)
    return {name: curve[-1] / total if curve and total > 0 else 0.0 for name, curve in curves.items()}


def _size(contribution: Contribution) -> float:
    """All weights together, each at its full rank."""
    return sum(curve[-1] for curve in contribution.curves.values() if curve)


def _shares(contributions: Sequence[Contribution]) -> list[float]:
    """What each agent's curves are multiplied by: at most 1, so that none ends beyond `REACH` medians; 0 has no say."""
    sizes = [_size(each) for each in contributions]
    above = [size for size in sizes if size > 0]
    bound = REACH * median_low(above) if above else 0.0
    return [1.0 if size <= bound else bound / size for size in sizes]
