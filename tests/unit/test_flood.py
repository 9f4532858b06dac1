"""An agent that sends without end is not listened to for as long, and costs the others nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from office import Office
from run_support import device

from fedpipe_coordinator.audit.pace import BURST, MOST_NAMES, PER_SECOND, Pace
from fedpipe_profiles.device import DeviceProfile
from fedpipe_wire.agent_messages import Presence, Profile


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    office.stop()


@given(st.lists(st.tuples(st.integers(1, 700), st.floats(0, 30)), max_size=12))
def test_no_more_than_the_burst_and_the_rate_are_let_in(bursts: list[tuple[int, float]]) -> None:
    clock = Clock()
    pace, let_in, began = Pace(clock), 0, clock.now
    for count, pause in bursts:
        let_in += sum(pace.allows("a") for _ in range(count))
        assert let_in <= BURST + PER_SECOND * (clock.now - began) + 1e-6
        clock.now += pause
    assert pace.allows("b")


def test_who_keeps_the_rate_is_always_heard() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(5 * BURST):
        assert pace.allows("a")
        clock.now += 1 / PER_SECOND


def test_names_that_nobody_has_fill_no_memory() -> None:
    pace = Pace(Clock())
    assert all(pace.allows(f"agent-{n}") for n in range(3 * MOST_NAMES))
    assert len(pace._buckets) <= MOST_NAMES


def test_a_flood_is_refused_counted_and_over_when_it_ends(office: Office) -> None:
    clock = Clock()
    office.service._exchange._pace = Pace(clock)
    office.say(Profile(profile=device("a")))
    office.say(Presence(state="online", session="1"))
    for _ in range(BURST + 50):
        office.say(Presence(state="online", session="1"))
    refused = office.service._exchange.refusals
    assert refused.counts["flood"] == 52
    told = [line for line in office.said if "(flood)" in line]
    assert 1 <= len(told) <= 5
    office.say(Presence(state="offline", session="1"))
    assert office.service.registry.online() == 1
    clock.now += 1.0
    office.say(Presence(state="offline", session="1"))
    assert office.service.registry.online() == 0


def test_a_profile_that_is_stored_is_not_written_again(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[DeviceProfile] = []
    save = office.store.save_profile

    def saving(profile: DeviceProfile) -> None:
        written.append(profile)
        save(profile)

    monkeypatch.setattr(office.store, "save_profile", saving)
    for _ in range(5):
        office.say(Profile(profile=device("a")))
    assert len(written) == 1
    office.say(Profile(profile=device("a").model_copy(update={"datasets": ()})))
    assert [len(profile.datasets) for profile in office.store.profiles().values()] == [0]
    assert len(written) == 2
