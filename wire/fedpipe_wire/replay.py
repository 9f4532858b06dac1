"""Which of a sender's messages were heard before: what counters tell a receiver.

Pure. A sender's counters rise and none is used twice, so a counter that was heard is a replay. Brokers may swap
messages of different topics, so a counter a little below the highest is let in once: the sliding window of RFC 6479.
Of a topic whose last message the broker keeps, the newest counts, as often as it comes, and none before it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

WINDOW = 1024
"""How far below the highest counter heard a message may come."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What was heard of one sender, under one key.

    Attributes:
        highest: The highest counter let in, -1 before the first.
        recent: Bit i is set if `highest - i` was let in, for i below `WINDOW`.
        kept: By topic of a retained message, the counter of the one that counts.
    """

    highest: int = -1
    recent: int = 0
    kept: Mapping[str, int] = field(default_factory=dict)

    def fresh(self, counter: int) -> bool:
        """Whether this counter was never let in, and is not too old to tell."""
        if counter > self.highest:
            return True
        age = self.highest - counter
        return age < WINDOW and not self.recent >> age & 1

    def with_counter(self, counter: int) -> "Heard":
        """What was heard once this counter is let in."""
        if counter > self.highest:
            shift = min(counter - self.highest, WINDOW)
            recent = (self.recent << shift | 1) & (1 << WINDOW) - 1
            return replace(self, highest=counter, recent=recent)
        return replace(self, recent=self.recent | 1 << self.highest - counter)

    def latest(self, topic: str, counter: int) -> bool:
        """Whether this is the retained message of a topic that counts, or a newer one."""
        return counter >= self.kept.get(topic, -1)

    def keeping(self, topic: str, counter: int) -> "Heard":
        """What was heard once the retained message of a topic is the one with this counter."""
        if self.kept.get(topic) == counter:
            return self
        return replace(self, kept={**self.kept, topic: counter})

    def to_json(self) -> str:
        """As it is stored."""
        return json.dumps({"highest": self.highest, "recent": f"{self.recent:x}", "kept": dict(self.kept)})


def heard_from_json(text: str) -> Heard:
    """What `to_json` wrote.

    Raises:
        ValueError: if it is something else.
    """
    try:
        data = json.loads(text)
        kept = {str(topic): int(counter) for topic, counter in data["kept"].items()}
        return Heard(int(data["highest"]), int(data["recent"], 16), kept)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"this is no record of counters: {error!r}") from None
