"""The agent's machine where its disk takes nothing or loses something: it waits, or says what is lost, at once."""

from typing import Any

import pytest
from agent_support import ADAPTER, DriveAgent, asked, evaluate_task, said, train_task
from run_support import RUN, metrics, name_of, ref

from fedpipe_agent.agent_events import DiskRefused, DropUpdate, FetchAdapter, Log, NotShelved, Ticked
from fedpipe_agent.handing import UNTIMED_S
from fedpipe_wire.agent_messages import Evaluated, Failed, Trained
from fedpipe_wire.coordinator_messages import TrainTask


def _training() -> DriveAgent:
    agent = DriveAgent()
    agent.task(train_task())
    agent.adapter()
    return agent


def test_an_adapter_that_the_disk_does_not_take_is_fetched_again_and_the_owner_is_told_once() -> None:
    agent = DriveAgent()
    agent.task(train_task())
    assert [type(action) for action in agent(DiskRefused(ADAPTER.sha256, "make room"))] == [Log]
    for _ in range(3):
        assert agent(Ticked(), 9.9) == ()
        assert agent(Ticked(), 0.1) == (FetchAdapter(ADAPTER),)
        assert agent(Ticked(), 20.0) == ()  # it is on its way, however long that takes
        assert agent(DiskRefused(ADAPTER.sha256, "make room")) == ()
    agent.adapter()
    assert asked(agent.actions) == ["open", "train"]
    assert agent(Ticked(), 5.0) == ()


@pytest.mark.parametrize("task", [train_task(), evaluate_task()])
def test_an_adapter_that_the_disk_never_takes_is_a_failure_within_the_tasks_time(task: Any) -> None:
    agent = DriveAgent()
    agent.task(task)
    tries = 0
    while not (failures := said(agent(DiskRefused(ADAPTER.sha256, "make room")))):
        tries += 1
        while FetchAdapter(ADAPTER) not in agent(Ticked(), 0.5):
            assert agent.now < 2000.0
    (failed,) = failures
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.round) == ("transfer", task.round)
    assert "make room" in failed.message
    whole = task.plan.deadline_s if isinstance(task, TrainTask) else UNTIMED_S
    assert 0.9 * whole < agent.now < whole
    assert tries >= whole // 10 - 1
    assert agent(Ticked(), 60.0) == ()


def test_a_disk_that_lost_another_adapter_than_the_awaited_changes_nothing() -> None:
    agent = DriveAgent()
    agent.task(train_task())
    before = agent.state
    assert agent(DiskRefused(ref(name_of("another")).sha256, "gone")) == ()
    assert agent.state == before


def test_a_late_update_that_is_lost_is_told_and_the_round_in_hand_goes_on() -> None:
    agent = _training()
    agent.work()
    late = agent.state.memory.outbox[0]
    agent.task(train_task(2))
    agent.adapter()
    actions = agent(NotShelved(late.update.sha256, "it was cut short"))
    assert DropUpdate(late.update.sha256) in actions
    (failed,) = said(actions)
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.round) == ("internal", 1)
    assert agent.state.memory.outbox == ()
    assert agent.state.stage == "working"
    assert isinstance(agent.work()[-1], Trained)


def test_an_update_that_is_lost_is_answered_so_and_made_anew_in_a_newer_attempt() -> None:
    agent = _training()
    agent.work()
    (trained,) = agent.state.memory.outbox
    (failed,) = said(agent(NotShelved(trained.update.sha256, "it was cut short")))
    assert said(agent.task(train_task())) == (Evaluated(run=RUN, round=1, metrics=metrics()), failed)
    assert asked(agent.task(train_task(attempt=1))) == []
    assert agent.adapter()
    assert agent.work()[-1] == trained
