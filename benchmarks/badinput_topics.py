"""Topics that an agent with real certificates may not write: the broker refuses, and ends the connection.

Owns the topics. Each is tried over a connection of its own.
"""

from collections.abc import Mapping
from functools import partial

from benchmarks.badinput_cases import AcceptedError, Case
from benchmarks.badinput_yard import Yard

KIND = "topic"
ESCAPE = "\x1b]0;owned\x07\x1b[2J"
Properties = dict[str, str]
ROOT = "fedpipe/benchmark"
DENIED: Mapping[str, tuple[str, Properties | None, bool, str]] = {
    "a message id with a terminal escape": (f"{ROOT}/agents/mallory/up/report", {"id": ESCAPE}, False, "lost"),
    "a topic with a terminal escape": (f"{ROOT}/agents/mallory/up/{ESCAPE}", None, False, "lost"),
    "a topic of 60,000 characters": (f"{ROOT}/agents/mallory/up/{'x' * 60_000}", None, False, "Not authorized|lost"),
    "a channel that there is not": (f"{ROOT}/agents/mallory/up/command", None, False, "Not authorized"),
    "another agent's channel": (f"{ROOT}/agents/agent-1/up/report", None, False, "Not authorized"),
    "another agent's presence, to be kept": (f"{ROOT}/agents/agent-1/up/presence", None, True, "Not authorized"),
    "another agent's tasks": (f"{ROOT}/agents/agent-1/down/task", None, False, "Not authorized"),
    "one's own tasks": (f"{ROOT}/agents/mallory/down/task", None, False, "Not authorized"),
    "the broadcast": (f"{ROOT}/broadcast/run", None, True, "Not authorized"),
    "another federation": ("fedpipe/elsewhere/broadcast/run", None, False, "Not authorized"),
    "the broker's own topics": ("$SYS/broker/uptime", None, False, "Not authorized|lost"),
}


def _denied(yard: Yard, topic: str, properties: Properties | None, *, retain: bool) -> str:
    answer = yard.mallory.alone(topic, b"{}", properties, retain=retain)
    if "took it" in answer:
        raise AcceptedError(answer)
    return answer


def cases(yard: Yard) -> list[Case]:
    """All of this kind."""
    return [
        Case(KIND, name, partial(_denied, yard, topic, properties, retain=retain), says)
        for name, (topic, properties, retain, says) in DENIED.items()
    ]
