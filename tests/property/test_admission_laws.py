"""Laws of being let in: over any sequence of words and silences, one session of a name acts, and the other one ends."""

from dataclasses import dataclass, field
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe_agent import admission as ad
from fedpipe_wire.coordinator_messages import TurnedAway, Welcome

MINE, OTHER = "mine", "other"
WORDS = st.sampled_from(
    (
        ad.Up(),
        ad.Down(),
        *(ad.Woke(),) * 4,
        Welcome(session=MINE),
        Welcome(session=OTHER),
        *(TurnedAway(session=MINE, reason="another lives"),) * 2,
        TurnedAway(session=OTHER, reason="another lives"),
    )
)
HISTORIES = st.lists(st.tuples(WORDS, st.sampled_from((0.0, 0.5, 5.0, 31.0))), max_size=60)


@settings(max_examples=400, deadline=None)
@given(history=HISTORIES)
def test_no_history_leaves_the_table_or_lets_anybody_in_but_the_coordinator(
    history: list[tuple[ad.AdmissionEvent, float]],
) -> None:
    state, now = ad.Admission(MINE), 0.0
    let_in = False
    for event, after_s in history:
        now += after_s
        before, (state, actions) = state, ad.step(state, event, now)
        if not isinstance(event, ad.Up):  # it may come without a word of the loss before it
            assert before.standing == state.standing or (before.standing, state.standing) in ad.TRANSITIONS
        if before.standing == "over":
            assert (state, actions) == (before, ())
        if event == Welcome(session=MINE) and before.standing not in ("away", "over"):
            let_in = True
            assert actions == (ad.LetIn(),)
        elif isinstance(event, ad.Up | ad.Down) or event == TurnedAway(session=MINE, reason="another lives"):
            let_in = False
        assert (state.standing == "welcome") == let_in
        if ad.SayOnline() in actions:
            assert state.standing != "away", "nobody hears it"
        if ad.GiveUp() in actions:
            assert state.standing == "over"
            assert isinstance(event, ad.Woke)


@dataclass
class Coordinator:
    """Lets the older of two living sessions in, by their presence; hears and is heard at once by all."""

    living: str | None = None
    said: list[Welcome | TurnedAway] = field(default_factory=list)

    def hears(self, session: str) -> None:
        self.living = self.living or session
        if session == self.living:
            self.said.append(Welcome(session=session))
        else:
            self.said.append(TurnedAway(session=session, reason="another lives"))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 32), dies_at=st.none() | st.integers(0, 300))
def test_of_two_sessions_the_older_acts_until_it_is_gone_and_the_newer_ends_or_follows(
    seed: int, dies_at: int | None
) -> None:
    coordinator, now = Coordinator(), 0.0
    agents = {MINE: ad.Admission(MINE), OTHER: ad.Admission(OTHER)}
    kept = ""  # whose presence the broker keeps

    def let(session: str, event: ad.AdmissionEvent) -> None:
        nonlocal kept
        agents[session], actions = ad.step(agents[session], event, now)
        for action in actions:
            if isinstance(action, ad.SayOnline):
                kept = session
                coordinator.hears(session)

    let(MINE, ad.Up())
    let(OTHER, ad.Up())
    order = Random(seed)
    for number in range(400):
        now += 0.5
        if number == dies_at and agents[OTHER].standing != "over":
            agents[MINE], coordinator.living = ad.Admission(MINE, "over"), None
        for session in (MINE, OTHER) if order.random() < 0.5 else (OTHER, MINE):
            let(session, ad.Woke())
        while coordinator.said:
            word = coordinator.said.pop(0)
            for session in agents:
                let(session, word)
        assert [agent.standing for agent in agents.values()].count("welcome") <= 1
        if agents[MINE].standing == "welcome":
            assert kept == MINE, "the broker keeps the presence of one that was turned away"
    died_s = ad.PATIENCE_S if dies_at is None else 0.5 * dies_at
    if died_s < ad.PATIENCE_S - 2 * ad.ASK_AGAIN_S:
        assert agents[OTHER].standing == "welcome"
    elif died_s >= ad.PATIENCE_S:
        assert agents[OTHER].standing == "over"


def test_the_owner_is_told_once_and_the_end_comes_after_a_minute_of_it() -> None:
    state, told, asked, now = ad.Admission(MINE), 0, 0, 0.0
    state, _ = ad.step(state, ad.Up(), now)
    while state.standing != "over":
        state, actions = ad.step(state, TurnedAway(session=MINE, reason="another lives"), now)
        told += sum(isinstance(action, ad.Stand) for action in actions)
        now += 1.0
        state, actions = ad.step(state, ad.Woke(), now)
        asked += ad.SayOnline() in actions
    assert (told, now) == (1, 60.0)
    assert asked == 11  # every 5 s, and not in the second in which it ends
