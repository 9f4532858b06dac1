"""Who follows which run, and gets its events.

Owns the queues of those who follow at this moment. What was said before is in the run's records and is given to
`follow`; of progress, a watcher sees what comes after it.
"""

from collections.abc import Iterable
from queue import SimpleQueue

from fedpipe_coordinator.records.retelling import Event

MOST_WAITING = 1000
"""Progress is left out for a watcher that is so many events behind."""


class Watchers:
    """The queues that follow a run, by run."""

    def __init__(self) -> None:
        self._queues: dict[str, list[SimpleQueue[Event | None]]] = {}

    def say(self, run: str, event: Event) -> None:
        """Tell everybody who follows a run."""
        for queue in self._queues.get(run, ()):
            # All else is bounded by the run's records.
            if event["event"] != "progress" or queue.qsize() < MOST_WAITING:
                queue.put(event)

    def follow(self, run: str, queue: SimpleQueue[Event | None], said: Iterable[Event], *, over: bool) -> None:
        """Give a queue what was said so far and, unless the run is over, what is said from now on; None ends it."""
        for event in said:
            queue.put(event)
        if over:
            queue.put(None)
        else:
            self._queues.setdefault(run, []).append(queue)

    def end(self, run: str) -> None:
        """Nobody waits any longer: the run is over, or this process ends."""
        for queue in self._queues.pop(run, ()):
            queue.put(None)
