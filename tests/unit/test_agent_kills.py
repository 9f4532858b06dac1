"""An agent that dies between any two of its writes goes on as if nothing had happened: the same updates, once each.

The journal, the blobs and the trainer are real; the broker is in this process, and a kill is an exception that nobody
handles, after which only the disk is left.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from agent_desk import AGENT, TOPICS, Desk, write_answers
from agent_support import setup
from run_support import device

from fedpipe_agent import trainer_process
from fedpipe_agent.daemon import Daemon
from fedpipe_agent.identity import Identity
from fedpipe_agent.journal import Journal
from fedpipe_agent.mouth import Mouth
from fedpipe_agent.shelf import Shelf
from fedpipe_agent.state_folder import StateFolder
from fedpipe_agent.trainer_seat import TrainerSeat
from fedpipe_wire.memory import MemoryBroker, MemoryTransport
from fedpipe_wire.messages import Evaluated, Trained

STUB = Path(__file__).parents[1] / "stub_trainer.py"
HOOKS: tuple[tuple[type, str], ...] = (
    (Journal, "save"),
    (Mouth, "_publish"),
    (Shelf, "name"),
    (Shelf, "_move"),
    (Shelf, "shelve"),
    (Shelf, "drop"),
    (Shelf, "tidy"),
    (TrainerSeat, "ask"),
)
"""Before and after each of these, a kill may come."""
LIMIT = 4000


class KilledError(BaseException):
    """Nothing handles it."""


@dataclass
class Hooks:
    """Counts the hooks that are passed, and kills at one of them, once."""

    kill_at: int | None = None
    passed: list[str] = field(default_factory=list)

    def passing(self, name: str) -> None:
        self.passed.append(name)
        if len(self.passed) - 1 == self.kill_at:
            raise KilledError(name)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def hooked(*arguments: Any, **named: Any) -> Any:
            self.passing(f"before {name}")
            result = function(*arguments, **named)
            self.passing(f"after {name}")
            return result

        return hooked


@dataclass
class Machine:
    """One machine: a clock that goes on while nothing happens, a disk, and at most one agent."""

    folder: Path
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    now: float = 1000.0
    starts: int = 0
    logged: list[str] = field(default_factory=list)
    daemon: Daemon | None = None

    def clock(self) -> float:
        return self.now

    def start(self) -> None:
        self.starts += 1
        self.state = StateFolder(self.folder / "state").__enter__()
        identity = Identity(AGENT, TOPICS, f"session-{self.starts}", self.state.instance)
        self.transport = MemoryTransport(self.broker, identity.client_id, will=identity.will())
        mine = setup(AGENT, profile=device(AGENT), state=self.state.path)
        self.daemon = Daemon(
            identity, self.transport, self.state, mine, self.logged.append, clock=self.clock, oom_kills=lambda: 0
        )
        self.daemon._remember()
        self.transport.subscribe(TOPICS.all_down(AGENT))
        self.transport.subscribe(TOPICS.all_broadcast())
        self.transport.start()

    def pump(self) -> bool:
        assert self.daemon is not None
        self.daemon._tick(self.now)
        moved = False
        while True:
            try:
                event = self.transport.events.get_nowait()
            except Empty:
                return moved
            moved = True
            self.daemon._handle(event)

    def kill(self) -> None:
        assert self.daemon is not None
        self.transport.kill()
        self.daemon._seat.end()
        self.daemon._shelf.receiver.close()
        self.state.__exit__(None, None, None)
        self.daemon = None

    def run(self, desk: Desk) -> None:
        """Until the desk has all it asked for, and the agent knows it; killed, it is started again."""
        for _ in range(LIMIT):
            try:
                if self.daemon is None:
                    self.start()
                moved = self.pump()
            except KilledError:
                self.kill()
                moved = True
            moved = desk.pump() or moved
            if desk.done and self.daemon and not self.daemon._state.memory.outbox and not moved:
                return
            if not moved:
                self.now += 0.1
                time.sleep(0.002)
        raise AssertionError(f"round {desk.round} does not end: {self.logged[-5:]}")


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    answers = write_answers(tmp_path / "answers.json")
    command = (sys.executable, "-I", "-S", str(STUB), str(answers))
    monkeypatch.setattr(trainer_process, "TRAINER_COMMAND", command)
    return answers


def _hooked(monkeypatch: pytest.MonkeyPatch, hooks: Hooks) -> None:
    for owner, name in HOOKS:
        monkeypatch.setattr(owner, name, hooks.around(f"{owner.__name__}.{name}", getattr(owner, name)))


def _run(folder: Path) -> tuple[Machine, Desk]:
    folder.mkdir()
    machine = Machine(folder)
    desk = Desk(MemoryTransport(machine.broker, "desk"), folder / "desk", machine.clock)
    machine.run(desk)
    machine.kill()
    return machine, desk


def test_a_kill_at_any_of_its_writes_changes_nothing_that_is_taken(
    tmp_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del stub
    calm = Hooks()
    with monkeypatch.context() as patch:
        _hooked(patch, calm)
        _, undisturbed = _run(tmp_path / "calm")
    assert len(undisturbed.taken) == 2
    assert {name.split()[1] for name in calm.passed} == {f"{owner.__name__}.{name}" for owner, name in HOOKS}
    for at, name in enumerate(calm.passed):
        if "_publish" in name and calm.passed[at - 2 : at] == calm.passed[at : at + 2]:
            continue  # one of several that are said at once
        hooks = Hooks(kill_at=at)
        with monkeypatch.context() as patch:
            _hooked(patch, hooks)
            machine, desk = _run(tmp_path / f"killed-{at}")
        where = f"killed at {at}: {name}"
        assert machine.starts == 2, where
        assert desk.taken == undisturbed.taken, where
        assert set(desk.offered) == set(undisturbed.taken.values()), where
        assert set(desk.stored.values()) == {1}, where
        assert len(desk.counters) == len(set(desk.counters)), where
        assert {m.round for m in desk.heard if isinstance(m, Evaluated)} == {1, 2}, where
        left = {path.name for path in (machine.folder / "state" / "blobs").iterdir()}
        assert left <= {desk.adapter.sha256}, where
        assert not list((machine.folder / "state").glob("update*")), where


def test_an_update_is_in_the_journal_and_in_the_outbox_before_it_is_offered(
    tmp_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del stub
    publish, offered = Mouth._publish, []

    def looking(mouth: Mouth, message: Any) -> bool:
        if isinstance(message, Trained):
            offered.append(message)
            saved = machine.state.journal.load()
            assert saved is not None
            assert message in saved[0].outbox
            assert (machine.state.blobs / message.update.sha256).stat().st_size == message.update.size
        return publish(mouth, message)

    monkeypatch.setattr(Mouth, "_publish", looking)
    machine = Machine(tmp_path / "machine")
    (tmp_path / "machine").mkdir()
    desk = Desk(MemoryTransport(machine.broker, "desk"), tmp_path / "desk", machine.clock)
    machine.run(desk)
    machine.kill()
    assert len(offered) >= 2


def test_a_trainer_that_dies_once_leaves_the_same_update_and_nobody_hears_of_it(tmp_path: Path, stub: Path) -> None:
    _, calm = _run(tmp_path / "calm")
    stub.with_suffix(".blows").write_text("1")
    machine, desk = _run(tmp_path / "struck")
    assert desk.taken == calm.taken
    assert any("begun again" in line for line in machine.logged)
    assert {type(message) for message in desk.heard} == {type(message) for message in calm.heard}
