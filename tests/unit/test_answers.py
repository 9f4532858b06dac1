"""Every update that an agent offers is answered, also one that another took the place of, or that its agent gave up."""

import pytest
from run_support import Drive, failed, finish, trained, training

from fedpipe_coordinator.runs.reports import MAX_REPLACED
from fedpipe_coordinator.runs.run_events import Aggregate, StopFetch
from fedpipe_wire.agent_messages import Refused
from fedpipe_wire.coordinator_messages import Ack


def _answers(drive: Drive, agent: str) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = {}
    for ack in drive.asked(agent, Ack):
        found.setdefault(ack.sha256, []).append(ack.accepted)
    return found


def test_an_update_that_another_took_the_place_of_is_declined_when_the_round_is_over() -> None:
    drive = training("a", "b")
    first, second = trained("a", 1, "first"), trained("a", 1)
    drive.hear("a", first)
    drive.hear("a", second)
    assert _answers(drive, "a") == {}, "the first may be the one that its agent holds, and its word be overtaken"
    finish(drive, "a")
    finish(drive, "b")
    assert drive.all(Aggregate)[0].updates["a"] == second.update.sha256
    assert _answers(drive, "a") == {second.update.sha256: [True], first.update.sha256: [False]}
    assert drive.member("a").replaced == ()


def test_the_first_word_said_again_puts_the_first_update_in_its_place_again() -> None:
    drive = training("a", "b")
    first, second = trained("a", 1), trained("a", 1, "second")
    for word in (first, second, first):
        drive.hear("a", word)
    finish(drive, "a")
    finish(drive, "b")
    assert _answers(drive, "a") == {first.update.sha256: [True], second.update.sha256: [False]}


def test_an_agent_that_offers_without_end_is_remembered_by_its_last_offers() -> None:
    drive = training("a", "b")
    offers = [trained("a", 1, n) for n in range(MAX_REPLACED + 3)]
    for offer in offers:
        drive.hear("a", offer)
    assert drive.member("a").replaced == tuple(offers[2:-1])
    assert _answers(drive, "a") == {offer.update.sha256: [False] for offer in offers[:2]}


@pytest.mark.parametrize("word", [failed(1), Refused(run=failed(1).run, round=1, reason="not at night")])
def test_an_update_whose_agent_gives_its_round_up_is_fetched_no_more_and_declined(word: object) -> None:
    drive = training("a", "b")
    offer = trained("a", 1)
    drive.hear("a", offer)
    drive.hear("a", word)
    assert drive.all(StopFetch) == [StopFetch("a", offer.update.sha256)]
    (ack,) = drive.asked("a", Ack)
    assert (ack.sha256, ack.accepted) == (offer.update.sha256, False)
    assert "gave the round up" in ack.reason


def test_an_update_that_was_taken_stays_taken_whatever_its_agent_says() -> None:
    drive = training("a", "b", number=1)
    finish(drive, "a")
    finish(drive, "b")
    drive.aggregate()
    drive.hear("a", failed(2))
    assert _answers(drive, "a") == {trained("a", 1).update.sha256: [True]}
