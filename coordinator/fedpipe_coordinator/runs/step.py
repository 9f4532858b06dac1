"""One step of the run machine in the making: the state so far and the actions asked for.

Owns the bookkeeping that keeps the machine's functions short; holds no rule.
"""

from collections.abc import Sequence
from typing import Any

from fedpipe_coordinator.runs.run_events import Note, RunAction, SaveRound, Send
from fedpipe_coordinator.runs.run_state import STANDINGS, IllegalTransitionError, Member, Phase, RunState
from fedpipe_wire.coordinator_messages import EndTask


class Step:
    """Collects what one event changes; lives only while that event is handled.

    Attributes:
        state: The run so far.
        now: Monotonic seconds.
        heard: The agent and the id of the message that is being acted on; what is noted of that agent names it.
    """

    def __init__(self, state: RunState, now: float) -> None:
        self.state = state
        self.now = now
        self.heard: tuple[str, str] | None = None
        self._actions: list[RunAction] = []

    def result(self) -> tuple[RunState, tuple[RunAction, ...]]:
        """The new state and the actions in the order they were asked for."""
        return self.state, tuple(self._actions)

    def do(self, action: RunAction) -> None:
        """Ask for an action."""
        self._actions.append(action)

    def note(self, kind: str, text: str, *, agent: str | None = None, data: dict[str, Any] | None = None) -> None:
        """Say something to people and to the audit record."""
        named = {"message_id": self.heard[1]} if self.heard is not None and self.heard[0] == agent else {}
        self.do(Note(kind, text, agent, self.state.round, (data or {}) | named))

    def put(self, member: Member) -> None:
        """Replace or add one agent's entry.

        Raises:
            IllegalTransitionError: if its standing may not follow the one that it had.
        """
        before = self.state.members.get(member.name)
        legal = before.may_become(member) if before is not None else (None, member.standing) in STANDINGS
        if not legal:
            was = None if before is None else before.standing
            raise IllegalTransitionError(f"{member.name}: standing {member.standing!r} may not follow {was!r}")
        self.state = self.state.with_member(member)

    def members(self) -> Sequence[Member]:
        """All agents in the order of their names, so that nothing depends on who came first."""
        return [self.state.members[name] for name in sorted(self.state.members)]

    def reported(self) -> str:
        """What the agents said is wrong, each with its name; for people."""
        notes = [m.note if m.note.startswith(m.name) else f"{m.name}: {m.note}" for m in self.members() if m.note]
        return "; ".join(notes)

    def update(self, **changes: Any) -> None:
        """Change fields of the run itself."""
        self.state = self.state.model_copy(update=changes)

    def to(self, phase: Phase) -> None:
        """Go to another phase."""
        self.state = self.state.to(phase, self.now)

    def end_all(self, reason: str) -> None:
        """Tell every agent that the run is over."""
        for member in self.members():
            self.do(Send(member.name, EndTask(run=self.state.run, reason=reason[:1000])))

    def fail(self, reason: str, *, nobody_came: bool = False) -> None:
        """End the run with a reason; `nobody_came`: only for want of agents, which the exit code then tells."""
        self.update(note=reason, failure="not-enough-agents" if nobody_came else "failed")
        self.close("failed", "run-failed", reason, f"the run failed: {reason}")

    def close(self, phase: Phase, kind: str, text: str, farewell: str) -> None:
        """End the run early; the record of a round that waited for its metric is written without one."""
        if self.state.pending is not None:
            self.do(SaveRound(self.state.pending, None))
            self.update(pending=None)
        self.to(phase)
        self.note(kind, text)
        self.end_all(farewell)
