"""A run's events as watchers are given them: as they happen, and again from the run's records.

Pure. The records hold all of them but progress, so nobody need keep them in memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Event = dict[str, Any]
_ENDS = ("run-done", "run-failed", "run-stopped")
_NEXT_ROUND = ("aggregated", "round-repeated")
"""What is noted of a round once the record of the round before it is complete."""


def event_of(line: Mapping[str, Any]) -> Event:
    """The event of a line of `audit.jsonl` or `rounds.jsonl`."""
    if "kind" not in line:
        return {"event": "round", "round": line["round"], "data": dict(line)}
    event = {"event": line["kind"], "text": line["text"], "agent": line["agent"]}
    return event | {"round": line["round"], "data": line.get("data", {})}


def retell(audit: Iterable[Mapping[str, Any]], rounds: Iterable[Mapping[str, Any]]) -> Iterator[Event]:
    """The events of a run from its records: each round's after all that was said before its metric was known."""
    left = list(rounds)
    for line in audit:
        while left and (line["kind"] in _ENDS or (line["kind"] in _NEXT_ROUND and line["round"] > left[0]["round"])):
            yield event_of(left.pop(0))
        yield event_of(line)
    yield from map(event_of, left)
