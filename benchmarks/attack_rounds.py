"""Rounds of a federation with hostile silos: training, the gates, and aggregation, for `benchmarks.attacks`.

Owns the order of things. The gates and the rules are those of production; so is the training.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.attack_kinds import ATTACKS, Attack, forge_update
from benchmarks.attack_silos import AGENTS, GLOBAL_RANK, Effort, Silos, plan_of, silo_name
from fedpipe_agent.train.errors import TrainerError
from fedpipe_coordinator.aggregation.adapter_making import ROW_NORM
from fedpipe_coordinator.aggregation.aggregate import aggregate_files
from fedpipe_coordinator.aggregation.closing_gate import beyond_bound
from fedpipe_coordinator.aggregation.gate import RefusedUpdateError, check_update
from fedpipe_coordinator.aggregation.global_adapter import initial_adapter
from fedpipe_coordinator.aggregation.norms import measure
from fedpipe_coordinator.aggregation.robust import needs_products, treat
from fedpipe_coordinator.aggregation.round_files import UpdateFile
from fedpipe_coordinator.config import AggregationSection
from fedpipe_profiles.plan import Plan

HOSTILE = 2
VICTIM = 2
"""The silo whose update is copied."""
_BARE = {"clip": 0.0, "norm_bound": 0.0}
DEFENCES: Mapping[str, AggregationSection] = {
    "none": AggregationSection.model_validate(_BARE),
    "clip": AggregationSection(norm_bound=0.0),
    "norm gate": AggregationSection(clip=0.0),
    "median": AggregationSection.model_validate({"rule": "median", **_BARE}),
    "trimmed-mean": AggregationSection.model_validate({"rule": "trimmed-mean", "attackers": HOSTILE, **_BARE}),
    "multi-krum": AggregationSection.model_validate({"rule": "multi-krum", "attackers": HOSTILE, **_BARE}),
    "defaults": AggregationSection(),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One attack against one defence."""

    defence: str
    attack: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Final loss, and how many updates were refused in all rounds."""

    loss: float
    refused: int


def _open(data: Path, seed: int) -> Silos:
    e2e = data / "e2e"
    return Silos(data / "models" / "TinyStories-656K", e2e / "train.jsonl", e2e / "dev.jsonl", seed)


def prepare(data: Path, folder: Path, effort: Effort, seed: int) -> float:
    """What all cells share: the first adapter, and what every silo trains from it; the loss of the base."""
    silos = _open(data, seed)
    names = [weight.name for weight in silos.shape.weights]
    initial_adapter(folder / "start", silos.shape, names, GLOBAL_RANK, seed=seed, row_norm=ROW_NORM)
    federation = Federation(data, folder, effort, seed)
    for number in range(AGENTS):
        federation.trained(number, folder / "start", 1, mislabelled=False)
    return silos.loss(folder / "start", plan_of(silos.shape, 0, 1, effort, seed))


class Federation:
    """All rounds of a cell, on a base that is loaded once.

    Training is a function of the adapter, the silo and the round: what one cell has trained, another one finds, as long
    as its adapters are the same bytes.

    Args:
        data: where model and examples lie.
        folder: what `prepare` filled; what was trained is kept there.
        effort: how much is trained.
        seed: of shares, plans, training and noise.
    """

    def __init__(self, data: Path, folder: Path, effort: Effort, seed: int) -> None:
        self._folder, self._effort, self._seed = folder, effort, seed
        self._silos = _open(data, seed)

    def run(self, cell: Cell) -> Outcome:
        """Train, attack, defend, in every round; the loss in the end."""
        place = self._folder / f"{cell.defence} {cell.attack}"
        place.mkdir()
        adapter, refused = self._folder / "start", 0
        for round_ in range(1, self._effort.rounds + 1):
            updates = self._updates(place, adapter, round_, ATTACKS[cell.attack])
            adapter, more = self._close(place, adapter, round_, updates, DEFENCES[cell.defence])
            refused += more
        try:
            loss = self._silos.loss(adapter, self._plan(0, self._effort.rounds))
        except TrainerError:  # an adapter of values that no model computes with
            loss = math.inf
        shutil.rmtree(place)
        return Outcome(loss if math.isfinite(loss) else math.inf, refused)

    def _plan(self, number: int, round_: int) -> Plan:
        return plan_of(self._silos.shape, number, round_, self._effort, self._seed)

    def _updates(self, place: Path, adapter: Path, round_: int, attack: Attack | None) -> list[UpdateFile]:
        """What passes the gate of what the silos send."""
        updates = []
        for number in range(AGENTS):
            plan, out = self._plan(number, round_), place / f"{silo_name(number)}-{round_}"
            hostile = attack if number < HOSTILE else None
            sender = VICTIM if hostile is not None and hostile.copies else number
            try:
                honest = self.trained(sender, adapter, round_, mislabelled=hostile is not None and hostile.mislabelled)
                if hostile is not None:
                    forge_update(hostile, plan, adapter, honest, out, 7919 * self._seed + 31 * round_ + number)
                check_update(out if hostile is not None else honest, self._silos.shape, plan)
            except (TrainerError, RefusedUpdateError):
                continue
            steps, path = -(-plan.examples // plan.batch_size), out if hostile is not None else honest
            updates.append(UpdateFile(plan.agent, plan.examples, path, dict(plan.components), steps=steps))
        return updates

    def trained(self, number: int, adapter: Path, round_: int, *, mislabelled: bool) -> Path:
        """What a silo trains from an adapter."""
        digest = hashlib.sha256(adapter.read_bytes()).hexdigest()
        kept = self._folder / f"{digest}-{round_}-{number}{'-mislabelled' if mislabelled else ''}"
        if not kept.exists():
            unfinished = kept.with_name(f"{kept.name}-{os.getpid()}")
            plan = self._plan(number, round_)
            self._silos.train(number, adapter, plan, unfinished, mislabelled=mislabelled)
            unfinished.replace(kept)
        return kept

    def _close(
        self, place: Path, adapter: Path, round_: int, updates: list[UpdateFile], settings: AggregationSection
    ) -> tuple[Path, int]:
        """The next adapter, and how many updates were refused."""
        if not updates:
            return adapter, 0
        shape, products = self._silos.shape, needs_products(settings)
        measured = measure(adapter, updates, shape=shape, products=products)
        refused = beyond_bound(measured, updates, settings.norm_bound)
        if refused:
            updates = [update for update in updates if update.place not in refused]
            measured = measure(adapter, updates, shape=shape, products=products)
        treatment, out = treat(updates, settings, measured), place / f"adapter-{round_}"
        aggregate_files(
            adapter,
            treatment.updates,
            out,
            shape=shape,
            row_norm=ROW_NORM,
            seed=self._seed,
            round_=round_,
            rule=treatment.rule,
            head_rule=treatment.head_rule,
        )
        return out, len(refused)
