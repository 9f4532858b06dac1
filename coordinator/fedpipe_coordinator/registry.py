"""Who is there: the agents that the coordinator has heard of.

Owns presence and profiles as last heard. It decides nothing; it tells which changes matter to a run.
"""

from dataclasses import dataclass, replace
from typing import Any

from fedpipe_coordinator.run_events import AgentOffline, AgentOnline
from fedpipe_profiles.device import DeviceProfile
from fedpipe_wire.messages import Presence


@dataclass(frozen=True, slots=True)
class Entry:
    """One agent."""

    online: bool = False
    session: str = ""
    profile: DeviceProfile | None = None


class Registry:
    """All agents, by name."""

    def __init__(self, profiles: dict[str, DeviceProfile]) -> None:
        self._entries = {name: Entry(profile=profile) for name, profile in profiles.items()}

    def presence(self, agent: str, presence: Presence) -> AgentOnline | AgentOffline | None:
        """Take in what is heard of an agent's session; returns what a run should know.

        An agent says that it is online whenever it has connected. A broker that was killed may have lost what was sent
        to and by it, so each such word counts, also from a session that is known to be online: it is asked again.
        """
        before = self._entries.get(agent, Entry())
        if presence.state == "offline":
            # A will that comes late belongs to a session that is over.
            if before.session not in ("", presence.session):
                return None
            self._entries[agent] = replace(before, online=False)
            return AgentOffline(agent) if before.online else None
        self._entries[agent] = replace(before, online=True, session=presence.session)
        return AgentOnline(agent, presence.session)

    def profile(self, agent: str, profile: DeviceProfile) -> AgentOnline | None:
        """Take in an agent's profile; the first one, or other datasets, makes an agent known to a run."""
        before = self._entries.get(agent, Entry())
        self._entries[agent] = replace(before, profile=profile)
        news = before.profile is None or before.profile.datasets != profile.datasets
        return AgentOnline(agent, before.session) if before.online and news else None

    def profiles(self) -> dict[str, DeviceProfile]:
        """The newest profiles."""
        return {name: entry.profile for name, entry in self._entries.items() if entry.profile is not None}

    def eligible(self, dataset: str) -> list[AgentOnline]:
        """The agents that are online and hold a dataset of that name."""
        return [
            AgentOnline(name, entry.session)
            for name, entry in sorted(self._entries.items())
            if entry.online and self.has_dataset(name, dataset)
        ]

    def has_dataset(self, agent: str, dataset: str) -> bool:
        """Whether an agent maps a dataset of that name."""
        entry = self._entries.get(agent)
        return entry is not None and entry.profile is not None and dataset in entry.profile.datasets

    def online(self) -> int:
        """How many agents are online."""
        return sum(entry.online for entry in self._entries.values())

    def describe(self) -> dict[str, Any]:
        """All agents with a profile, as plain data."""
        return {
            name: {"online": entry.online, "profile": entry.profile.model_dump(mode="json", exclude_none=True)}
            for name, entry in sorted(self._entries.items())
            if entry.profile is not None
        }
