"""Slow disk work beside the owner's thread: checking a blob of gigabytes and forcing it to the disk takes seconds.

Owns one thread and the order of its jobs. It decides nothing: what a job comes to is told in the owner's thread.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class DiskWorker:
    """Runs jobs one after the other, and their endings in the owner's thread.

    Args:
        wake: called from the worker's thread when an ending waits for `settle`. None does every job, and its ending, in
            the owner's thread at once.
    """

    def __init__(self, wake: Callable[[], None] | None) -> None:
        self._wake = wake
        self._pool = None if wake is None else ThreadPoolExecutor(max_workers=1, thread_name_prefix="blobs")
        self._endings: deque[tuple[Future[Any], Callable[[], None]]] = deque()

    def submit(self, job: Callable[[], T], ending: Callable[[Callable[[], T]], None]) -> None:
        """Do a job; its ending is given a function that returns what the job returned or raises what it raised."""
        if self._pool is None:
            ending(job)
            return
        future = self._pool.submit(job)
        self._endings.append((future, partial(ending, future.result)))
        future.add_done_callback(self._done)

    def spare(self, job: Callable[[], None]) -> None:
        """Do a job that nobody waits for and that raises nothing; one that is not begun at `close` is forgotten."""
        if self._pool is None:
            job()
        else:
            self._pool.submit(job)

    def settle(self) -> None:
        """Run the endings of the jobs that are done."""
        while self._endings and self._endings[0][0].done():
            _, ending = self._endings.popleft()
            ending()

    def close(self) -> None:
        """Wait for the job under way and forget the others; no ending is run any more."""
        if self._pool is not None:
            self._wake = None
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._endings.clear()

    def _done(self, future: Future[T]) -> None:
        wake = self._wake
        if wake is not None and not future.cancelled():
            wake()
