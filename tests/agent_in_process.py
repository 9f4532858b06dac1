"""An agent's daemon within the test's process: real disk, journal and trainer processes, a clock that the test moves.

Owns starting it, letting it act, and killing it: only its disk is left then.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from agent_desk import AGENT, TOPICS, Desk, write_answers
from agent_support import setup
from run_support import device

from fedpipe_agent import trainer_process
from fedpipe_agent.audit import AuditRecord
from fedpipe_agent.daemon import Daemon
from fedpipe_agent.identity import Identity
from fedpipe_agent.memory import Memory
from fedpipe_agent.passport import Passport, Unsigned
from fedpipe_agent.seals import Seals
from fedpipe_agent.state_folder import StateFolder
from fedpipe_wire.memory import MemoryBroker, MemoryTransport

STUB = Path(__file__).parent / "stub_trainer.py"
LIMIT = 4000


class KilledError(BaseException):
    """Nothing handles it."""


@dataclass
class Machine:
    """One machine: a clock that goes on while nothing happens, a disk, and at most one agent."""

    folder: Path
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    now: float = 1000.0
    starts: int = 0
    logged: list[str] = field(default_factory=list)
    passport: Callable[[], Passport] = Unsigned
    daemon: Daemon | None = None

    def clock(self) -> float:
        return self.now

    def start(self) -> None:
        self.starts += 1
        self.state = StateFolder(self.folder / "state").__enter__()
        identity = Identity(AGENT, TOPICS, f"session-{self.starts}", self.state.instance)
        seals = Seals(identity, self.state.next_counter, self.passport())
        self.transport = MemoryTransport(self.broker, identity.client_id, will=seals.will)
        mine = setup(AGENT, profile=device(AGENT), state=self.state.path)
        self.daemon = Daemon(
            identity,
            self.transport,
            self.state,
            mine,
            self.logged.append,
            seals=seals,
            record=AuditRecord(self.state.path, 1 << 20, AGENT),
            clock=self.clock,
            oom_kills=lambda: 0,
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

    @property
    def memory(self) -> Memory:
        """What the agent would still know after a kill."""
        saved = self.state.journal.load()
        return Memory() if saved is None else saved[0]

    def wait(self) -> None:
        """Let time pass, for the trainer process as well."""
        self.now += 0.1
        time.sleep(0.002)

    def close(self) -> None:
        """End as the daemon does by itself."""
        assert self.daemon is not None
        self.daemon._close()
        self.state.__exit__(None, None, None)
        self.daemon = None

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
                self.wait()
        raise AssertionError(f"round {desk.round} does not end: {self.logged[-5:]}")


def use_stub_trainer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have the stand-in of the trainer started; the file with its answers."""
    answers = write_answers(folder / "answers.json")
    command = (sys.executable, "-I", "-S", str(STUB), str(answers))
    monkeypatch.setattr(trainer_process, "TRAINER_COMMAND", command)
    return answers


def new_machine(folder: Path, **of_desk: Any) -> tuple[Machine, Desk]:
    """A machine and its coordinator's desk, each with its disk in `folder`."""
    folder.mkdir(exist_ok=True)
    machine = Machine(folder)
    return machine, Desk(MemoryTransport(machine.broker, "desk"), folder / "desk", machine.clock, **of_desk)
