"""An agent that was revoked: the broker will not say that it is gone, and the run goes on without it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from office import Office
from run_support import device, job

from fedpipe_coordinator.runs.run_events import AgentOffline
from fedpipe_wire.agent_messages import Presence, Profile


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    office.say(Profile(profile=device("a")))
    office.say(Presence(state="online", session="1"))
    yield office
    office.stop()


def test_it_is_not_there_any_more_for_anybody(office: Office) -> None:
    run = office.service.submit(job(), None)
    assert office.service.runs[run].members["a"].online
    office.service.post(AgentOffline("a"))
    office.pump()
    assert office.ask(op="agents")["agents"]["a"]["online"] is False
    assert not office.service.runs[run].members["a"].online
    assert office.service.registry.eligible("words") == []


def test_one_that_nobody_heard_of_is_no_trouble(office: Office) -> None:
    office.service.post(AgentOffline("nobody"))
    office.pump()
    assert set(office.ask(op="agents")["agents"]) == {"a"}
