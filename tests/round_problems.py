"""Rounds for the tests of the defences: changes in factors as agents send them, and what they are when dense."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedpipe_coordinator.aggregation.change_averaging import Aggregated, Factors, WeightChange
from fedpipe_coordinator.aggregation.round_files import UpdateFile
from fedpipe_profiles.model import ModelShape, ParameterShape, WeightShape
from fedpipe_wire.tensors import TensorFile, a_name, b_name, head_name, write_tensors

SIZES: Mapping[str, tuple[int, int]] = {"q": (7, 6), "up": (9, 6)}
HEAD = "score.weight"
RANK = 4
SHAPE = ModelShape(
    model_type="tiny",
    layers=1,
    hidden_size=6,
    intermediate_size=9,
    heads=1,
    vocabulary_size=10,
    weights=tuple(WeightShape(name=name, d_out=size[0], d_in=size[1]) for name, size in SIZES.items()),
    other_parameters=0,
    head=(ParameterShape(name=HEAD, shape=(2, 3)),),
    fingerprint="0" * 64,
)


def dense(factors: Factors) -> np.ndarray:
    whole: np.ndarray = factors.b.astype(np.float64) @ factors.a.astype(np.float64)
    return whole


def product(result: Aggregated) -> np.ndarray:
    return dense(result.factors)


def change(global_: Factors, one: WeightChange) -> np.ndarray:
    """What an agent moved a weight by."""
    chosen = list(one.indices)
    base = one.base or Factors(global_.b[:, chosen], global_.a[chosen])
    moved_by: np.ndarray = dense(Factors(one.b, one.a)) - dense(base)
    return moved_by


def start(random: np.random.Generator, size: tuple[int, int] = (7, 6), rank: int = RANK) -> Factors:
    return Factors(0.3 * random.standard_normal((size[0], rank)), random.standard_normal((rank, size[1])) / 2)


def moved(
    global_: Factors, agent: str, random: np.random.Generator, step: float = 0.1, indices: Sequence[int] | None = None
) -> WeightChange:
    """An agent's change by random steps of all components, or of some."""
    chosen = list(range(len(global_.a)) if indices is None else indices)
    b = global_.b[:, chosen] + step * random.standard_normal((len(global_.b), len(chosen)))
    a = global_.a[chosen] + step * random.standard_normal((len(chosen), global_.a.shape[1]))
    return WeightChange(agent, 10, tuple(chosen), b, a)


def write_global(folder: Path, random: np.random.Generator, name: str = "global") -> Path:
    tensors = {head_name(HEAD): random.standard_normal((2, 3)).astype(np.float32)}
    for weight, size in SIZES.items():
        factors = start(random, size)
        tensors[a_name(weight)], tensors[b_name(weight)] = factors.a.astype(np.float32), factors.b.astype(np.float32)
    write_tensors(folder / name, tensors)
    return folder / name


def read(path: Path) -> dict[str, np.ndarray]:
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.header}


def write_update(
    folder: Path, global_path: Path, agent: str, seed: int, *, times: float = 1.0, rank: int = RANK, steps: int = 1
) -> UpdateFile:
    """An update that moved by random steps; `times` multiplies the whole change, in its factors of both weights."""
    random, before = np.random.default_rng(seed), read(global_path)
    components = {weight: tuple(range(rank)) for weight in SIZES}
    tensors = {head_name(HEAD): before[head_name(HEAD)] + times * 0.1 * random.standard_normal((2, 3))}
    for weight in SIZES:
        b, a = before[b_name(weight)][:, :rank], before[a_name(weight)][:rank]
        # with A as it was, the change is (B - B_0) A_0 and grows in proportion
        tensors[b_name(weight)] = b + times * 0.1 * random.standard_normal(b.shape)
        tensors[a_name(weight)] = a
    path = folder / agent
    write_tensors(path, {name: np.asarray(values, np.float32) for name, values in tensors.items()})
    return UpdateFile(agent, 10, path, components, steps=steps)


def dense_change(global_path: Path, update: UpdateFile) -> dict[str, np.ndarray]:
    """What an update moved every tensor by."""
    after, before = read(update.path), read(update.base or global_path)
    found = {head_name(HEAD): after[head_name(HEAD)].astype(np.float64) - before[head_name(HEAD)]}
    for weight, indices in update.components.items():
        own = Factors(before[b_name(weight)][:, list(indices)], before[a_name(weight)][list(indices)])
        found[weight] = dense(Factors(after[b_name(weight)], after[a_name(weight)])) - dense(own)
    return found
