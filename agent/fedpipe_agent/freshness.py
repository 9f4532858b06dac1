"""When an agent measures again what changes on its machine, and which change is worth telling the coordinator.

Pure but for `measure`, which comes in. While the trainer has work nothing is measured: it must not be disturbed, and
its memory rises and falls. Steps are measured by the trainer itself, so rates are not measured again here.
"""

from collections import deque
from collections.abc import Callable
from statistics import median

from fedpipe_profiles.device import DeviceProfile, Link

IDLE_S = 180.0
"""How often an idle machine is measured."""
MEMORY_NEWS = 0.05
"""Less or more memory for a trainer by this share is told."""
LINK_NEWS = 0.2
LEAST_BYTES = 256 * 1024
"""What a transfer must have carried for its rate to be one of the line."""
SAMPLES = 3

Measure = Callable[[DeviceProfile, int | None], DeviceProfile]
"""The profile with what changes measured again; the process of a trainer, whose own memory counts as free."""


class Freshness:
    """Of one machine. Used by the daemon's thread; times in monotonic seconds."""

    def __init__(self, measure: Measure | None) -> None:
        self._measure = measure
        self._looked_at: float | None = None
        self._said: DeviceProfile | None = None
        self._began: tuple[float, int] | None = None
        self._rates: deque[float] = deque(maxlen=SAMPLES)

    def transfers(self, acknowledged_bytes: int, now: float, *, busy: bool) -> None:
        """How many bytes of updates the broker has acknowledged so far, and whether more are under way."""
        if busy:
            self._began = self._began or (now, acknowledged_bytes)
            return
        if self._began is not None:
            since, before = self._began
            self._began = None
            if acknowledged_bytes - before >= LEAST_BYTES and now > since:
                self._rates.append(8 * (acknowledged_bytes - before) / (now - since))

    def is_due(self, now: float) -> bool:
        """Whether an idle machine should be looked at; the first time counts from here."""
        if self._looked_at is None:
            self._looked_at = now
        return self._measure is not None and now - self._looked_at >= IDLE_S

    def look(self, profile: DeviceProfile, trainer: int | None, now: float) -> DeviceProfile:
        """The profile as it is now; `trainer` is the process of one that holds a base and has no work."""
        self._looked_at = now
        if self._measure is None:
            return profile
        found = self._measure(profile, trainer)
        return found.model_copy(update={"link": self._link(found)})

    def said(self, profile: DeviceProfile) -> None:
        """The coordinator was told this one."""
        self._said = profile

    def is_news(self, profile: DeviceProfile) -> bool:
        """Whether a profile differs enough from the one that was said last, if one was."""
        said = self._said
        if said is None:
            return False
        if _differ(said.memory_limit_bytes(), profile.memory_limit_bytes(), MEMORY_NEWS):
            return True
        before, after = said.link, profile.link
        return before is not None and after is not None and _differ(before.uplink_bps, after.uplink_bps, LINK_NEWS)

    def _link(self, profile: DeviceProfile) -> Link | None:
        link, lent = profile.link, profile.limits.uplink_bps
        if link is None or len(self._rates) < SAMPLES:
            return link
        rate = max(1.0, median(self._rates))
        return link.model_copy(update={"uplink_bps": rate if lent is None else min(rate, lent)})


def _differ(before: float, after: float, share: float) -> bool:
    return abs(after - before) > share * max(before, after)
