"""What an agent has to say and no message can hold: the coordinator hears that the task failed, and the agent lives."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from agent_desk import AGENT, Desk
from agent_in_process import Machine, new_machine, use_stub_trainer
from agent_support import evaluate_task, score_task, survey_task
from run_support import device

from fedpipe_agent.introduction import LINK_PROBE_S
from fedpipe_wire.agent_messages import Evaluated, Failed, Profile, Scored, Survey
from fedpipe_wire.messages import MAX_MESSAGE_BYTES


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_stub_trainer(tmp_path, monkeypatch)


def _pump(machine: Machine, desk: Desk, until: Callable[[], object]) -> None:
    for _ in range(2000):
        if until():
            return
        moved = machine.pump()
        if not (desk.pump() or moved):
            machine.wait()
    raise AssertionError(machine.logged[-5:])


def _of(desk: Desk, kind: type) -> list[Any]:
    return [message for message in desk.heard if isinstance(message, kind)]


def _has_failed(desk: Desk, times: int) -> bool:
    return len(_of(desk, Failed)) == times


def _many_labels(reply: dict[str, Any]) -> None:
    reply["labels"] = [f"{number:0200}" for number in range(10_000)]


def _many_weights(reply: dict[str, Any]) -> None:
    reply["contribution"]["curves"] = {f"layer.{number}.weight": [1.0 + number] * 64 for number in range(4_000)}


TOO_LARGE: dict[str, tuple[Any, Callable[[dict[str, Any]], None], str, tuple[str, ...]]] = {
    "survey": (survey_task(), _many_labels, "data", ("survey", "label column with fewer than 10000 labels")),
    "score": (score_task(), _many_weights, "internal", ("scores", "fewer than 4000 linear layers", "global_rank")),
}


@pytest.mark.parametrize("op", TOO_LARGE)
def test_a_result_that_no_message_can_hold_is_a_failed_task_and_the_agent_goes_on(
    tmp_path: Path, answers: Path, op: str
) -> None:
    task, grow, kind, told = TOO_LARGE[op]
    replies = json.loads(answers.read_text())
    grow(replies[op][0])
    answers.write_text(json.dumps(replies))
    machine, desk = new_machine(tmp_path / "machine", rounds=0)
    machine.start()
    _pump(machine, desk, lambda: desk.presences)
    for asked in (1, 2):  # the second time it is known what comes of it
        desk.say(task)
        _pump(machine, desk, partial(_has_failed, desk, asked))
    first, second = _of(desk, Failed)
    assert first == second
    assert (first.kind, first.round) == (kind, 0)
    assert f"at most {MAX_MESSAGE_BYTES} are read" in first.message
    assert all(part in first.message for part in told)
    desk.rounds = 2
    desk.say(desk.task(1))
    machine.run(desk)
    machine.kill()
    assert len(desk.taken) == 2
    assert not _of(desk, Survey) + _of(desk, Scored)


def test_what_the_broker_takes_no_packet_for_is_a_failed_task(tmp_path: Path, answers: Path) -> None:
    replies = json.loads(answers.read_text())
    replies["survey"][0]["labels"] = [f"{number:0200}" for number in range(100)]
    answers.write_text(json.dumps(replies))
    machine, desk = new_machine(tmp_path / "machine", rounds=0)
    machine.broker.max_packet_bytes = 10_000
    machine.start()
    _pump(machine, desk, lambda: desk.presences)
    desk.say(survey_task())
    _pump(machine, desk, lambda: _of(desk, Failed))
    (failed,) = _of(desk, Failed)
    assert failed.kind == "data"
    assert "the limit is 10000" in failed.message
    # measuring the link needs larger packets than that; the profile is said without it
    _pump(machine, desk, lambda: machine.now > 1000.0 + LINK_PROBE_S + 5.0 and _of(desk, Profile))
    machine.kill()


def test_what_answers_no_task_and_is_too_large_is_told_to_the_owner(tmp_path: Path, answers: Path) -> None:
    del answers
    machine, desk = new_machine(tmp_path / "machine", rounds=0)
    machine.start()
    _pump(machine, desk, lambda: _of(desk, Profile))
    assert machine.daemon is not None
    many = device(AGENT).model_copy(update={"datasets": tuple(f"data-{number:0100}" for number in range(20_000))})
    assert not machine.daemon._mouth.say(Profile(profile=many))
    assert "profile cannot be sent: it has " in machine.logged[-1]
    metrics = Evaluated.model_validate(
        {"run": evaluate_task().run, "round": 3, "metrics": {"loss": 1.0, "accuracy": None, "examples": 4}}
    )
    machine.broker.max_packet_bytes = 10
    assert not machine.daemon._mouth.say(metrics)
    assert "and that cannot be sent either: packet of" in machine.logged[-1]
    machine.broker.max_packet_bytes = None
    assert machine.daemon._mouth.say(metrics)
    _pump(machine, desk, lambda: _of(desk, Evaluated))
    machine.kill()
