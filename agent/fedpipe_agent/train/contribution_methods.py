"""The methods that measure contribution, behind one interface, on a base with or without other adapters.

Owns the choice by name and the putting on and off of the probes. What a method computes is in its own module.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedpipe_agent.train import contribution, sensitivity
from fedpipe_agent.train.adapters import Attached, Factors, attached
from fedpipe_agent.train.base import Base
from fedpipe_agent.train.contribution import PROBE
from fedpipe_agent.train.data import Encoded
from fedpipe_profiles.contribution import Contribution, ContributionMethod


class Measure(Protocol):
    """Curves of every candidate weight, from the probes on a base and batches of examples."""

    def __call__(
        self,
        base: Base,
        probes: Attached,
        groups: Sequence[Sequence[Encoded]],
        *,
        sequence_length: int,
        may_go_on: Callable[[], bool] = ...,
        said: Callable[[int], None] = ...,
    ) -> Contribution:
        """See `contribution.sketch`."""


@dataclass(frozen=True, slots=True)
class Method:
    """One way to measure contribution.

    `factors` gives every candidate weight's probe from (base, largest rank, seed); `trains_a` says whether its first
    factor requires gradients; `least_passes` is how many batches are gone through at least, counting repeats.
    """

    factors: Callable[[Base, int, int], dict[str, Factors]]
    measure: Measure
    trains_a: bool
    least_passes: int

    def passes(self, batches: int) -> int:
        """Forward and backward passes that `batches` batches cost."""
        return max(self.least_passes, batches)


METHODS: Mapping[ContributionMethod, Method] = {
    "gradient-sketch": Method(contribution.probe_factors, contribution.sketch, trains_a=False, least_passes=1),
    "sensitivity": Method(
        sensitivity.triplet_factors, sensitivity.sensitivity, trains_a=True, least_passes=sensitivity.LEAST_STEPS
    ),
}


def measure_contribution(  # noqa: PLR0913 - what is measured, by what, and within which time
    base: Base,
    method: ContributionMethod,
    groups: Sequence[Sequence[Encoded]],
    *,
    max_rank: int,
    seed: int,
    sequence_length: int,
    beside: Mapping[str, Mapping[str, Factors]] | None = None,
    scale: float = 1.0,
    may_go_on: Callable[[], bool] = lambda: True,
    said: Callable[[int], None] = lambda _: None,
) -> Contribution:
    """Put probes on every candidate weight, measure, and take them off again.

    Args:
        base: Without adapters.
        method: By which method.
        groups: Batches of examples.
        max_rank: Longest curve.
        seed: Of the probes.
        sequence_length: Longest example in tokens.
        beside: Adapters that stand on the base meanwhile, frozen: the contribution is that at the model they make.
        scale: Of all adapters.
        may_go_on: Asked before most batches.
        said: Told how many batches are done.
    """
    chosen = METHODS[method]
    factors = {**(beside or {}), PROBE: chosen.factors(base, max_rank, seed)}
    with attached(base, factors, scale=scale, train=frozenset({PROBE}), train_head=False) as probes:
        for pair in probes.factors[PROBE].values():
            pair.a.requires_grad_(chosen.trains_a)
        return chosen.measure(base, probes, groups, sequence_length=sequence_length, may_go_on=may_go_on, said=said)
