"""Aggregation of files: a stream that holds one weight's factors at a time.

Owns reading, writing and the report; the rule itself is `change_averaging.py`'s, or another of the
same interface. Never decides whose update counts: what it is given was accepted before.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from threadpoolctl import threadpool_limits

from fedpipe_coordinator.change_averaging import (
    Aggregated,
    AggregationError,
    Aggregator,
    Factors,
    HeadChange,
    WeightChange,
    aggregate_head,
    aggregate_weight,
    masses,
)
from fedpipe_coordinator.components import generator
from fedpipe_profiles.model import ModelShape
from fedpipe_wire.tensors import (
    TensorError,
    TensorFile,
    TensorSpec,
    TensorWriter,
    a_name,
    b_name,
    check_tensors,
    factors_spec,
    head_name,
)

__all__ = [
    "Aggregated",
    "AggregationError",
    "AggregationReport",
    "Aggregator",
    "Factors",
    "HeadChange",
    "UpdateFile",
    "WeightChange",
    "aggregate_files",
    "aggregate_head",
    "aggregate_weight",
]


@dataclass(frozen=True, slots=True)
class UpdateFile:
    """An accepted update on disk; `components` as in the plan that it answers.

    An update of an earlier round has the global adapter that it was trained from as `base`, and a `weight`.
    """

    agent: str
    examples: int
    path: Path
    components: Mapping[str, tuple[int, ...]]
    weight: float = 1.0
    base: Path | None = None


@dataclass(frozen=True, slots=True)
class _Opened:
    """An update and its base, open for reading."""

    update: UpdateFile
    file: TensorFile
    base: TensorFile | None


@dataclass(frozen=True, slots=True)
class AggregationReport:
    """What an aggregation did; tails are relative Frobenius norms, by weight and over all."""

    tail: float
    tails: Mapping[str, float] = field(repr=False)
    weights: int
    agents: int
    examples: int


def aggregate_files(  # noqa: PLR0913 - two files, the updates, and what makes it repeatable
    global_path: Path,
    updates: Sequence[UpdateFile],
    out_path: Path,
    *,
    shape: ModelShape,
    row_norm: float,
    seed: int,
    round_: int,
    rule: Aggregator = aggregate_weight,
) -> AggregationReport:
    """Aggregate whole files, holding one weight's factors at a time.

    `out_path` appears whole and synced, or not at all. The same arguments give the same bytes,
    whatever the order of `updates`; the change of one with a base of its own is measured against
    that. BLAS is held to one thread meanwhile, in the whole process: the number of threads may show
    in the last bits, and threads that wait for each other on a busy machine cost more than they
    bring to matrices this thin.

    Raises:
        AggregationError: if there is no update, or as `aggregate_weight`, with the weight's name.
        TensorError: if a file does not hold what its components say.
        OSError: if a file cannot be read or the disk refuses.
    """
    masses(updates)
    tails: dict[str, float] = {}
    lost = whole = 0.0
    with ExitStack() as stack:
        stack.enter_context(threadpool_limits(limits=1, user_api="blas"))
        start = stack.enter_context(TensorFile(global_path))
        weights, spec = _global_spec(start.header, shape)
        bases = {path: stack.enter_context(TensorFile(path)) for path in sorted({u.base for u in updates if u.base})}
        for base in bases.values():
            check_tensors(base.header, spec)
        opened = [
            _Opened(update, stack.enter_context(TensorFile(update.path)), bases[update.base] if update.base else None)
            for update in updates
        ]
        for each in opened:
            _check_update(each.update, each.file.header, shape, weights)
        writer = stack.enter_context(TensorWriter(out_path, spec))
        for weight in weights:
            before, changes = _read_weight(start, opened, weight)
            reseed = generator("reseed", seed, round_, weight)
            with _naming(weight):
                after = rule(before, changes, row_norm=row_norm, reseed=reseed)
            writer.write(a_name(weight), after.factors.a)
            writer.write(b_name(weight), after.factors.b)
            tails[weight] = after.tail
            lost += (after.tail * after.norm) ** 2
            whole += after.norm**2
        for name in (head_name(part.name) for part in shape.head):
            with _naming(name):
                writer.write(name, aggregate_head(start.read(name), [_head(each, name) for each in opened]))
    tail = math.sqrt(lost / whole) if whole else 0.0
    examples = sum(update.examples for update in updates)
    return AggregationReport(tail, tails, len(weights), len(updates), examples)


def _global_spec(header: Mapping[str, TensorSpec], shape: ModelShape) -> tuple[list[str], dict[str, TensorSpec]]:
    """The weights that the global adapter covers, in the model's order, and what it must hold."""
    found = {w.name: header[a_name(w.name)] for w in shape.weights if a_name(w.name) in header}
    ranks = {name: spec.shape[0] if spec.shape else 0 for name, spec in found.items()}
    spec = factors_spec(shape, ranks)
    check_tensors(header, spec)
    return list(found), spec


def _check_update(
    update: UpdateFile,
    header: Mapping[str, TensorSpec],
    shape: ModelShape,
    weights: Sequence[str],
) -> None:
    """Refuse an update whose file or components do not fit."""
    ranks = {name: len(indices) for name, indices in update.components.items() if indices}
    foreign = sorted(set(ranks) - set(weights))
    if foreign:
        raise AggregationError(f"{update.agent} trained {foreign[:5]}, not in the global adapter")
    try:
        check_tensors(header, factors_spec(shape, ranks))
    except TensorError as error:
        raise TensorError(f"{update.agent}: {error}") from None


def _read_weight(start: TensorFile, opened: Sequence[_Opened], weight: str) -> tuple[Factors, list[WeightChange]]:
    """One weight's factors: the global's, and those of every agent that trained it."""
    changes = [
        WeightChange(
            each.update.agent,
            each.update.examples,
            indices,
            each.file.read(b_name(weight)),
            each.file.read(a_name(weight)),
            None if each.base is None else _components(each.base, weight, indices),
            each.update.weight,
        )
        for each in opened
        if (indices := each.update.components.get(weight))
    ]
    return Factors(start.read(b_name(weight)), start.read(a_name(weight))), changes


def _components(file: TensorFile, weight: str, indices: tuple[int, ...]) -> Factors:
    """Some components of a weight of a global adapter; b: (d_out, r), a: (r, d_in)."""
    b, a = file.read(b_name(weight)), file.read(a_name(weight))
    wrong = [index for index in indices if not 0 <= index < len(a)]
    if wrong:
        raise AggregationError(f"{weight}: components {wrong} are not distinct numbers from 0 to {len(a) - 1}")
    return Factors(b[:, list(indices)], a[list(indices)])


def _head(each: _Opened, name: str) -> HeadChange:
    """One agent's values of a parameter that is trained whole."""
    base = None if each.base is None else each.base.read(name)
    return HeadChange(each.update.agent, each.update.examples, each.file.read(name), base, each.update.weight)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say which tensor an error is about."""
    try:
        yield
    except AggregationError as error:
        raise AggregationError(f"{name}: {error}") from None
