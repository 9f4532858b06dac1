"""What a run said so far, and who listens.

Owns the events of each run in memory, so that a watcher that comes late sees all of it, but for the progress that
would be too much to keep, and all progress of a run that is over.
"""

from queue import SimpleQueue
from typing import Any

Event = dict[str, Any]
MAX_EVENTS = 20_000


class Watchers:
    """Events by run, and the queues that follow them."""

    def __init__(self) -> None:
        self._events: dict[str, list[Event]] = {}
        self._queues: dict[str, list[SimpleQueue[Event | None]]] = {}
        self._ended: set[str] = set()

    def say(self, run: str, event: Event) -> None:
        """Tell everybody who follows a run."""
        events = self._events.setdefault(run, [])
        if len(events) < MAX_EVENTS or event["event"] != "progress":
            events.append(event)
        for queue in self._queues.get(run, ()):
            queue.put(event)

    def follow(self, run: str, queue: SimpleQueue[Event | None]) -> None:
        """Give a queue everything said so far and from now on; None ends it."""
        for event in self._events.get(run, ()):
            queue.put(event)
        if run in self._ended:
            queue.put(None)
        else:
            self._queues.setdefault(run, []).append(queue)

    def end(self, run: str) -> None:
        """The run is over: nobody waits any longer."""
        self._ended.add(run)
        if run in self._events:
            self._events[run] = [event for event in self._events[run] if event["event"] != "progress"]
        for queue in self._queues.pop(run, ()):
            queue.put(None)
