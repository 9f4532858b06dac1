"""What was not listened to: all of it counted, and told in as many lines as a record can take.

Pure but for the clock that it is given. A flood of refusals must not fill a disk, and neither must a flood of names
that nobody has.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Literal

from fedpipe_coordinator.audit.federation_audit import Entry, harmless
from fedpipe_wire.sealing import Fault as SealFault

LINES_A_MINUTE = 5
"""Of one sender and fault."""
LINES_IN_ALL = 60
"""In a minute, of all senders and faults."""
MINUTE_S = 60.0
_TOPIC_CHARS, _REASON_CHARS = 200, 500

Fault = SealFault | Literal["wrong-topic", "oversize", "wrong-sender", "contradiction", "stale", "flood"]


class Refusals:
    """Used by the owner's thread.

    Attributes:
        counts: How many packets were refused since this process began, by fault.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: list[Entry] = []
        self._told: Counter[tuple[str, str]] = Counter()
        self._untold: Counter[tuple[str, str]] = Counter()
        self._since: float | None = None
        self.counts: Counter[str] = Counter()

    def add(self, fault: Fault, sender: str, topic: str, payload: bytes, reason: str) -> str | None:
        """Count a packet; what to say of it, or None where enough was said in this minute.

        Args:
            fault: What is wrong with it.
            sender: Whose it claims to be; empty where its topic names nobody.
            topic: As the broker says.
            payload: As it came.
            reason: For people.
        """
        self.counts[fault] += 1
        self._end_minute()
        if self._since is None:
            self._since = self._clock()
        key = (fault, sender)
        if self._told[key] >= LINES_A_MINUTE or self._told.total() >= LINES_IN_ALL:
            # Names that nobody has are told of together, and take no room here.
            self._untold[key if key in self._told else (fault, "")] += 1
            return None
        self._told[key] += 1
        shown = harmless(topic, _TOPIC_CHARS)
        who = sender or "an unknown sender"
        text = f"refused what came on {shown} as of {who} ({fault}): {harmless(reason, _REASON_CHARS)}"
        digest = hashlib.sha256(payload).hexdigest()
        data = {"fault": fault, "topic": shown, "bytes": len(payload), "sha256": digest}
        self._entries.append(Entry("refused", sender, text, data))
        return text

    def take(self, *, last: bool = False) -> list[Entry]:
        """The lines since the last call; `last`: also what a minute that is not over has left untold."""
        self._end_minute(now=last)
        entries, self._entries = self._entries, []
        return entries

    def _end_minute(self, *, now: bool = False) -> None:
        if self._since is None or (not now and self._clock() - self._since < MINUTE_S):
            return
        for (fault, sender), count in sorted(self._untold.items()):
            text = f"refused {count} more packets as of {sender or 'other senders'} ({fault}) within a minute"
            self._entries.append(Entry("refused", sender, text, {"fault": fault, "count": count}))
        self._told.clear()
        self._untold.clear()
        self._since = None
