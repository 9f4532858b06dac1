"""What a job's defences make of a round's updates: which rule, how far each is clipped, and which ones it uses.

Pure. Owns the choice, and what is said of it; the rules themselves are `change_averaging.py`'s, `core_rules.py`'s and
`krum.py`'s. Where too few agents are there for the rule that the job names, a documented one takes its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpipe_coordinator.aggregation.change_averaging import (
    Aggregator,
    HeadAggregator,
    Place,
    aggregate_head,
    aggregate_weight,
    masses,
)
from fedpipe_coordinator.aggregation.clipping import clip_factors
from fedpipe_coordinator.aggregation.core_rules import Combine, median_of_votes, on_cores, on_heads, trimmed_mean
from fedpipe_coordinator.aggregation.krum import needed, select
from fedpipe_coordinator.aggregation.norms import Measured
from fedpipe_coordinator.aggregation.round_files import UpdateFile
from fedpipe_coordinator.config import AggregationSection, Rule


@dataclass(frozen=True, slots=True)
class Treatment:
    """How a round is aggregated.

    Attributes:
        updates: Those that are used, each with its clip.
        rule: For weights.
        head_rule: For parameters that are trained whole.
        name: The rule that is applied.
        withstands: How many hostile agents it withstands by its breakdown point; 0 for the mean.
        clipped: What the changes of clipped updates were multiplied by.
        left_out: Agents whose updates multi-krum did not choose.
        remark: Why another rule than the job's is applied; else empty.
        norms: Of the whole changes, where they were measured.
    """

    updates: tuple[UpdateFile, ...]
    rule: Aggregator = aggregate_weight
    head_rule: HeadAggregator = aggregate_head
    name: Rule = "mean"
    withstands: int = 0
    clipped: Mapping[Place, float] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    remark: str = ""
    norms: Mapping[Place, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What the audit record says of it; a late update is named `AGENT (late)`."""
        return {
            "rule": self.name,
            "withstands": self.withstands,
            "norms": {_label(place): norm for place, norm in sorted(self.norms.items())},
            "clipped": {_label(place): factor for place, factor in sorted(self.clipped.items())},
            "left_out": list(self.left_out),
            "remark": self.remark,
        }

    def text(self) -> str:
        """The same for people; empty where there is nothing to say."""
        said = []
        if self.clipped:
            parts = ", ".join(f"{_label(place)} to {factor:.2g}" for place, factor in sorted(self.clipped.items()))
            said.append(f"clipped: {parts}")
        if self.left_out:
            said.append(f"left out by multi-krum: {', '.join(self.left_out)}")
        if self.remark:
            said.append(self.remark)
        return "; ".join(said)


def treat(updates: Sequence[UpdateFile], settings: AggregationSection, measured: Measured | None) -> Treatment:
    """How these updates are to be aggregated; a function of its arguments, whatever the updates' order.

    Args:
        updates: All that count in the round.
        settings: The job's.
        measured: Of the same updates; may be missing where `needs_measures` says so.
    """
    ordered = tuple(sorted(updates, key=lambda update: update.place))
    factors: Mapping[Place, float] = {}
    if measured is not None:
        factors = clip_factors(measured, ordered, settings.clip)
    used = tuple(replace(update, clip=factors.get(update.place, 1.0)) for update in ordered)
    base = Treatment(
        used,
        clipped={place: factor for place, factor in factors.items() if factor < 1.0},
        norms=measured.whole if measured is not None else {},
    )
    agents = sorted({update.agent for update in ordered})
    match settings.rule:
        case "mean":
            return base
        case "median":
            return _by_coordinates(base, "median", median_of_votes, _withstands(len(agents)))
        case "trimmed-mean":
            return _trimmed(base, settings.attackers, len(agents))
        case "multi-krum":
            return _krum(base, settings.attackers, agents, measured)


def needs_measures(settings: AggregationSection) -> bool:
    """Whether norms, or inner products, have to be taken for a job's defences."""
    return settings.clip > 0 or settings.norm_bound > 0 or needs_products(settings)


def needs_products(settings: AggregationSection) -> bool:
    """Whether inner products have to be taken too."""
    return settings.rule == "multi-krum"


def _withstands(agents: int) -> int:
    """Fewer than half."""
    return max(0, (agents - 1) // 2)


def _by_coordinates(base: Treatment, name: Rule, combine: Combine, withstands: int, remark: str = "") -> Treatment:
    return replace(
        base,
        rule=on_cores(combine),
        head_rule=on_heads(combine),
        name=name,
        withstands=withstands,
        remark=remark,
    )


def _trimmed(base: Treatment, attackers: int, agents: int) -> Treatment:
    stands = min(attackers, _withstands(agents))
    remark = ""
    if stands < attackers:
        remark = f"{agents} agents are too few to cut {attackers} off at each end: {stands} are, as in the median"
    return _by_coordinates(base, "trimmed-mean", trimmed_mean(attackers), stands, remark)


def _krum(base: Treatment, attackers: int, agents: Sequence[str], measured: Measured | None) -> Treatment:
    if measured is None or measured.products is None or len(agents) < needed(attackers):
        remark = (
            f"{len(agents)} agents are too few for multi-krum against {attackers} attackers, which takes "
            f"{needed(attackers)}: the median is taken"
        )
        return _by_coordinates(base, "median", median_of_votes, _withstands(len(agents)), remark)
    chosen = {agents[number] for number in select(_votes(base.updates, agents, measured), attackers)}
    return replace(
        base,
        updates=tuple(update for update in base.updates if update.agent in chosen),
        name="multi-krum",
        withstands=attackers,
        left_out=tuple(agent for agent in agents if agent not in chosen),
    )


def _votes(updates: Sequence[UpdateFile], agents: Sequence[str], measured: Measured) -> NDArray[np.float64]:
    """Inner products of the agents' votes: what one brings late is averaged with what it brings in time."""
    assert measured.products is not None
    parts = np.zeros((len(agents), len(measured.places)))
    for row, agent in enumerate(agents):
        own = [update for update in updates if update.agent == agent]
        shares = masses(own)
        for update, share in zip(own, shares, strict=True):
            parts[row, measured.places.index(update.place)] = share / sum(shares)
    votes: NDArray[np.float64] = parts @ measured.products @ parts.T
    return votes


def _label(place: Place) -> str:
    return f"{place[0]} (late)" if place[1] else place[0]
