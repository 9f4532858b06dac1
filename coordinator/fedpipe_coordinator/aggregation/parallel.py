"""Several weights at once, their results in order.

Owns how many threads aggregation may use. What they work on is others' matter.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MAX_THREADS = 3
"""More at once bring little, for one thread writes; and each takes some 40 MiB at the size of a 7B model's weights."""
Result = TypeVar("Result")


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def thread_count(wanted: int | None) -> int:
    """How many weights are worked on at once; None: as there are processors, at most `MAX_THREADS`."""
    return wanted or min(processors(), MAX_THREADS)


def in_order(
    work: Callable[[str], Result], names: Iterable[str], pool: ThreadPoolExecutor, threads: int
) -> Iterator[tuple[str, Result]]:
    """What the work makes of every name, in their order; no more than `threads` of them are begun and not taken."""
    under_way: deque[tuple[str, Future[Result]]] = deque()
    for name in names:
        if len(under_way) == threads:
            yield _taken(under_way)
        under_way.append((name, pool.submit(work, name)))
    while under_way:
        yield _taken(under_way)


def _taken(under_way: deque[tuple[str, Future[Result]]]) -> tuple[str, Result]:
    name, future = under_way.popleft()
    return name, future.result()
