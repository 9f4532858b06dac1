"""What an agent says that it sent, beside what the coordinator says that it took.

Pure. The agent's own record lists all that left its silo, with topic, bytes, SHA-256 and message id. What the
coordinator has acted on must be among it; what it has not acted on need not be a fault.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fedpipe_coordinator.records.line_files import sort_lines
from fedpipe_wire.hash_chain import read_chain

ACCEPTED = ("accepted", "late-accepted")
_NOT_SENT = ("refused", "probe")
"""Lines of what came, and of zeros that measure the link and that nobody keeps."""
_UP, _BLOB = 4, 6
"""Which levels of a topic tell the direction and a blob's name."""


@dataclass(slots=True)
class Sent:
    """What an agent's record says.

    Attributes:
        agents: The names in its topics.
        blobs: Bytes sent of each blob, by its SHA-256.
        messages: Message id to topic.
        broken: Lines that are not as they were written, from 1.
        kills: How often the agent was killed: each time, the last moment of its record may be missing.
    """

    agents: set[str] = field(default_factory=set)
    blobs: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    broken: list[int] = field(default_factory=list)
    kills: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that one record holds and the other does not.

    Attributes:
        kind: `not-sent`: the coordinator took an update, or acted on a message, that the agent does not know of.
            `shorter`: fewer bytes of it were sent than were taken. `not-taken`: an update was sent and not accepted.
        run: Whose record names it; empty where none does.
        what: An update's SHA-256, or a message id.
        text: For people.
    """

    kind: Literal["not-sent", "shorter", "not-taken"]
    run: str
    what: str
    text: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both records, compared.

    Attributes:
        agent: Whose.
        agreed: Updates and messages that stand in both.
        differences: What does not.
        unnamed: Messages of the agent that no decision names, by the last levels of their topics.
    """

    agent: str
    agreed: int
    differences: tuple[Difference, ...]
    unnamed: Mapping[str, int]


def read_sent(data: bytes) -> Sent:
    """Read an agent's record; it may begin with a later part."""
    breaks = read_chain(data.split(b"\n")[:-1], exact=False).breaks
    sent = Sent(broken=[each.line for each in breaks if (each.line, each.what) != (1, "out-of-place")])
    before = "stopped"
    for line in sort_lines(data, {}).lines:
        sent.kills += line.get("kind") == "started" and before != "stopped"
        before = str(line.get("kind"))
        _take(sent, line)
    return sent


def _take(sent: Sent, line: Mapping[str, Any]) -> None:
    topic, size, name = line.get("topic"), line.get("bytes"), line.get("id")
    levels = topic.split("/") if isinstance(topic, str) else []
    if len(levels) <= _UP + 1 or levels[0] != "fedpipe" or levels[2] != "agents" or levels[_UP] != "up":
        return
    if line.get("kind") in _NOT_SENT:
        return
    sent.agents.add(levels[3])
    if levels[_UP + 1] == "blob" and len(levels) > _BLOB:
        sent.blobs[levels[_BLOB]] += size if isinstance(size, int) and size > 0 else 0
    elif isinstance(name, str):
        sent.messages[name] = "/".join(levels[_UP:])


def compare(agent: str, sent: Sent, records: Mapping[str, Iterable[Mapping[str, Any]]]) -> Comparison:
    """Compare an agent's record with the runs' records.

    Args:
        agent: Its name.
        sent: What it says.
        records: The lines of each run's record, by run.
    """
    differences: list[Difference] = []
    taken, named, agreed = set[str](), set[str](), 0
    refused: dict[str, tuple[str, str]] = {}
    for run, lines in records.items():
        for line in lines:
            data = line.get("data")
            if line.get("agent") != agent or not isinstance(data, dict):
                continue
            found = list(_of_line(run, line, data, sent))
            differences += found
            if line["kind"] == "rejected":
                refused[str(data.get("sha256"))] = run, str(data.get("reason"))
            if line["kind"] in ACCEPTED:
                taken.add(str(data.get("sha256")))
            if "message_id" in data:
                named.add(str(data["message_id"]))
            agreed += not found and (line["kind"] in ACCEPTED or "message_id" in data)
    for sha256 in sorted(sent.blobs.keys() - taken):
        run, why = refused.get(sha256, ("", "no record names it: it was not needed any more, or never came"))
        differences.append(Difference("not-taken", run, sha256, f"update {sha256[:12]} was not accepted: {why}"))
    unnamed = Counter(topic for name, topic in sent.messages.items() if name not in named)
    return Comparison(agent, agreed, tuple(dict.fromkeys(differences)), dict(sorted(unnamed.items())))


def _of_line(run: str, line: Mapping[str, Any], data: Mapping[str, Any], sent: Sent) -> Iterable[Difference]:
    where = f"line number {line.get('number')} of {run}"
    name = data.get("message_id")
    if name is not None and name not in sent.messages:
        text = f"message {name} ({line['kind']}, {where}) is not in the agent's record"
        yield Difference("not-sent", run, str(name), text)
    if line["kind"] not in ACCEPTED:
        return
    sha256, size = str(data.get("sha256")), data.get("bytes")
    if sha256 not in sent.blobs:
        yield Difference("not-sent", run, sha256, f"update {sha256[:12]} ({where}) is not in the agent's record")
    elif isinstance(size, int) and sent.blobs[sha256] < size:
        text = f"update {sha256[:12]} ({where}) has {size} bytes, the agent has recorded {sent.blobs[sha256]}"
        yield Difference("shorter", run, sha256, text)
