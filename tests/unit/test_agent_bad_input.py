"""What an agent must bear: messages that are wrong, a full disk, another agent of its name. It loses nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from agent_desk import AGENT, TOPICS, Desk
from agent_in_process import Machine, new_machine, use_stub_trainer
from run_support import RUN, name_of
from small_disk import fill, small_disk

from fedpipe_agent.admission import PATIENCE_S
from fedpipe_agent.errors import StateFolderError, TurnedAwayError
from fedpipe_agent.trainer_protocol import Request, TrainRequest
from fedpipe_agent.trainer_seat import TrainerSeat
from fedpipe_wire import envelope
from fedpipe_wire.agent_messages import Failed, Presence
from fedpipe_wire.coordinator_messages import Ack, BlobRequest, RunState, TurnedAway, Welcome
from fedpipe_wire.messages import encode

GOOD = envelope.Envelope(1, "m", 900).properties()
UNKNOWN = name_of("nobody has this")


@pytest.fixture(autouse=True)
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_stub_trainer(tmp_path, monkeypatch)


def _pump(machine: Machine, desk: Desk, until: Callable[[], object], limit: int = 2000) -> None:
    for _ in range(limit):
        if until():
            return
        moved = machine.pump()
        if not (desk.pump() or moved):
            machine.wait()
    raise AssertionError(machine.logged[-5:])


# --- messages ---------------------------------------------------------------------------------------------------


def _offered(desk: Desk) -> str:
    return next(iter(desk.offered))


MESSAGES: dict[str, tuple[str, Callable[[Desk], bytes], dict[str, str], str]] = {
    "an ack for an unknown blob": (
        "ack",
        lambda _: encode(Ack(run=RUN, round=1, sha256=UNKNOWN, accepted=True)),
        GOOD,
        "no such update is in the outbox",
    ),
    "an ack for another round": (
        "ack",
        lambda desk: encode(Ack(run=RUN, round=9, sha256=_offered(desk), accepted=True)),
        GOOD,
        "no such update is in the outbox",
    ),
    "a request for an unknown blob": (
        "blob",
        lambda _: encode(BlobRequest(sha256=UNKNOWN, bitmap="AQ==")),
        GOOD,
        "was asked for and is not offered here",
    ),
    "a bitmap of the wrong length": (
        "blob",
        lambda desk: encode(BlobRequest(sha256=_offered(desk), bitmap="AQEBAQEBAQE=")),
        GOOD,
        "refused blob-request",
    ),
    "a message of a future schema": (
        "task",
        lambda desk: encode(desk.task(2)),
        envelope.Envelope(7, "m", 900).properties(),
        "message of schema 7, this version reads schema 1: upgrade the older side",
    ),
    "no envelope": ("task", lambda desk: encode(desk.task(2)), {}, "packet without user property v, id, n"),
    "not JSON": ("task", lambda _: b"{", GOOD, "malformed message"),
    "a message on another's channel": ("ack", lambda desk: encode(desk.task(2)), GOOD, "it belongs on 'task'"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_wrong_message_is_refused_in_the_log_and_what_is_offered_stays(tmp_path: Path, name: str) -> None:
    channel, payload, properties, told = MESSAGES[name]
    machine, desk = new_machine(tmp_path / "machine", acknowledges=False)
    machine.start()
    _pump(machine, desk, lambda: desk.stored)
    before = machine.memory
    desk.transport.publish(TOPICS.down(AGENT, channel), payload(desk), properties=properties)
    _pump(machine, desk, lambda: any(told in line for line in machine.logged))
    assert machine.memory == before
    assert [trained.update.sha256 for trained in machine.memory.outbox] == [_offered(desk)]
    assert (machine.state.blobs / _offered(desk)).exists()
    desk.acknowledges = True
    machine.kill()
    machine.run(desk)  # what nobody acknowledged is offered again
    machine.kill()
    assert len(desk.taken) == desk.rounds


# --- before it is let in ----------------------------------------------------------------------------------------


def _never(presence: Presence) -> TurnedAway:
    return TurnedAway(session="somebody-else" if presence.state == "offline" else presence.session, reason="one lives")


def _everything(desk: Desk) -> None:
    """Whatever a coordinator may say."""
    for message in (desk.task(1), Ack(run=RUN, round=1, sha256=UNKNOWN, accepted=False)):
        desk.say(message)
    desk.say(BlobRequest(sha256=UNKNOWN, bitmap="AQ=="))
    state = encode(RunState(run=RUN, state="training", round=1, adapter=desk.adapter))
    desk.transport.publish(TOPICS.broadcast("run"), state, properties=GOOD)


def test_a_session_that_is_turned_away_says_nothing_but_its_presence_and_ends_without_a_word(tmp_path: Path) -> None:
    machine, desk = new_machine(tmp_path / "machine", lets_in=_never)
    machine.start()
    before = machine.memory
    began = machine.now

    def until_the_end() -> None:
        while machine.now < began + 2 * PATIENCE_S:
            _everything(desk)
            machine.pump()
            desk.pump()
            machine.now += 1.0

    with pytest.raises(TurnedAwayError, match="another agent of the name 'a' works for this federation"):
        until_the_end()
    assert PATIENCE_S <= machine.now - began <= PATIENCE_S + 1.0
    assert machine.memory == before
    machine.close()
    desk.pump()
    assert {(type(message), getattr(message, "state", "")) for message in desk.heard} == {(Presence, "online")}
    assert len([line for line in machine.logged if "does not let this agent in: one lives" in line]) == 1


def test_a_session_that_is_let_in_later_does_what_it_was_asked_meanwhile(tmp_path: Path) -> None:
    machine, desk = new_machine(tmp_path / "machine", lets_in=_never)
    machine.start()
    _pump(machine, desk, lambda: machine.now > 1012.0)
    desk.lets_in = lambda presence: Welcome(session=presence.session)
    machine.run(desk)
    assert len(desk.taken) == desk.rounds
    # somebody else's word on the topic that both hear: what the broker keeps must be the living one's
    said = len(desk.presences)
    desk.say(TurnedAway(session="somebody-else", reason="one lives"))
    _pump(machine, desk, lambda: len(desk.presences) > said)
    machine.close()
    desk.pump()
    assert [presence.state for presence in desk.presences[said:]] == ["online", "offline"]


# --- the disk ---------------------------------------------------------------------------------------------------

RESERVE_MIB = 64
"""A transfer leaves so much free."""


def _undisturbed(folder: Path) -> dict[int, str]:
    machine, desk = new_machine(folder)
    machine.run(desk)
    machine.kill()
    return desk.taken


def test_an_adapter_that_has_no_room_is_waited_for_and_with_room_the_round_goes_on(tmp_path: Path) -> None:
    calm = _undisturbed(tmp_path / "calm")
    machine, desk = new_machine(tmp_path / "machine")
    with small_disk(tmp_path / "machine" / "state", RESERVE_MIB + 4) as disk:
        filler = fill(disk, but_bytes=RESERVE_MIB << 20)
        machine.start()
        began = machine.now
        _pump(machine, desk, lambda: machine.now > began + 40.0)
        filler.unlink()
        machine.run(desk)
        machine.kill()
    assert not [m for m in desk.heard if isinstance(m, Failed)]
    assert len([line for line in machine.logged if "is asked for every 10 s" in line and "make room" in line]) == 1
    assert desk.taken == calm


def test_an_adapter_that_never_has_room_is_a_failed_round_before_the_round_is_over(tmp_path: Path) -> None:
    calm = _undisturbed(tmp_path / "calm")
    machine, desk = new_machine(tmp_path / "machine")
    with small_disk(tmp_path / "machine" / "state", RESERVE_MIB + 4) as disk:
        filler = fill(disk, but_bytes=RESERVE_MIB << 20)
        machine.start()
        began, deadline_s = machine.now, desk.task(1).plan.deadline_s
        _pump(machine, desk, lambda: [m for m in desk.heard if isinstance(m, Failed)])
        assert 0.9 * deadline_s < machine.now - began < deadline_s
        (failed,) = (m for m in desk.heard if isinstance(m, Failed))
        assert failed.kind == "transfer"
        assert "make room" in failed.message
        filler.unlink()
        desk.say(desk.task(1).model_copy(update={"attempt": 1}))
        machine.run(desk)
        machine.kill()
    assert desk.taken == calm


def _at_training(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something once, when the trainer is asked to train."""
    ask = TrainerSeat.ask
    done: list[object] = []

    def hooked(seat: TrainerSeat, request: Request) -> None:
        if isinstance(request, TrainRequest) and not done:
            done.append(act())
        ask(seat, request)

    monkeypatch.setattr(TrainerSeat, "ask", hooked)


