"""Who is there: the agents that the coordinator has heard of, and which session is the agent of its name.

Owns presence and profiles as last heard. It decides who is let in, by `judge`; it tells which changes matter to a run.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from fedpipe_coordinator.runs.run_events import AgentOffline, AgentOnline
from fedpipe_profiles.device import DeviceProfile
from fedpipe_wire.agent_messages import Presence

_SHOWN = 8
"""Characters of a session or instance that people are shown."""
_REMEMBERED = 16
NOBODY = ""
"""A session that no agent has."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One agent. `doubted`: it is there as far as was heard, and the next word of any session is believed."""

    online: bool = False
    session: str = ""
    instance: str = ""
    doubted: bool = False
    profile: DeviceProfile | None = None
    turned_away: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LetIn:
    """This session is the agent now: it is welcomed, and then given its tasks."""

    session: str
    news: AgentOnline


@dataclass(frozen=True, slots=True)
class Turned:
    """This session is not the agent; `first`: it was not told before."""

    session: str
    reason: str
    first: bool


Verdict = LetIn | Turned | AgentOffline | None


def judge(agent: str, before: Entry, presence: Presence) -> tuple[Entry, Verdict]:
    """What an agent's entry becomes by a word of presence, and what follows from it.

    An agent says that it is online whenever it has connected. A broker that was killed may have lost what was sent to
    and by it, so each such word counts, also from a session that is known to be online: it is asked again. A session of
    another instance is turned away while one lives. The end of another session overwrote the retained presence of the
    one that lives: a word to nobody's session, on the topic that it hears, lets the living one say its presence again.
    The session that has ended is told nothing: a broker may bring the word of its end while it lives, and hold back
    that it began.
    """
    session = presence.session
    if presence.state == "offline":
        if session == before.session or not before.online:
            return replace(before, online=False, doubted=False), AgentOffline(agent) if before.online else None
        entry, told = _turn(agent, before, presence, f"its session {_short(session)} is over")
        return entry, replace(told, session=NOBODY)
    same = session == before.session or bool(presence.instance and presence.instance == before.instance)
    if not before.online or before.doubted or same:
        # Each time that another asks, the one that lives says its presence again: who asked is still worth telling.
        turned = before.turned_away if before.online and session == before.session else {}
        entry = replace(before, online=True, doubted=False, session=session, instance=presence.instance)
        return replace(entry, turned_away=turned), LetIn(session, AgentOnline(agent, session))
    return _turn(agent, before, presence, f"session {_short(session)} asks for the same name")


def _turn(agent: str, before: Entry, presence: Presence, happened: str) -> tuple[Entry, Turned]:
    session = presence.session
    reason = (
        f"agent {agent} is here as session {_short(before.session)}, and {happened}: "
        "stop one of the two, or give each agent a name of its own"
    )
    first = session not in before.turned_away
    turned = dict([*before.turned_away.items(), (session, reason)][-_REMEMBERED:])
    # The end of a session is no claim to the name, and needs no remedy from anybody.
    kept = replace(before, turned_away=turned) if presence.state == "online" else before
    return kept, Turned(session, reason, first and presence.state == "online")


def _short(session: str) -> str:
    return session[:_SHOWN]


class Registry:
    """All agents, by name."""

    def __init__(self, profiles: dict[str, DeviceProfile]) -> None:
        self._entries = {name: Entry(profile=profile) for name, profile in profiles.items()}

    def presence(self, agent: str, presence: Presence) -> Verdict:
        """Take in what is heard of an agent's session, as `judge` says."""
        self._entries[agent], verdict = judge(agent, self._entries.get(agent, Entry()), presence)
        return verdict

    def profile(self, agent: str, profile: DeviceProfile) -> AgentOnline | None:
        """Take in an agent's profile; the first one, or other datasets, makes an agent known to a run."""
        before = self._entries.get(agent, Entry())
        self._entries[agent] = replace(before, profile=profile)
        news = before.profile is None or before.profile.datasets != profile.datasets
        return AgentOnline(agent, before.session) if before.online and news else None

    def reconnected(self, *, resumed: bool) -> list[AgentOffline]:
        """The session with the broker is new: whoever lives says so again, and until then nobody is sure to.

        Returns:
            What runs should know: where the broker lost its state, wills were lost with it, and nobody counts as there.
        """
        there = [name for name, entry in sorted(self._entries.items()) if entry.online]
        for name in there:
            self._entries[name] = replace(self._entries[name], doubted=True, online=resumed)
        return [] if resumed else [AgentOffline(name) for name in there]

    def expel(self, agent: str) -> AgentOffline:
        """An agent does not belong here any more, whatever its session says."""
        before = self._entries.get(agent)
        if before is not None:
            self._entries[agent] = replace(before, online=False, doubted=False)
        return AgentOffline(agent)

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

    def session(self, agent: str) -> str | None:
        """The session that is the agent of a name, as far as was heard."""
        entry = self._entries.get(agent, Entry())
        return entry.session if entry.online else None

    def online(self) -> int:
        """How many agents are online."""
        return sum(entry.online for entry in self._entries.values())

    def describe(self) -> dict[str, Any]:
        """All agents with a profile, as plain data."""
        return {
            name: {
                "online": entry.online,
                "profile": entry.profile.model_dump(mode="json", exclude_none=True),
                "turned_away": list(entry.turned_away.values()),
            }
            for name, entry in sorted(self._entries.items())
            if entry.profile is not None
        }
