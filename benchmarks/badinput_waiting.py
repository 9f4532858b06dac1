"""Waiting on a session for something to hold: what the hostile agent and the hostile coordinator have in common."""

import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from benchmarks.badinput_cases import CrashedError
from fedpipe_wire.transport import Event

_POLL_S = 0.05


def handle_until(
    events: SimpleQueue[Event],
    handle: Callable[[Event], None],
    condition: Callable[[], bool],
    said: str,
    limit_s: float,
) -> None:
    """Handle what comes until something holds.

    Args:
        events: Of the session.
        handle: Takes each.
        condition: What is waited for.
        said: Who waits for what, for the error.
        limit_s: How long nothing may come of it.

    Raises:
        CrashedError: if it does not hold in time.
    """
    deadline = time.monotonic() + limit_s
    while not condition():
        try:
            event = events.get(timeout=_POLL_S)
        except Empty:
            if time.monotonic() > deadline:
                raise CrashedError(f"{said}, for {limit_s:.0f} s") from None
            continue
        handle(event)
