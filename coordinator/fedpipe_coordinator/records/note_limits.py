"""How much of what an agent can cause again and again is kept in a run's record: a few notes a round, then a number.

It decides nothing about a run. A record must not grow by what an agent repeats, and must not hide that it did.
"""

from collections import Counter
from collections.abc import Mapping

from fedpipe_coordinator.runs.run_events import Note

USUAL = 20
"""More than any honest agent causes in a round, however bad its link is."""
NOTES_A_ROUND: Mapping[str, int] = {"late": 3} | dict.fromkeys(
    ("offline", "returned", "surveyed", "trained", "late-offered", "failed", "refused"), USUAL
)
"""So many notes of a kind are kept of one agent in a round; other kinds an agent cannot repeat at will."""


class NoteLimits:
    """Of all runs. Counts begin anew with each process."""

    def __init__(self) -> None:
        self._when: dict[str, tuple[int, bool]] = {}
        self._counts: dict[str, Counter[tuple[str, str]]] = {}

    def left_over(self, run: str, round_: int, *, over: bool) -> list[Note]:
        """One note for each agent and kind of which more came than was kept, once their round or the run is over."""
        now = round_, over
        before = self._when.setdefault(run, now)
        if before == now:
            return []
        self._when[run] = now
        counts = self._counts.pop(run, Counter[tuple[str, str]]())
        return [
            Note(
                "not-kept",
                f"{more} more notes '{kind}' of {agent} in round {before[0]} were counted and not kept",
                agent,
                before[0],
                {"kind": kind, "count": more},
            )
            for (agent, kind), count in sorted(counts.items())
            if (more := count - NOTES_A_ROUND[kind]) > 0
        ]

    def is_too_much(self, run: str, note: Note) -> bool:
        """Count a note; whether enough of its agent and kind were kept in this round."""
        most = NOTES_A_ROUND.get(note.kind)
        if most is None or note.agent is None:
            return False
        counts = self._counts.setdefault(run, Counter())
        counts[note.agent, note.kind] += 1
        return counts[note.agent, note.kind] > most
