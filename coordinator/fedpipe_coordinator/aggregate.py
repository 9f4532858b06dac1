"""Aggregation of files: a stream that holds the factors of a few weights at a time.

Owns reading, writing and the report; the rule itself is `change_averaging.py`'s, or another of the
same interface. Never decides whose update counts: what it is given was accepted before.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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

MAX_THREADS = 3
"""More at once bring little, for one thread writes; and each takes some 40 MiB at the size of a 7B model's weights."""


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
    """What an aggregation did; tails are relative Frobenius norms, by weight and over all. `sha256` is the file's."""

    tail: float
    tails: Mapping[str, float] = field(repr=False)
    weights: int
    agents: int
    examples: int
    sha256: str


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


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
    threads: int | None = None,
) -> AggregationReport:
    """Aggregate whole files, holding the factors of at most `threads` weights at a time.

    `out_path` appears whole and synced, or not at all. The same arguments give the same bytes, whatever the order of
    `updates` and the number of `threads`; the change of one with a base of its own is measured against that. BLAS is
    held to one thread for each of them meanwhile, in the whole process: its number of threads may show in the last
    bits, and threads that wait for each other on a busy machine cost more than they bring to matrices this thin.

    Args:
        global_path: The global adapter before the round.
        updates: What was accepted, in any order.
        out_path: Where the next global adapter goes.
        shape: Of the model.
        row_norm: Norm of every row of the new `a`.
        seed: Of the job.
        round_: Whose updates they are.
        rule: What makes one weight's new factors; called in several threads at once.
        threads: How many weights are worked on at once; None: as there are processors, at most `MAX_THREADS`.

    Raises:
        AggregationError: if there is no update, or as `aggregate_weight`, with the weight's name.
        TensorError: if a file does not hold what its components say.
        OSError: if a file cannot be read or the disk refuses.
    """
    masses(updates)
    tails: dict[str, float] = {}
    lost = whole = 0.0
    count = threads or min(processors(), MAX_THREADS)
    with ExitStack() as stack:
        stack.enter_context(threadpool_limits(limits=1, user_api="blas"))
        start, opened, weights, spec = _open_all(stack, global_path, updates, shape)
        writer = stack.enter_context(TensorWriter(out_path, spec, hashed=True))
        pool = stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="aggregate"))

        def aggregated(weight: str) -> Aggregated:
            before, changes = _read_weight(start, opened, weight)
            reseed = generator("reseed", seed, round_, weight)
            with _naming(weight):
                return rule(before, changes, row_norm=row_norm, reseed=reseed)

        for weight, after in _in_order(aggregated, weights, pool, count):
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
    return AggregationReport(tail, tails, len(weights), len(updates), examples, writer.sha256)


def _open_all(
    stack: ExitStack, global_path: Path, updates: Sequence[UpdateFile], shape: ModelShape
) -> tuple[TensorFile, list[_Opened], list[str], dict[str, TensorSpec]]:
    """All files, open and checked, the weights that the global adapter covers, and what it must hold."""
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
    return start, opened, weights, spec


def _in_order(
    work: Callable[[str], Aggregated], weights: Iterable[str], pool: ThreadPoolExecutor, threads: int
) -> Iterator[tuple[str, Aggregated]]:
    """What the work makes of every weight, in their order; no more than `threads` of them are begun and not taken."""
    under_way: deque[tuple[str, Future[Aggregated]]] = deque()
    for weight in weights:
        if len(under_way) == threads:
            yield _taken(under_way)
        under_way.append((weight, pool.submit(work, weight)))
    while under_way:
        yield _taken(under_way)


def _taken(under_way: deque[tuple[str, Future[Aggregated]]]) -> tuple[str, Aggregated]:
    weight, future = under_way.popleft()
    return weight, future.result()


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
