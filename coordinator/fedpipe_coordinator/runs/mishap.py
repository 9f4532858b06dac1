"""What a run hears instead of an event that this program could not work with: a defect here, which somebody found.

Pure. Messages are checked before they come here, so this should never happen. Should it happen all the same, it costs
an agent its place or a run its end, and not everybody the coordinator: after a restart the same event would come again.
"""

import traceback
from collections.abc import Callable
from pathlib import Path

from fedpipe_coordinator.runs.run_events import (
    AgentOffline,
    AgentOnline,
    Heard,
    RunEvent,
    Unfit,
    UpdateDelayed,
    UpdateRejected,
    UpdateStored,
    WorkFailed,
)
from fedpipe_coordinator.store import StoreError
from fedpipe_wire.transport import TransportError

FATAL = (StoreError, TransportError)
"""What is no event's fault, and ends the process."""
_OF_AN_AGENT = (AgentOnline, AgentOffline, Heard, UpdateStored, UpdateRejected, UpdateDelayed)


def let_hear(act: Callable[[RunEvent], None], event: RunEvent, log: Callable[[str], None]) -> None:
    """Act on an event, or on what `instead` gives in its place; raises what even that does not mend, and `FATAL`."""
    try:
        act(event)
    except FATAL:
        raise
    except Exception as error:
        told = instead(event, error)
        if told is None:
            raise
        log(where(error))
        let_hear(act, told, log)


def instead(event: RunEvent, error: Exception) -> RunEvent | None:
    """First its agent is left out, then the run ends; None where even that went wrong."""
    if isinstance(event, WorkFailed):
        return None
    if isinstance(event, _OF_AN_AGENT):
        return Unfit(event.agent, f"{_name(event)} of {event.agent} could not be worked with: {where(error)}")
    return WorkFailed("the coordinator", f"{_name(event)} could not be worked with: {where(error)}")


def where(error: Exception) -> str:
    """An unforeseen error in one line, with the place that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}. This is a defect: report it with the log"[:1000]


def _name(event: RunEvent) -> str:
    return f"message {event.message.type!r}" if isinstance(event, Heard) else type(event).__name__
