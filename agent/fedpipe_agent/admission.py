"""Who may act: the coordinator lets in one session of each agent name, and this machine keeps to its word.

Pure: `(state, event, now) -> (state, actions)`. A session that was not let in, or was turned away, does nothing but
ask: of two machines with one name, the older one works on undisturbed, and the newer one ends after a while.
"""

from dataclasses import dataclass, replace
from typing import Literal

from fedpipe_wire.coordinator_messages import TurnedAway, Welcome

ASK_AGAIN_S = 5.0
"""How often a session that was turned away asks again."""
UNANSWERED_S = 30.0
"""How often a session asks again that has heard nothing: the coordinator may be down for long."""
PATIENCE_S = 60.0
"""How long a session that is turned away goes on asking. A session that died without a word is noticed sooner."""

Standing = Literal["away", "asking", "welcome", "turned-away", "over"]
TRANSITIONS: frozenset[tuple[Standing, Standing]] = frozenset(
    {
        ("away", "asking"),
        ("asking", "welcome"),
        ("asking", "turned-away"),
        ("asking", "away"),
        ("welcome", "turned-away"),
        ("welcome", "away"),
        ("turned-away", "welcome"),
        ("turned-away", "away"),
        ("turned-away", "over"),
        ("asking", "over"),  # it was turned away before its connection was lost
    }
)


@dataclass(frozen=True, slots=True)
class Admission:
    """How this session stands with the coordinator.

    Attributes:
        session: This process's own.
        ask_at: When to ask again; monotonic seconds.
        turned_at: When it was turned away first, since it was last let in; None if it was not.
    """

    session: str
    standing: Standing = "away"
    ask_at: float = 0.0
    turned_at: float | None = None


@dataclass(frozen=True, slots=True)
class Up:
    """The connection to the broker is up."""


@dataclass(frozen=True, slots=True)
class Down:
    """The connection to the broker is lost."""


@dataclass(frozen=True, slots=True)
class Woke:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class SayOnline:
    """Publish this session's presence: it asks to be let in, and is what the broker keeps."""


@dataclass(frozen=True, slots=True)
class LetIn:
    """Act from now on, and say again what must not be lost."""


@dataclass(frozen=True, slots=True)
class Stand:
    """Act no more; `reason` is for the owner of this machine."""

    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End this process, without a word to the broker."""


AdmissionEvent = Up | Down | Woke | Welcome | TurnedAway
AdmissionAction = SayOnline | LetIn | Stand | GiveUp
Outcome = tuple[Admission, tuple[AdmissionAction, ...]]


def step(state: Admission, event: AdmissionEvent, now: float) -> Outcome:
    """How the session stands after an event, and what is to be done; `now` in monotonic seconds."""
    if state.standing == "over":
        return state, ()
    match event:
        case Up():
            return replace(_become(_become(state, "away"), "asking"), ask_at=now + UNANSWERED_S), (SayOnline(),)
        case Down():
            return _become(state, "away"), ()
        case _ if state.standing == "away":
            return state, ()  # a word from before the connection was lost
        case Woke():
            return _woke(state, now)
        case Welcome() | TurnedAway() if event.session != state.session:
            # What the broker keeps as this agent's presence is now another's.
            return state, (SayOnline(),) if state.standing == "welcome" else ()
        case Welcome():
            return replace(_become(state, "welcome"), turned_at=None), (LetIn(),)
        case TurnedAway(reason=reason):
            return _turned_away(state, reason, now)


def _become(state: Admission, standing: Standing) -> Admission:
    assert state.standing == standing or (state.standing, standing) in TRANSITIONS, (state, standing)
    return replace(state, standing=standing)


def _turned_away(state: Admission, reason: str, now: float) -> Outcome:
    told = (Stand(reason),) if state.turned_at is None else ()
    turned_at = now if state.turned_at is None else state.turned_at
    ask_at = state.ask_at if state.standing == "turned-away" else now + ASK_AGAIN_S
    return replace(_become(state, "turned-away"), turned_at=turned_at, ask_at=ask_at), told


def _woke(state: Admission, now: float) -> Outcome:
    if state.turned_at is not None and now - state.turned_at >= PATIENCE_S:
        return _become(state, "over"), (GiveUp(),)
    if state.standing == "welcome" or now < state.ask_at:
        return state, ()
    wait_s = ASK_AGAIN_S if state.standing == "turned-away" else UNANSWERED_S
    return replace(state, ask_at=now + wait_s), (SayOnline(),)


def wake_at(state: Admission) -> float | None:
    """When time alone changes something."""
    return state.ask_at if state.standing in ("asking", "turned-away") else None


def turned_away_text(reason: str) -> str:
    """What the owner of this machine is told, once."""
    return (
        f"the coordinator does not let this agent in: {reason}. It does nothing and asks again for {PATIENCE_S:.0f} s. "
        "Stop the other one, or give this one a name of its own"
    )


def given_up_text(name: str) -> str:
    """What this process ends with."""
    return (
        f"another agent of the name {name!r} works for this federation, and did so for {PATIENCE_S:.0f} s: stop it, or "
        "give this one another 'name' and another 'state' folder in agent.toml"
    )
