"""How an agent introduces itself: its device profile, with the link measured over the broker that it is sent through.

Owns when the profile is said: once the link is measured, or that takes too long; again to a broker that has lost it.
"""

from collections.abc import Callable

from fedpipe_agent.link_probe import LinkProbe
from fedpipe_profiles.device import DeviceProfile

LINK_PROBE_S = 30.0


class Introduction:
    """One profile. `publish(size)` hands that many bytes to the broker and returns a handle, or None."""

    def __init__(self, profile: DeviceProfile, publish: Callable[[int], int | None]) -> None:
        self.profile = profile
        self._probe = LinkProbe(publish, profile.limits.uplink_bps)
        self._began: float | None = None
        self._said = False
        self._stale = False

    def tick(self, now: float) -> DeviceProfile | None:
        """Go on measuring, while the session is welcome; the profile when it is time to say it."""
        if self._said:
            return None
        self._began = now if self._began is None else self._began
        self._probe.tick(now)
        if self._probe.link is None and now - self._began <= LINK_PROBE_S:
            return None
        self._said = True
        self.profile = self.profile.model_copy(update={"link": self._probe.link})
        return self.profile

    def renew(self, profile: DeviceProfile) -> None:
        """What is measured since stands in place of what was said; a link that is still being measured comes to it."""
        self.profile = profile

    def welcomed(self, *, resumed: bool) -> DeviceProfile | None:
        """The session is let in again; a broker that has lost the session has lost the retained profile too."""
        again, self._stale = self._stale or not resumed, False
        return self.profile if self._said and again else None

    def resealed(self) -> None:
        """What the broker keeps carries a seal of former keys: say it again as soon as the session is welcome."""
        self._stale = True

    def delivered(self, handle: int, now: float) -> None:
        """The broker acknowledged a publication."""
        self._probe.delivered(handle, now)

    def lost(self) -> None:
        """The connection went away."""
        self._probe.lost()


def link_text(profile: DeviceProfile) -> str:
    """The measured link in words, for the owner of this machine."""
    link = profile.link
    if link is None:
        return "the link could not be measured"
    return f"uplink {link.uplink_bps / 1e6:.1f} Mbit/s ({link.uplink_source}), {link.latency_s * 1e3:.1f} ms"