def test_an_update_that_has_no_room_is_a_failed_round_and_the_agent_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = _undisturbed(tmp_path / "calm")
    machine, desk = new_machine(tmp_path / "machine")
    (machine.folder / "state").mkdir()
    filled: list[Path] = []
    with small_disk(machine.folder / "state" / "blobs", RESERVE_MIB + 4) as disk:
        _at_training(monkeypatch, lambda: filled.append(fill(disk)))
        machine.start()
        _pump(machine, desk, lambda: [m for m in desk.heard if isinstance(m, Failed)])
        (failed,) = (m for m in desk.heard if isinstance(m, Failed))
        assert (failed.kind, failed.round) == ("internal", 1)
        assert "the update cannot be kept on this agent's disk" in failed.message
        assert "make room" in failed.message
        assert not machine.memory.outbox
        filled[0].unlink()
        desk.say(desk.task(1).model_copy(update={"attempt": 1}))
        machine.run(desk)
        machine.kill()
    assert desk.taken == calm


def test_a_journal_that_has_no_room_ends_the_agent_and_with_room_it_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = _undisturbed(tmp_path / "calm")
    machine, desk = new_machine(tmp_path / "machine")
    filled: list[Path] = []
    with small_disk(machine.folder / "state", RESERVE_MIB + 4) as disk:
        _at_training(monkeypatch, lambda: filled.append(fill(disk)))
        machine.start()
        # the journal, or the record of what leaves: whichever is written first
        with pytest.raises(StateFolderError, match=r"(journal\.db|folder .*) cannot be used.*[mM]ake room"):
            _pump(machine, desk, lambda: False)
        machine.kill()
        filled[0].unlink()
        machine.run(desk)
        machine.kill()
    assert desk.taken == calm
    assert set(desk.stored.values()) == {1}
