"""Where the time of a round goes: the traces of coordinator and agents, cut at what all parties wait for.

Pure. Every cut is the last moment at which something of the round happened, so the parts of a round add up to it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

PARTS = ("planning", "download", "train", "upload", "check", "aggregate", "other")
AGGREGATED = "posted-WorkDone-Aggregated"
PLANNED = "posted-WorkDone-Planned"
STORED = "posted-WorkDone-UpdateStored"
TRAINED = "TrainedReply"


@dataclass(frozen=True, slots=True)
class Mark:
    """One line of a trace: monotonic seconds, the same clock in all processes of a machine."""

    at: float
    edge: str
    name: str


def read_trace(text: str) -> list[Mark]:
    """The lines of a trace; one that was cut short is left out."""
    marks = []
    for line in text.splitlines():
        words = line.split(" ", 2)
        if len(words) == 3:
            marks.append(Mark(float(words[0]), words[1], words[2]))
    return marks


def round_parts(
    coordinator: Sequence[Mark], agents: Sequence[Sequence[Mark]], rounds: Sequence[Mapping[str, Any]]
) -> list[dict[str, float]]:
    """Seconds of every part of every round but the first, which begins at no aggregation.

    Args:
        coordinator: The coordinator's trace of one run.
        agents: The agents' traces of the same run.
        rounds: The run's `rounds.jsonl`.

    Returns:
        One value per part and round, with their sum as `round`.
    """
    ends = [mark.at for mark in coordinator if mark.name == AGGREGATED and mark.edge == "before"]
    compute = {entry["round"]: _compute_s(entry) for entry in rounds}
    return [
        _parts(begin, end, coordinator, agents, compute.get(number, 0.0))
        for number, (begin, end) in enumerate(pairwise(ends), start=2)
    ]


def _compute_s(entry: Mapping[str, Any]) -> float:
    return max((agent.get("compute_s") or 0.0 for agent in entry["agents"]), default=0.0)


def _parts(
    begin: float, end: float, coordinator: Sequence[Mark], agents: Sequence[Sequence[Mark]], compute_s: float
) -> dict[str, float]:
    here = [mark for mark in coordinator if begin <= mark.at <= end]
    theirs = [mark for marks in agents for mark in marks if begin <= mark.at <= end]
    trained = _last(theirs, "before", TRAINED, begin)
    # what comes after the last update was trained and before it is stored, is its way here
    chunk = _last(
        [mark for mark in here if mark.at <= _last(here, "before", STORED, end)], "after", "received-chunk", trained
    )
    cuts = {
        "planning": _last(here, "after", PLANNED, begin),
        "download": trained - compute_s,
        "train": trained,
        "upload": chunk,
        "check": _last(here, "before", STORED, chunk),
        "aggregate": _last(here, "after", "work-aggregate", end),
        "other": end,
    }
    parts, before = {}, begin
    for name in PARTS:
        at = min(max(cuts[name], before), end)
        parts[name], before = at - before, at
    return {**parts, "round": end - begin}


def _last(marks: Sequence[Mark], edge: str, name: str, otherwise: float) -> float:
    return max((mark.at for mark in marks if mark.edge == edge and mark.name.endswith(name)), default=otherwise)


def handling_seconds(marks: Sequence[Mark]) -> dict[str, tuple[int, float]]:
    """How often an owner's thread handled each kind of event, and for how many seconds in all."""
    counts: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    began: dict[str, float] = {}
    for mark in marks:
        if mark.edge == "before":
            began[mark.name] = mark.at
        elif mark.name in began:
            counts[mark.name] += 1
            seconds[mark.name] += mark.at - began.pop(mark.name)
    return {name: (counts[name], seconds[name]) for name in sorted(counts, key=lambda name: -seconds[name])}
