"""What is damaged or taken away on an agent's disk: it is found out, told or fetched again, and never believed."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_desk import ADAPTER_BYTES, Desk
from agent_in_process import KilledError, Machine, new_machine, use_stub_trainer

from fedpipe_agent.errors import StateFolderError
from fedpipe_agent.fetching import FETCH_AGAIN_S
from fedpipe_agent.trainer_protocol import Request, TrainRequest
from fedpipe_agent.trainer_seat import TrainerSeat
from fedpipe_wire.agent_messages import BlobMissing, Failed, Presence, Trained
from fedpipe_wire.blob_bits import BlobDiskError
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_receiver import BlobReceiver
from fedpipe_wire.coordinator_messages import TurnedAway, Welcome


@pytest.fixture(autouse=True)
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_stub_trainer(tmp_path, monkeypatch)


@pytest.fixture
def calm(tmp_path: Path) -> dict[int, str]:
    """What is taken where nothing is damaged."""
    machine, desk = new_machine(tmp_path / "calm")
    machine.run(desk)
    machine.kill()
    return desk.taken


def _pump(machine: Machine, desk: Desk | None, until: Callable[[], object]) -> None:
    """Without a desk, the coordinator is silent."""
    for _ in range(2000):
        if until():
            return
        moved = machine.pump()
        if not ((desk is not None and desk.pump()) or moved):
            machine.wait()
    raise AssertionError(machine.logged[-5:])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


SPOILS: dict[str, Callable[[Path], object]] = {
    "a bit is another": _flip,
    "its second chunk is cut short": lambda path: os.truncate(path, 300_000),
    "its first chunk is cut short": lambda path: os.truncate(path, 70_000),
    "it is gone": Path.unlink,
}


# --- updates ----------------------------------------------------------------------------------------------------


def _with_an_update(folder: Path) -> tuple[Machine, Desk, Trained]:
    """It was offered, and the coordinator has not heard of it."""
    machine, desk = new_machine(folder)
    machine.start()
    _pump(machine, desk, lambda: machine.memory.stage == "working")
    _pump(machine, None, lambda: machine.memory.stage == "offered")
    (trained,) = machine.memory.outbox
    return machine, desk, trained


def _failures(desk: Desk) -> list[Failed]:
    return [message for message in desk.heard if isinstance(message, Failed)]


def _is_lost_and_made_anew(machine: Machine, desk: Desk, calm: dict[int, str]) -> None:
    began = machine.now
    _pump(machine, desk, lambda: _failures(desk))
    told = {(failed.kind, failed.round, failed.message[:47]) for failed in _failures(desk)}
    assert told == {("internal", 1, "the update cannot be kept on this agent's disk:")}
    assert machine.now - began < 20.0, "the round's time is over"
    assert not machine.memory.outbox
    assert not [path for path in machine.state.blobs.iterdir() if path.name in calm.values()]
    before = len(_failures(desk))
    desk.say(desk.task(1))  # the same attempt
    _pump(machine, desk, lambda: len(_failures(desk)) > before)
    desk.receiver.cancel(calm[1], "a")
    desk.say(desk.task(1).model_copy(update={"attempt": 1}))
    machine.run(desk)
    machine.kill()
    assert desk.taken == calm
    assert set(desk.stored.values()) == {1}


@pytest.mark.parametrize("spoil", SPOILS)
def test_an_update_that_was_spoiled_while_no_agent_ran_is_told_as_lost_at_once(
    tmp_path: Path, calm: dict[int, str], spoil: str
) -> None:
    machine, desk, trained = _with_an_update(tmp_path / "machine")
    machine.kill()
    SPOILS[spoil](machine.folder / "state" / "blobs" / trained.update.sha256)
    machine.start()
    _is_lost_and_made_anew(machine, desk, calm)
    assert not desk.stored.keys() - calm.values()


@pytest.mark.parametrize("spoil", [name for name in SPOILS if name != "a bit is another"])
def test_an_update_that_is_cut_short_while_it_is_sent_is_told_as_lost_at_once(
    tmp_path: Path, calm: dict[int, str], spoil: str
) -> None:
    machine, desk, trained = _with_an_update(tmp_path / "machine")
    SPOILS[spoil](machine.state.blobs / trained.update.sha256)
    _is_lost_and_made_anew(machine, desk, calm)


def test_an_update_that_lay_in_the_outbox_whole_is_sent_after_a_restart(tmp_path: Path, calm: dict[int, str]) -> None:
    machine, desk, _ = _with_an_update(tmp_path / "machine")
    machine.kill()
    machine.run(desk)
    machine.kill()
    assert desk.taken == calm
    assert not _failures(desk)


# --- adapters ---------------------------------------------------------------------------------------------------


def _at_training(monkeypatch: pytest.MonkeyPatch, act: Callable[[TrainRequest], object]) -> None:
    """Do something whenever the trainer is asked to train."""
    ask = TrainerSeat.ask

    def hooked(seat: TrainerSeat, request: Request) -> None:
        if isinstance(request, TrainRequest):
            act(request)
        ask(seat, request)

    monkeypatch.setattr(TrainerSeat, "ask", hooked)


@pytest.mark.parametrize("spoil", SPOILS)
def test_an_adapter_that_was_spoiled_while_no_agent_ran_is_fetched_again_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calm: dict[int, str], spoil: str
) -> None:
    machine, desk = new_machine(tmp_path / "machine")
    used: list[bytes] = []

    def die_once(request: TrainRequest) -> None:
        used.append(request.adapter.read_bytes())
        if len(used) == 1:
            raise KilledError

    _at_training(monkeypatch, die_once)
    machine.start()
    with pytest.raises(KilledError):
        _pump(machine, desk, lambda: False)
    machine.kill()
    SPOILS[spoil](machine.folder / "state" / "blobs" / desk.adapter.sha256)
    machine.run(desk)
    machine.kill()
    assert used == [ADAPTER_BYTES] * 3
    assert desk.taken == calm


def test_an_adapter_that_is_taken_away_before_it_is_used_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calm: dict[int, str]
) -> None:
    machine, desk = new_machine(tmp_path / "machine")
    open_partial = BlobStore.path
    taken: list[float] = []

    def path(store: BlobStore, sha256: str) -> Path:
        found = open_partial(store, sha256)
        if not taken and sha256 == desk.adapter.sha256 and store is not desk.store and found.exists():
            taken.append(machine.now)
            found.unlink()
        return found

    monkeypatch.setattr(BlobStore, "path", path)
    machine.run(desk)
    machine.kill()
    assert taken
    assert machine.now - taken[0] >= FETCH_AGAIN_S
    assert desk.taken == calm
    assert not _failures(desk)


# --- tasks that wait --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_of_two_tasks_that_waited_for_the_welcome_the_second_is_worked_on(
    tmp_path: Path,
    calm: dict[int, str],
    known: bool,  # noqa: FBT001 - a table's column
) -> None:
    closed = [True]

    def lets_in(presence: Presence) -> Welcome | TurnedAway:
        session = presence.session
        return TurnedAway(session=session, reason="one lives") if closed else Welcome(session=session)

    machine, desk = new_machine(tmp_path / "machine", lets_in=lets_in)
    machine.start()
    # The first names an adapter that is here, whether this process received it or an earlier one; the second another.
    assert machine.daemon is not None
    here = machine.daemon._shelf.store if known else BlobStore(machine.state.blobs)
    old = here.add_bytes(b"the adapter of a round that is over")
    first = desk.task(1).model_copy(update={"adapter": old})
    _pump(machine, desk, lambda: len(desk.presences) > 1)
    desk.say(first)
    desk.say(desk.task(2))
    _pump(machine, desk, lambda: machine.daemon is not None and len(machine.daemon._held) == 2)
    desk.taken[1] = calm[1]  # the round that the first is of is over
    closed.clear()
    machine.run(desk)
    machine.kill()
    assert desk.taken == calm
    assert {m.sha256 for m in desk.heard if isinstance(m, BlobMissing)} == {desk.adapter.sha256}
    assert not _failures(desk)


# --- the folder -------------------------------------------------------------------------------------------------


def _file_for_folder(state: Path) -> None:
    (state / "blobs").write_text("a file, where a folder should be")


def _folder_for_leftover(state: Path) -> None:
    (state / "blobs" / "x.new").mkdir(parents=True)


def _no_number(state: Path) -> None:
    (state / "counter").write_text("-50")


def _huge_number(state: Path) -> None:
    (state / "counter").write_text("9" * 30)


HARM: dict[str, tuple[Callable[[Path], None], str]] = {
    "blobs is a file": (_file_for_folder, "cannot make the folder .*/blobs for blobs: File exists"),
    "a leftover is a folder": (_folder_for_leftover, "cannot remove .*/x.new: Is a directory.*by hand"),
    "a counter below zero": (_no_number, "counter does not hold a number from 0 .*'-50'.*restore the file"),
    "a counter beyond all": (_huge_number, "counter does not hold a number from 0 .*'99999.*restore the file"),
}


def _run(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command does, until something ends it."""
    try:
        machine.start()
        assert machine.daemon is not None
        monkeypatch.setattr(machine.transport, "start", lambda: None)  # it was
        machine.daemon.run()
    finally:
        if hasattr(machine, "state"):
            machine.state.__exit__(None, None, None)


@pytest.mark.parametrize("harm", HARM)
def test_a_state_folder_that_is_harmed_ends_the_agent_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    damage, told = HARM[harm]
    (tmp_path / "state").mkdir()
    damage(tmp_path / "state")
    machine = Machine(tmp_path)
    with pytest.raises(StateFolderError, match=told):
        _run(machine, monkeypatch)


REFUSALS: dict[str, tuple[Exception, str]] = {
    "a read-only disk": (
        OSError(errno.EROFS, "Read-only", "/state/x"),
        r"cannot be used: Read-only \(/state/x\)\. Make",
    ),
    "a broken disk": (OSError(errno.EIO, "Input/output error"), "state cannot be used: Input/output error. Make room"),
    "a blob": (BlobDiskError("cannot read blob 12: make room"), "^cannot read blob 12: make room$"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_disk_that_refuses_what_nobody_foresaw_ends_the_agent_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    error, told = REFUSALS[refusal]

    def refuse(*_: object) -> float:
        raise error

    monkeypatch.setattr(BlobReceiver, "tick", refuse)
    machine = Machine(tmp_path)
    with pytest.raises(StateFolderError, match=told):
        _run(machine, monkeypatch)
