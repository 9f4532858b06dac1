"""One thread for what takes long: planning, aggregating, exporting, and looking into updates.

Owns handing work over and what its failure means. Results come back to the owner's thread as events.
"""

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fedpipe_coordinator.runs.run_events import RunEvent, WorkDelayed, WorkFailed
from fedpipe_wire.blob_bits import BlobDiskError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXT = "No space left on device"
"""How a process of its own, such as the export's, says it."""


@dataclass(frozen=True, slots=True)
class WorkDone:
    """A worker's result for a run."""

    run: str
    event: RunEvent


class Worker:
    """Does one thing after the other, in a thread of its own.

    Args:
        post: hands a result to the owner's thread.
    """

    def __init__(self, post: Callable[[WorkDone], None]) -> None:
        self._post = post
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="work")
        self._open = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is under way whose result the owner has not taken."""
        return self._open == 0

    def do(self, run: str, job: Callable[[], RunEvent], failed: Callable[[Exception], RunEvent]) -> None:
        """Do something for a run; `failed` says what it means that it could not be done."""

        def work() -> None:
            try:
                event = job()
            except Exception as error:  # noqa: BLE001  # a worker's failure is the run's matter, not the service's end
                event = failed(error)
            self._post(WorkDone(run, event))

        self._open += 1
        self._pool.submit(work)

    def taken(self) -> None:
        """The owner has a result."""
        self._open -= 1

    def close(self) -> None:
        """Begin nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def phase_failed(name: str) -> Callable[[Exception], WorkFailed | WorkDelayed]:
    """What it means for a run that a phase's work failed: a full disk only delays it."""

    def failed(error: Exception) -> WorkFailed | WorkDelayed:
        reason = f"{error}" or type(error).__name__
        return WorkDelayed(name, reason) if lacks_room(error) else WorkFailed(name, reason)

    return failed


def lacks_room(error: BaseException) -> bool:
    """Whether an error, or one that led to it, is a full disk."""
    seen: BaseException | None = error
    while seen is not None:
        full = isinstance(seen, OSError) and seen.errno in _FULL
        if full or isinstance(seen, BlobDiskError) or _FULL_TEXT in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
