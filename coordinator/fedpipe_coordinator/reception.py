"""What agents say, before a run hears it: who they are, what their machine is, and whether their run is known here.

Owns the answers that need no run: welcome, turned away, unknown. It decides nothing about runs.
"""

from collections.abc import Callable

from fedpipe_coordinator.exchange import Exchange, Said
from fedpipe_coordinator.registry import LetIn, Registry, Turned
from fedpipe_coordinator.runs.run_events import AgentOffline, AgentOnline, Heard, Report
from fedpipe_coordinator.store import Store
from fedpipe_coordinator.watchers import Watchers
from fedpipe_profiles.device_checks import profile_problems
from fedpipe_wire.agent_messages import BlobMissing, Presence, Profile, Progress, Trained
from fedpipe_wire.coordinator_messages import Ack, EndTask, TurnedAway, Welcome


class Reception:
    """Used by the owner's thread.

    Args:
        store: keeps profiles.
        registry: who is there.
        exchange: the way back to agents.
        watchers: who follows a run.
        log: takes lines for people.
        knows: whether there is a run of that name.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        exchange: Exchange,
        watchers: Watchers,
        log: Callable[[str], None],
        knows: Callable[[str], bool],
    ) -> None:
        self._store, self._registry, self._exchange, self._watchers = store, registry, exchange, watchers
        self._log, self._knows = log, knows

    def hear(self, said: Said) -> AgentOnline | AgentOffline | Heard | None:
        """Take in a message; what runs should know of it, if anything."""
        agent, message = said.agent, said.message
        match message:
            case Presence():
                return self._presence(agent, message)
            case Profile():
                return self._profile(agent, message)
            case Progress():
                progress = message.model_dump(exclude={"run", "type"})
                self._watchers.say(message.run, {"event": "progress", "agent": agent} | progress)
                return None
            case BlobMissing():
                return None
            case _ if not self._knows(message.run):
                self._unknown_run(agent, message)
                return None
            case _:
                return Heard(agent, message, said.message_id)

    def _presence(self, agent: str, message: Presence) -> AgentOnline | AgentOffline | None:
        before = self._registry.session(agent)
        match self._registry.presence(agent, message):
            case LetIn(session, news):
                if session != before:  # one that is there says so again whenever another asks for its name
                    self._log(f"agent {agent} is online")
                self._exchange.send(agent, Welcome(session=session))
                return news
            case Turned(session, reason, first):
                self._exchange.send(agent, TurnedAway(session=session, reason=reason))
                if first:
                    self._log(f"turned away: {reason}")
                return None
            case AgentOffline() as news:
                self._log(f"agent {agent} is offline")
                return news
            case None:
                return None

    def _profile(self, agent: str, message: Profile) -> AgentOnline | None:
        if message.profile.agent != agent:
            self._exchange.refuse("wrong-sender", f"a profile of {message.profile.agent!r}", agent)
            return None
        problems = profile_problems(message.profile)
        if problems:
            self._exchange.refuse("contradiction", f"its profile cannot be true: {'; '.join(problems)[:500]}", agent)
            return None
        # What the registry has is stored; an agent that says it without end must not keep the disk busy.
        if self._registry.profiles().get(agent) != message.profile:
            self._store.save_profile(message.profile)
        return self._registry.profile(agent, message.profile)

    def _unknown_run(self, agent: str, message: Report) -> None:
        """A report of a run that this coordinator never had: its agent need not hold on to it."""
        reason = f"this coordinator knows no run {message.run}"
        self._exchange.refuse("stale", f"it is of run {message.run}, which is not known here", agent)
        if isinstance(message, Trained):
            sha256, round_ = message.update.sha256, message.round
            self._exchange.send(agent, Ack(run=message.run, round=round_, sha256=sha256, accepted=False, reason=reason))
        self._exchange.send(agent, EndTask(run=message.run, reason=reason))
