"""What a process hears, seen from outside: its session's event queue with a watcher on it.

The owner of a session takes one event after another out of one queue; so taking the next one is also the end of
handling the last. Owns the names of events; what the watcher does with them is the launcher's matter.
"""

import json
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Literal

from fedpipe_wire.mqtt import MqttTransport
from fedpipe_wire.transport import Delivered, Event, Posted, Received

Edge = Literal["before", "after"]
Watch = Callable[[str, Edge], None]
"""Told of every event: its name, and whether its handling begins or has ended."""
_LARGEST_MESSAGE = 1_000_000
_MAX_HANDLES = 10_000


def message_type(payload: bytes) -> str:
    """The `type` of a message's JSON, or "chunk" for anything else."""
    if not payload.startswith(b"{") or len(payload) > _LARGEST_MESSAGE:
        return "chunk"
    try:
        return str(json.loads(payload).get("type", "chunk"))
    except (ValueError, AttributeError):
        return "chunk"


class EventNames:
    """Names events; remembers which handle belongs to which kind of publication."""

    def __init__(self) -> None:
        self._handles: dict[int, str] = {}

    def published(self, handle: int | None, kind: str) -> None:
        """A publication was handed over."""
        if handle is not None:
            self._handles[handle] = kind
            if len(self._handles) > _MAX_HANDLES:  # those of a session that fell are never delivered
                del self._handles[next(iter(self._handles))]

    def of(self, event: Event) -> str:
        """For example "received-train-task", "delivered-chunk", "posted-WorkDone-Planned"."""
        match event:
            case Received(_, payload):
                return f"received-{message_type(payload)}"
            case Delivered(handle):
                return f"delivered-{self._handles.pop(handle, 'unknown')}"
            case Posted(item):
                inner = getattr(item, "event", None)
                reply = getattr(inner, "reply", None)
                names = [type(part).__name__ for part in (item, inner, reply) if part is not None]
                return "posted-" + "-".join(name.strip("_") for name in names)
            case _:
                return type(event).__name__.lower()


class WatchedQueue(SimpleQueue[Event]):
    """A session's queue; its only reader is the session's owner."""

    def __init__(self, inner: SimpleQueue[Event], name_of: Callable[[Event], str], watch: Watch) -> None:
        super().__init__()
        self._inner, self._name_of, self._watch = inner, name_of, watch
        self._handled: str | None = None

    def get(self, block: bool = True, timeout: float | None = None) -> Event:  # noqa: FBT001, FBT002 - the queue's own signature
        """The next event; handling of the last one has ended."""
        if self._handled is not None:
            self._watch(self._handled, "after")
            self._handled = None
        event = self._inner.get(block, timeout)
        self._handled = self._name_of(event)
        self._watch(self._handled, "before")
        return event

    def get_nowait(self) -> Event:
        """As `get`, without waiting."""
        return self.get(block=False)

    def put(self, item: Event, block: bool = True, timeout: float | None = None) -> None:  # noqa: FBT001, FBT002 - same
        """Hand the owner an event."""
        self._inner.put(item, block, timeout)

    def qsize(self) -> int:
        """Events that wait."""
        return self._inner.qsize()

    def empty(self) -> bool:
        """Whether none waits."""
        return self._inner.empty()


Publish = Callable[..., int | None]


def watch_sessions(
    watch: Watch, around_publish: Callable[[Publish, str, bytes, Any], int | None] | None = None
) -> None:
    """Have every session of this process watched.

    Args:
        watch: Told of the events.
        around_publish: Calls the publish it is given, with the kind of message, its payload and its user properties;
            None calls it plainly.
    """
    init, publish = MqttTransport.__init__, MqttTransport.publish

    def watched_init(self: MqttTransport, *args: Any, **more: Any) -> None:
        init(self, *args, **more)
        names = EventNames()
        self.__dict__["event_names"] = names
        self.__dict__["_events"] = WatchedQueue(self._events, names.of, watch)

    def watched_publish(self: MqttTransport, topic: str, payload: bytes, **more: Any) -> int | None:
        kind = message_type(payload) if more.get("properties") else "chunk"

        def plain() -> int | None:
            handle = publish(self, topic, payload, **more)
            self.__dict__["event_names"].published(handle, kind)
            return handle

        if around_publish is None:
            return plain()
        return around_publish(plain, kind, payload, (topic, more.get("properties") or {}))

    MqttTransport.__init__ = watched_init  # type: ignore[method-assign]  # the seam: from outside, for this process only
    MqttTransport.publish = watched_publish  # type: ignore[method-assign]  # same
