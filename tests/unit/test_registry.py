"""Who is there: presence and profiles as they may come, also late, twice, out of order, and from two of one name."""

from dataclasses import replace
from typing import Literal

import pytest
from run_support import device

from fedpipe_coordinator.registry import Entry, LetIn, Registry, Turned, judge
from fedpipe_coordinator.runs.run_events import AgentOffline, AgentOnline
from fedpipe_wire.agent_messages import Presence


def _online(session: str, instance: str = "") -> Presence:
    return Presence(state="online", session=session, instance=instance)


def _offline(session: str, instance: str = "") -> Presence:
    return Presence(state="offline", session=session, instance=instance)


NOBODY = Entry()
LIVES = Entry(online=True, session="old", instance="disk-1")
NAMELESS = Entry(online=True, session="old")
DOUBTED = replace(LIVES, doubted=True)
LEFT = replace(LIVES, online=False)


@pytest.mark.parametrize(
    ("before", "heard", "verdict"),
    [
        (NOBODY, _online("new", "disk-1"), "let in"),
        (NOBODY, _offline("new"), "nothing"),
        (LIVES, _online("old", "disk-1"), "let in"),
        (LIVES, _online("new", "disk-1"), "let in"),
        (LIVES, _online("new", "disk-2"), "turned away"),
        (LIVES, _online("new"), "turned away"),
        (NAMELESS, _online("new"), "turned away"),  # no name is nobody's name
        (NAMELESS, _online("old"), "let in"),
        (LIVES, _offline("old", "disk-1"), "offline"),
        (LIVES, _offline("new", "disk-2"), "turned away"),
        (LIVES, _offline("older", "disk-1"), "turned away"),
        (DOUBTED, _online("new", "disk-2"), "let in"),
        (DOUBTED, _offline("old"), "offline"),
        (LEFT, _online("new", "disk-2"), "let in"),
        (LEFT, _offline("old"), "nothing"),
        (LEFT, _offline("new", "disk-2"), "nothing"),
    ],
)
def test_one_session_at_a_time_is_the_agent_of_a_name(
    before: Entry, heard: Presence, verdict: Literal["let in", "turned away", "offline", "nothing"]
) -> None:
    after, found = judge("a", before, heard)
    match found:
        case LetIn(session, news):
            assert verdict == "let in"
            assert (session, news) == (heard.session, AgentOnline("a", heard.session))
            assert (after.online, after.session, after.instance) == (True, heard.session, heard.instance)
            assert not after.doubted
        case Turned(session, reason, _):
            assert verdict == "turned away"
            assert session == (heard.session if heard.state == "online" else "")
            assert heard.session in reason
            assert before.session in reason
            assert "a name of its own" in reason
            assert (after.online, after.session, after.instance) == (True, before.session, before.instance)
        case AgentOffline(agent):
            assert verdict == "offline"
            assert agent == "a"
            assert not after.online
        case None:
            assert verdict == "nothing"
            assert not after.online


def test_a_session_is_turned_away_each_time_and_told_to_people_once() -> None:
    registry = Registry({"a": device("a")})
    registry.presence("a", _online("1" * 32, "disk-1"))
    verdicts = [registry.presence("a", _online(session * 32, "disk-2")) for session in "2232"]
    assert [verdict.first for verdict in verdicts if isinstance(verdict, Turned)] == [True, False, True, False]
    (first, second) = registry.describe()["a"]["turned_away"]
    assert "11111111, " in first
    assert "1" * 9 not in first
    assert "22222222 asks" in first
    assert "33333333 asks" in second
    # The one that lives says so again each time that another asks.
    assert isinstance(registry.presence("a", _online("1" * 32, "disk-1")), LetIn)
    again = registry.presence("a", _online("2" * 32, "disk-2"))
    assert isinstance(again, Turned)
    assert not again.first
    assert registry.describe()["a"]["turned_away"] == [first, second]
    registry.presence("a", _offline("1" * 32))
    assert isinstance(registry.presence("a", _online("2" * 32, "disk-2")), LetIn)
    assert registry.describe()["a"]["turned_away"] == []


def test_the_will_of_a_former_session_does_not_end_the_present_one() -> None:
    registry = Registry({})
    registry.presence("a", _online("1", "disk"))
    registry.presence("a", _online("2", "disk"))
    verdict = registry.presence("a", _offline("1", "disk"))
    assert isinstance(verdict, Turned)
    assert (verdict.session, verdict.first) == ("", False)
    assert registry.online() == 1


def test_an_agent_that_connects_anew_counts_as_news_for_the_broker_may_have_lost_what_was_sent() -> None:
    registry = Registry({})
    for _ in range(2):
        assert registry.presence("a", _online("1")) == LetIn("1", AgentOnline("a", "1"))


def test_after_a_reconnection_the_next_word_of_any_session_is_believed() -> None:
    registry = Registry({"a": device("a")})
    registry.presence("a", _online("1", "disk-1"))
    assert registry.reconnected(resumed=True) == []
    assert registry.eligible("words") == [AgentOnline("a", "1")]
    assert isinstance(registry.presence("a", _online("2", "disk-2")), LetIn)
    assert isinstance(registry.presence("a", _online("3", "disk-3")), Turned)


def test_a_broker_that_lost_its_state_leaves_nobody_there_until_they_say_so() -> None:
    registry = Registry({})
    for name in ("b", "a", "c"):
        registry.presence(name, _online("1"))
    registry.presence("c", _offline("1"))
    assert registry.reconnected(resumed=False) == [AgentOffline("a"), AgentOffline("b")]
    assert registry.online() == 0
    assert registry.presence("a", _online("1")) == LetIn("1", AgentOnline("a", "1"))
    assert registry.reconnected(resumed=False) == [AgentOffline("a")]


def test_an_agent_known_only_from_the_store_is_not_there() -> None:
    registry = Registry({"a": device("a")})
    assert registry.eligible("words") == []
    assert registry.presence("a", _offline("1")) is None
    registry.presence("a", _online("2"))
    assert registry.eligible("words") == [AgentOnline("a", "2")]


def test_the_first_profile_and_another_dataset_make_an_agent_eligible() -> None:
    registry = Registry({})
    registry.presence("a", _online("1"))
    assert registry.eligible("words") == []
    assert registry.profile("a", device("a", datasets=("other",))) == AgentOnline("a", "1")
    assert registry.eligible("words") == []
    assert registry.profile("a", device("a")) == AgentOnline("a", "1")
    assert registry.profile("a", device("a", versions={"torch": "9"})) is None
    assert registry.eligible("words") == [AgentOnline("a", "1")]


def test_a_profile_of_an_agent_that_is_away_waits_for_it() -> None:
    registry = Registry({})
    assert registry.profile("a", device("a")) is None
    assert registry.profiles() == {"a": device("a")}
    assert registry.presence("a", _online("1")) == LetIn("1", AgentOnline("a", "1"))


def test_eligible_agents_come_in_the_order_of_their_names() -> None:
    registry = Registry({})
    for name in ("c", "a", "b"):
        registry.presence(name, _online("1"))
        registry.profile(name, device(name))
    assert [each.agent for each in registry.eligible("words")] == ["a", "b", "c"]
    assert list(registry.describe()) == ["a", "b", "c"]
    assert not registry.has_dataset("nobody", "words")
