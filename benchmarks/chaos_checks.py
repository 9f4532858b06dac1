"""What must hold after a run, however often its processes were killed. Pure: evidence in, problems out."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WILL = "will-"
"""Ids of last wills: the broker speaks them, with the counter 0, for a session that cannot count any more."""


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One call of the aggregator: blobs by the sha256 that names them."""

    round: int
    start: str
    out: str
    updates: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """An acknowledgement that says that an update was taken."""

    agent: str
    round: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a run left.

    Attributes:
        phase: As the summary tells it.
        rounds: The numbers of the rounds in the summary, in order.
        audited: The rounds that the audit record calls aggregated, in order.
        final: Digest of the exported adapter's files.
        acks: Acceptances that were published.
        aggregations: Calls of the aggregator in this run, in order.
        left: Processes that should have ended.
    """

    phase: str
    rounds: tuple[int, ...]
    audited: tuple[int, ...]
    final: str
    acks: tuple[Accepted, ...]
    aggregations: tuple[Aggregation, ...]
    left: tuple[str, ...] = ()


@dataclass
class Counters:
    """Which message had which counter, over all runs of a federation."""

    seen: dict[tuple[str, int], str] = field(default_factory=dict)

    def reused(self, lines: Iterable[Mapping[str, Any]]) -> list[str]:
        """Take in what was said; a problem for every counter that two different messages of one sender had."""
        problems = []
        for line in lines:
            if "id" not in line or str(line["id"]).startswith(WILL):
                continue
            key = (line["sender"], line["n"])
            known = self.seen.setdefault(key, line["id"])
            if known != line["id"]:
                problems.append(f"counter {key[1]} of {key[0]} was used for message {known} and for {line['id']}")
        return problems


def lineage(aggregations: Sequence[Aggregation]) -> list[Aggregation]:
    """The aggregations that the last adapter was made by, first to last; work that was begun again counts once.

    An adapter that is made again by another call has the same name only if it has the same bytes.
    """
    made = {each.out: each for each in aggregations}
    chain: list[Aggregation] = []
    at = max(aggregations, key=lambda each: each.round, default=None)
    while at is not None and at not in chain:
        chain.append(at)
        at = made.get(at.start)
    return chain[::-1]


def aggregated_once(evidence: Evidence) -> list[str]:
    """A problem for every acknowledged update that is not in the last adapter, or more than once."""
    chain = lineage(evidence.aggregations)
    counts = Counter(update for step in chain for update in step.updates)
    problems = [
        f"the update {sha256[:12]} of {agent} was aggregated {count} times"
        for (agent, sha256), count in counts.items()
        if count > 1
    ]
    problems += [
        f"the update {ack.sha256[:12]} of {ack.agent} was acknowledged in round {ack.round} and never aggregated"
        for ack in dict.fromkeys(evidence.acks)
        if not counts[ack.agent, ack.sha256]
    ]
    taken: dict[tuple[str, int], set[str]] = {}
    for ack in evidence.acks:
        taken.setdefault((ack.agent, ack.round), set()).add(ack.sha256)
    problems += [
        f"{len(names)} updates of {agent} were acknowledged in round {round_}"
        for (agent, round_), names in taken.items()
        if len(names) > 1
    ]
    return problems


def problems_of(evidence: Evidence, expected: Evidence) -> list[str]:
    """Everything that is wrong with a run, compared with the undisturbed one."""
    problems = []
    if evidence.phase != "done":
        problems.append(f"the run is {evidence.phase!r}, not done")
    if evidence.rounds != expected.rounds:
        problems.append(f"the summary has rounds {list(evidence.rounds)}, expected {list(expected.rounds)}")
    twice = [number for number, count in Counter(evidence.audited).items() if count > 1]
    if twice:
        problems.append(f"the audit record calls rounds {twice} aggregated more than once")
    problems += aggregated_once(evidence)
    if evidence.final != expected.final:
        problems.append(_first_difference(evidence, expected))
    problems += [f"left behind: {what}" for what in evidence.left]
    return problems


def _first_difference(evidence: Evidence, expected: Evidence) -> str:
    for ours, theirs in zip(lineage(evidence.aggregations), lineage(expected.aggregations), strict=False):
        if ours.out != theirs.out:
            had, should = dict(ours.updates), dict(theirs.updates)
            odd = sorted(name for name in {*had, *should} if had.get(name) != should.get(name))
            return f"other bytes from round {ours.round} on: updates of {', '.join(odd) or 'nobody'} differ"
    return f"the exported adapter has other bytes: {evidence.final[:12]}, undisturbed {expected.final[:12]}"
