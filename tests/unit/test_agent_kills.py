"""An agent that dies between any two of its writes goes on as if nothing had happened: the same updates, once each.

The journal, the blobs and the trainer are real; the broker is in this process, and a kill is an exception that nobody
handles, after which only the disk is left.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from agent_desk import Desk
from agent_in_process import KilledError, Machine, new_machine, use_stub_trainer

from fedpipe_agent.journal import Journal
from fedpipe_agent.mouth import Mouth
from fedpipe_agent.shelf import Shelf
from fedpipe_agent.trainer_seat import TrainerSeat
from fedpipe_wire.agent_messages import Evaluated, Trained

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


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_stub_trainer(tmp_path, monkeypatch)


def _hooked(monkeypatch: pytest.MonkeyPatch, hooks: Hooks) -> None:
    for owner, name in HOOKS:
        monkeypatch.setattr(owner, name, hooks.around(f"{owner.__name__}.{name}", getattr(owner, name)))


def _run(folder: Path) -> tuple[Machine, Desk]:
    machine, desk = new_machine(folder)
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
    machine, desk = new_machine(tmp_path / "machine")
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
