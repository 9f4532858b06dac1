"""Aggregation of files: a stream that holds the factors of a few weights at a time.

Owns writing and the report; the rule itself is `change_averaging.py`'s, or another of the same interface
(`core_rules.py`). Never decides whose update counts: what it is given was accepted before.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from threadpoolctl import threadpool_limits

from fedpipe_coordinator.aggregation.change_averaging import (
    Aggregated,
    AggregationError,
    Aggregator,
    Factors,
    HeadAggregator,
    HeadChange,
    WeightChange,
    aggregate_head,
    aggregate_weight,
)
from fedpipe_coordinator.aggregation.components import generator
from fedpipe_coordinator.aggregation.parallel import in_order, thread_count
from fedpipe_coordinator.aggregation.round_files import RoundFiles, UpdateFile, naming
from fedpipe_profiles.model import ModelShape
from fedpipe_wire.tensors import TensorWriter, a_name, b_name

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
class AggregationReport:
    """What an aggregation did; tails are relative Frobenius norms, by weight and over all. `sha256` is the file's."""

    tail: float
    tails: Mapping[str, float] = field(repr=False)
    weights: int
    agents: int
    examples: int
    sha256: str


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
    head_rule: HeadAggregator = aggregate_head,
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
        head_rule: What makes the new values of a parameter that is trained whole.
        threads: As `thread_count` has it.

    Raises:
        AggregationError: if there is no update, or as `aggregate_weight`, with the weight's name.
        TensorError: if a file does not hold what its components say.
        OSError: if a file cannot be read or the disk refuses.
    """
    tails: dict[str, float] = {}
    lost = whole = 0.0
    count = thread_count(threads)
    with ExitStack() as stack:
        stack.enter_context(threadpool_limits(limits=1, user_api="blas"))
        files = stack.enter_context(RoundFiles(global_path, updates, shape))
        writer = stack.enter_context(TensorWriter(out_path, files.spec, hashed=True))
        pool = stack.enter_context(ThreadPoolExecutor(count, thread_name_prefix="aggregate"))

        def aggregated(weight: str) -> Aggregated:
            before, changes = files.weight(weight)
            reseed = generator("reseed", seed, round_, weight)
            with naming(weight):
                return rule(before, changes, row_norm=row_norm, reseed=reseed)

        for weight, after in in_order(aggregated, files.weights, pool, count):
            writer.write(a_name(weight), after.factors.a)
            writer.write(b_name(weight), after.factors.b)
            tails[weight] = after.tail
            lost += (after.tail * after.norm) ** 2
            whole += after.norm**2
        for name in files.heads:
            with naming(name):
                writer.write(name, head_rule(*files.head(name)))
    tail = math.sqrt(lost / whole) if whole else 0.0
    examples = sum(update.examples for update in updates)
    return AggregationReport(tail, tails, len(files.weights), len(updates), examples, writer.sha256)
