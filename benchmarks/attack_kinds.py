"""What hostile silos send in place of what they trained, for `benchmarks.attacks`.

Owns the attacks, as functions of factors. Every forged update has the names, shapes and dtypes of its plan: what has
not is refused by the gate whatever the defence, and is no matter of aggregation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpipe_profiles.plan import Plan
from fedpipe_wire.tensors import TensorFile, a_name, b_name, write_tensors

Floats = NDArray[np.float32]
Forge = Callable[[Floats, Floats, np.random.Generator], Floats]
"""What becomes of a factor `B`, from (before, after honest training); `A` stays as it was trained, but for a flip."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One kind of hostile silo.

    Attributes:
        forge: what it makes of its trained `B`; None: nothing.
        reflect: whether `A` is mirrored at what it was too.
        mislabelled: it trains on wrong targets.
        copies: it sends the update of another silo.
    """

    forge: Forge | None = None
    reflect: bool = False
    mislabelled: bool = False
    copies: bool = False


def _times(factor: float) -> Forge:
    def forge(before: Floats, after: Floats, _random: np.random.Generator) -> Floats:
        return before + np.float32(factor) * (after - before)

    return forge


def _noise(times: float) -> Forge:
    def forge(before: Floats, after: Floats, random: np.random.Generator) -> Floats:
        noise = random.standard_normal(before.shape).astype(np.float32)
        return before + noise * np.float32(times * np.linalg.norm(after - before) / np.linalg.norm(noise))

    return forge


ATTACKS: Mapping[str, Attack | None] = {
    "none": None,
    "sign-flipped": Attack(_times(-1.0), reflect=True),
    "scaled x100": Attack(_times(100.0)),
    "random x5": Attack(_noise(5.0)),
    "label-flipped": Attack(mislabelled=True),
    "copies": Attack(copies=True),
    "flipped x5": Attack(_times(-5.0)),
}
"""The last one knows the defences: as far as it goes, no bound on norms refuses it."""


def forge_update(attack: Attack, plan: Plan, adapter: Path, trained: Path, out: Path, seed: int) -> None:
    """Write what a hostile silo sends, made of what it trained honestly."""
    random = np.random.default_rng(seed)
    with TensorFile(adapter) as start, TensorFile(trained) as update:
        tensors = {name: update.read(name) for name in update.header}
        for weight, indices in plan.components.items():
            chosen = list(indices)
            b, a = b_name(weight), a_name(weight)
            if attack.forge is not None:
                tensors[b] = attack.forge(start.read(b)[:, chosen], tensors[b], random)
            if attack.reflect:
                tensors[a] = 2 * start.read(a)[chosen] - tensors[a]
    write_tensors(out, tensors)
