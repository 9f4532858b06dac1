"""Who is there: presence and profiles as they may come, also late, twice and out of order."""

from run_support import device

from fedpipe_coordinator.registry import Registry
from fedpipe_coordinator.run_events import AgentOffline, AgentOnline
from fedpipe_wire.messages import Presence


def _online(session: str) -> Presence:
    return Presence(state="online", session=session)


def _offline(session: str) -> Presence:
    return Presence(state="offline", session=session)


def test_a_session_begins_and_ends() -> None:
    registry = Registry({})
    assert registry.presence("a", _online("1")) == AgentOnline("a", "1")
    assert registry.online() == 1
    assert registry.presence("a", _offline("1")) == AgentOffline("a")
    assert registry.presence("a", _offline("1")) is None
    assert registry.online() == 0


def test_the_will_of_a_former_session_does_not_end_the_present_one() -> None:
    registry = Registry({})
    registry.presence("a", _online("1"))
    assert registry.presence("a", _online("2")) == AgentOnline("a", "2")
    assert registry.presence("a", _offline("1")) is None
    assert registry.online() == 1


def test_an_agent_that_connects_anew_counts_as_news_for_the_broker_may_have_lost_what_was_sent() -> None:
    registry = Registry({})
    registry.presence("a", _online("1"))
    assert registry.presence("a", _online("1")) == AgentOnline("a", "1")


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
    assert registry.presence("a", _online("1")) == AgentOnline("a", "1")


def test_eligible_agents_come_in_the_order_of_their_names() -> None:
    registry = Registry({})
    for name in ("c", "a", "b"):
        registry.presence(name, _online("1"))
        registry.profile(name, device(name))
    assert [each.agent for each in registry.eligible("words")] == ["a", "b", "c"]
    assert list(registry.describe()) == ["a", "b", "c"]
    assert not registry.has_dataset("nobody", "words")
