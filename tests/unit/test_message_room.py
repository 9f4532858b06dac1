"""What may be surveyed may be sent: labels, curves and plans of every silo that is let in fit into messages."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from office import Office
from planning_fleet import tiny_model
from run_support import RUN, Drive, begin, device, job, plan, ref, scored, survey

from fedpipe_coordinator.runs.message_room import MAX_LABELS_BYTES, labels_problem, model_problem
from fedpipe_coordinator.runs.run_events import AgentOnline
from fedpipe_coordinator.runs.run_state import Member
from fedpipe_coordinator.runs.tasks import score_task, train_task
from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.model import ModelShape, WeightShape
from fedpipe_wire.agent_messages import Presence, Profile, Scored
from fedpipe_wire.coordinator_messages import EndTask, ScoreTask
from fedpipe_wire.messages import MAX_MESSAGE_BYTES, encode

LONGEST_NUMBER = 2.2250738585072014e-308


def _model(weights: int, name: str = "encoder.layer.{}.attention.output.dense") -> ModelShape:
    shapes = tuple(WeightShape(name=name.format(at), d_out=768, d_in=768) for at in range(weights))
    return tiny_model().model_copy(update={"weights": shapes})


def _job(rank: int) -> Any:
    whole = job().model_dump() | {"adapter": {"global_rank": rank, "rank_ladder": (rank,)}}
    return type(job()).model_validate(whole)


def _largest(fits: Callable[[int], bool], highest: int) -> int:
    """The largest number that fits; smaller ones do as well."""
    return bisect_left(range(highest), True, key=lambda count: not fits(count + 1))


@pytest.mark.parametrize("rank", [1, 16, 256])
@pytest.mark.parametrize("name", ["w{}", "x" * 200 + "{}", "ä" * 100 + "{}", '"' * 90 + "{}"])
def test_the_largest_model_and_labels_that_are_let_in_fit_into_every_message(rank: int, name: str) -> None:
    terms = _job(rank)
    weights = _largest(lambda count: model_problem(_model(count, name), terms) is None, 30_000)
    of_labels = _largest(lambda count: labels_problem(_labels(count, name), "they have") is None, 10_000)
    assert weights > 50
    assert of_labels > 400
    names = [weight.name for weight in _model(weights, name).weights]
    whole = plan("a", 1, components=dict.fromkeys(names, tuple(range(rank))), global_rank=rank)
    state = begin().model_copy(
        update={"job": terms, "labels": _labels(of_labels, name), "adapter": ref("0" * 64), "round": 1}
    )
    contribution = Contribution(examples=8, curves=dict.fromkeys(names, (LONGEST_NUMBER,) * rank))
    scores = Scored(run=RUN, contribution=contribution, measurements=scored().measurements * 64)
    task = train_task(state, Member(name="a", plan=whole))
    assert task is not None
    for message in (score_task(state), task, scores):
        assert len(encode(message)) <= MAX_MESSAGE_BYTES


def _labels(count: int, name: str) -> tuple[str, ...]:
    return tuple(name.format(at) for at in range(count))


def test_a_silo_whose_labels_fill_a_message_is_told_so_and_the_others_go_on() -> None:
    drive = Drive(begin(min_agents=2))
    for name in ("a", "b", "c"):
        drive(AgentOnline(name, f"{name}-1"))
    long = tuple(f"{at}".ljust(199, "x") for at in range(3300))
    drive.hear("a", survey(long))
    assert drive.member("a").standing == "refused"
    (end,) = drive.asked("a", EndTask)
    assert "3300 labels, 666601 bytes in a message, and at most 200000 can be sent" in end.reason
    drive.hear("b", survey())
    drive.hear("c", survey())
    assert drive.phase == "scoring"


def test_labels_that_are_too_many_only_together_fail_the_run_with_both_sizes() -> None:
    drive = Drive(begin(min_agents=2))
    for name in ("a", "b"):
        drive(AgentOnline(name, f"{name}-1"))
    for name in ("a", "b"):
        drive.hear(name, survey(tuple(f"{name}{at}".ljust(199, "x") for at in range(700))))
    assert drive.phase == "failed"
    assert "the run has 1400 labels" in drive.state.note
    assert str(MAX_LABELS_BYTES) in drive.state.note


def test_a_model_of_too_many_weights_is_refused_when_it_is_seen() -> None:
    drive = Drive(begin().model_copy(update={"job": _job(32)}))
    drive(AgentOnline("a", "a-1"))
    shape = _model(2000)
    drive.hear("a", survey().model_copy(update={"shape": shape}))
    end, *_ = drive.asked("a", EndTask)
    assert "2000 weights" in end.reason
    assert "adapter.rank_ladder" in end.reason


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    office.say(Profile(profile=device("a")))
    office.say(Presence(state="online", session="1"))
    yield office
    office.stop()


def test_a_task_that_is_too_large_all_the_same_fails_its_run_and_no_more(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpipe_coordinator.runs.membership.labels_problem", lambda *_: None)
    monkeypatch.setattr("fedpipe_coordinator.runs.run_machine.labels_problem", lambda *_: None)
    long = tuple(f"{at}".ljust(199, "x") for at in range(5100))
    first, second = (office.service.submit(job(long, min_agents=1), None) for _ in range(2))
    office.say(survey(long[:2]).model_copy(update={"run": first}))
    office.settle()
    state = office.service.runs[first]
    assert state.phase == "failed"
    assert "the task for a is too large" in state.note
    assert str(MAX_MESSAGE_BYTES) in state.note
    assert not [message for message in office.heard() if isinstance(message, ScoreTask)]
    assert office.service.runs[second].open
