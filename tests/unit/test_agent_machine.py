"""The agent's machine, seen from outside: tasks and replies in, messages and requests out."""

import signal
from dataclasses import replace
from typing import Any

import pytest
from agent_support import (
    ADAPTER,
    DriveAgent,
    asked,
    end_task,
    evaluate_task,
    idle_task,
    said,
    score_task,
    setup,
    survey_task,
    train_task,
)
from run_support import RUN, device, name_of, ref

from fedpipe_agent.agent_events import (
    Acknowledged,
    Ask,
    DropUpdate,
    FetchAdapter,
    Log,
    ShelveUpdate,
    Ticked,
    TrainerEnded,
    TransferFailed,
    UpdateShelved,
    Welcomed,
)
from fedpipe_agent.handing import MIN_TRAINING_S
from fedpipe_agent.memory import Memory
from fedpipe_agent.outbox_machine import MAX_OUTBOX
from fedpipe_agent.state import AgentState
from fedpipe_agent.trainer_machine import OVERRUN_S
from fedpipe_agent.trainer_protocol import ErrorReply, EvaluatedReply, Opened, ProgressReply, TrainRequest
from fedpipe_profiles.device import Limits
from fedpipe_profiles.plan import Prediction
from fedpipe_wire.agent_messages import Evaluated, Failed, Progress, Refused, Scored, Survey, Trained
from fedpipe_wire.coordinator_messages import Ack


def _surveyed_and_scored() -> DriveAgent:
    agent = DriveAgent()
    agent.task(survey_task())
    agent.work()
    agent.task(score_task())
    agent.work()
    return agent


def _training(task: Any = None) -> DriveAgent:
    """An agent whose trainer has a training request in its hands."""
    agent = _surveyed_and_scored()
    agent.task(task or train_task())
    agent.adapter()
    assert agent.state.in_hand
    return agent


def _ack(update: str, *, accepted: bool, round_: int = 1) -> Acknowledged:
    reason = "" if accepted else "too late"
    return Acknowledged(Ack(run=RUN, round=round_, sha256=update, accepted=accepted, reason=reason))


def test_a_run_from_the_agents_side() -> None:
    agent = DriveAgent()
    assert asked(agent.task(survey_task())) == ["open", "survey"]
    (survey,) = agent.work()
    assert isinstance(survey, Survey)
    assert asked(agent.task(score_task())) == ["score"]
    (scored,) = agent.work()
    assert isinstance(scored, Scored)
    first = agent.task(train_task())
    assert FetchAdapter(ADAPTER) in first
    assert asked(first) == []
    assert asked(agent.adapter(after_s=3.0)) == ["train"]
    evaluated, trained = agent.work()
    assert isinstance(evaluated, Evaluated)
    assert isinstance(trained, Trained)
    assert (evaluated.round, trained.round, trained.download_s) == (1, 1, 3.0)
    agent(_ack(trained.update.sha256, accepted=True))
    assert agent.all(DropUpdate) == [DropUpdate(trained.update.sha256)]
    agent.task(evaluate_task())
    assert asked(agent.adapter()) == ["evaluate"]
    (last,) = agent.work()
    assert isinstance(last, Evaluated)
    assert last.round == 3
    assert asked(agent.task(end_task())) == ["stop"]
    newest, began = agent.state.memory.newest, agent.state.memory.began
    assert agent.state == AgentState(setup=agent.state.setup, memory=Memory(newest=newest, began=began, ended=(RUN,)))


@pytest.mark.parametrize("task", [survey_task(), score_task()])
def test_a_task_that_comes_again_is_answered_alike_and_not_worked_on(task: Any) -> None:
    agent = DriveAgent()
    agent.task(task)
    assert asked(agent.task(task)) == []
    answer = agent.work()
    again = agent.task(task)
    assert said(again) == answer
    assert asked(again) == []


def test_a_training_task_that_comes_again_is_answered_with_its_metrics_and_its_update() -> None:
    agent = _training()
    assert agent.task(train_task()) == ()
    answer = agent.work()
    assert [type(message) for message in answer] == [Evaluated, Trained]
    assert said(agent.task(train_task())) == answer
    agent(_ack(agent.update().sha256, accepted=True))
    assert said(agent.task(train_task())) == answer


def test_a_task_after_its_update_was_declined_is_worked_on_anew() -> None:
    agent = _training()
    agent.work()
    update = agent.update().sha256
    assert agent(_ack(update, accepted=False))[0] == DropUpdate(update)
    agent.task(train_task())
    assert asked(agent.adapter()) == ["train"]
    assert [type(message) for message in agent.work()] == [Evaluated, Trained]


def test_a_failure_is_repeated_for_the_same_attempt_and_tried_again_for_the_next() -> None:
    agent = _training()
    (failed,) = said(agent.reply(ErrorReply(kind="internal", message="it broke")))
    assert isinstance(failed, Failed)
    assert said(agent.task(train_task())) == (failed,)
    agent.task(train_task(attempt=1))
    assert asked(agent.adapter()) == ["train"]
    assert isinstance(agent.work()[-1], Trained)


def test_a_round_begun_again_takes_the_update_that_is_there() -> None:
    agent = _training()
    answer = agent.work()
    assert said(agent.task(train_task(attempt=1))) == answer


def test_a_newer_task_ends_a_trainer_that_is_at_work() -> None:
    agent = _training()
    actions = agent.task(train_task(2))
    assert asked(actions) == ["stop", "open"]
    assert asked(agent.adapter()) == ["train"]


def test_a_newer_task_leaves_a_trainer_that_has_nothing_to_do() -> None:
    agent = _training()
    agent.work()
    assert asked(agent.task(train_task(2))) == []


@pytest.mark.parametrize("stale", [train_task(1), survey_task(), score_task(), idle_task(1)])
def test_a_task_that_was_overtaken_does_not_stop_the_newer_one(stale: Any) -> None:
    agent = DriveAgent()
    agent.task(train_task(2))
    agent.adapter()
    actions = agent.task(stale)
    (refused,) = said(actions)
    assert isinstance(refused, Refused)
    assert "this agent has seen round 2 already" in refused.reason
    assert asked(actions) == []
    assert isinstance(agent.work()[-1], Trained)


def test_an_older_attempt_of_the_same_round_is_passed_over_in_silence() -> None:
    agent = _training(train_task(1, attempt=2, examples=6))
    actions = agent.task(train_task(1, attempt=1))
    assert [type(action) for action in actions] == [Log]
    assert isinstance(agent.work()[-1], Trained)


def test_tasks_of_a_run_that_ended_are_not_worked_on() -> None:
    agent = _training()
    agent.task(end_task())
    actions = agent.task(train_task())
    assert [type(action) for action in actions] == [Log]
    assert asked(agent.task(survey_task("other-1"))) == ["open", "survey"]


def test_the_end_of_a_run_forgets_it_and_no_other() -> None:
    agent = DriveAgent()
    longer = f"{RUN}-2"
    agent.task(survey_task(longer))
    answer = agent.work()
    agent.task(survey_task(RUN))
    agent.task(end_task(RUN))
    assert said(agent.task(survey_task(longer))) == answer


def test_the_end_of_a_run_drops_an_update_that_nobody_fetched() -> None:
    agent = _training()
    agent.work()
    update = agent.update().sha256
    assert DropUpdate(update) in agent.task(end_task())


def test_the_end_of_a_run_leaves_an_update_whose_bytes_another_run_made_too() -> None:
    agent = _training()
    agent.work()
    (offered,) = agent.state.memory.outbox
    again = offered.model_copy(update={"run": f"{RUN}-2"})
    agent.state = replace(agent.state, memory=agent.state.memory.model_copy(update={"outbox": (offered, again)}))
    assert DropUpdate(offered.update.sha256) not in agent.task(end_task(RUN))
    assert agent.state.memory.outbox == (again,)
    assert DropUpdate(offered.update.sha256) in agent.task(end_task(again.run))
    assert len(agent.state.memory.outbox) == 0


def test_a_round_without_work_ends_what_is_left_of_the_one_before() -> None:
    agent = _training()
    assert asked(agent.task(idle_task(2))) == ["stop"]
    assert asked(agent.task(train_task(3))) == ["open"]
    other = DriveAgent()
    assert asked(other.task(idle_task(1))) == []


# --- what an agent refuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "said_"),
    [
        (train_task(bits=4), "asks for 4 bits, this device supports [8, 32]"),
        (train_task(agent="b"), "is for agent 'b', this is 'a'"),
        (train_task(components={"up": (0, 4)}), "beyond the global rank 4 in up"),
        (train_task(components={"up": (0, 0)}), "components of up twice"),
        (train_task(components={"up": (1, 0)}), "not in their order"),
        (train_task(batch_size=3), "batches of 3, its job allows [2]"),
        (train_task(sequence_length=17), "17 tokens per example, its job for 16"),
        (
            train_task(predicted=Prediction(peak_bytes=1 << 31, round_s=1.0, compute_s=1.0, up_bytes=1, down_bytes=1)),
            "beside, this device lends 1024 MiB",
        ),
        (
            survey_task().model_copy(update={"terms": survey_task().terms.model_copy(update={"dataset": "x"})}),
            "[datasets.x]",
        ),
    ],
)
def test_what_the_owners_limits_forbid_is_refused_with_both_values(task: Any, said_: str) -> None:
    agent = DriveAgent(AgentState(setup=setup(profile=device("a", supported_bits=(8, 32)))))
    actions = agent.task(task)
    (refused,) = said(actions)
    assert isinstance(refused, Refused)
    assert said_ in refused.reason
    assert asked(actions) == []
    assert said(agent.task(task)) == (refused,)


def test_outside_of_the_owners_hours_nothing_is_begun_and_within_them_it_is() -> None:
    agent = DriveAgent(AgentState(setup=setup(within_hours=False)))
    (refused,) = said(agent.task(train_task()))
    assert isinstance(refused, Refused)
    assert "hours" in refused.reason
    agent.state = replace(agent.state, setup=setup(within_hours=True))
    assert asked(agent.task(train_task())) == ["open"]


def test_too_little_time_after_the_adapter_came_is_said_and_not_tried() -> None:
    agent = DriveAgent()
    agent.task(train_task())
    (failed,) = said(agent.adapter(after_s=100.0 - MIN_TRAINING_S))
    assert isinstance(failed, Failed)
    assert failed.kind == "time"
    assert "train" not in asked(agent.actions)


def test_the_time_to_send_the_update_is_kept_back() -> None:
    budgets = []
    for uplink in (1e6, 4e3):
        agent = DriveAgent(AgentState(setup=setup(profile=device("a", limits=Limits(uplink_bps=uplink)))))
        agent.task(train_task())
        agent.adapter()
        request = agent.all(Ask)[-1].request
        assert isinstance(request, TrainRequest)
        budgets.append(request.budget_s)
    assert budgets[0] - budgets[1] == pytest.approx(1.25 * 4000 * 8 * (1 / 4e3 - 1 / 1e6))


# --- what can go wrong in the trainer ---------------------------------------------------------------------------


DEATHS = [(-signal.SIGKILL, "out-of-memory"), (1, "internal"), (-signal.SIGSEGV, "internal")]


@pytest.mark.parametrize(("code", "kind"), DEATHS)
def test_what_a_dead_trainer_worked_on_goes_once_to_a_fresh_one_with_the_time_that_is_left(
    code: int, kind: str
) -> None:
    agent = _training()
    first = agent.all(Ask)[-1].request
    assert isinstance(first, TrainRequest)
    again = agent(TrainerEnded(code), after_s=30.0)
    assert said(again) == ()
    assert asked(again) == ["open", "train"]
    second = agent.all(Ask)[-1].request
    assert second == first.model_copy(update={"budget_s": first.budget_s - 30.0})
    (failed,) = said(agent(TrainerEnded(code)))
    assert isinstance(failed, Failed)
    assert failed.kind == kind
    assert asked(agent.task(train_task(2))) == ["open"]


def test_a_fresh_trainer_does_what_the_dead_one_began_and_the_next_task_has_both_lives_again() -> None:
    calm, agent = _training(), _training()
    agent(TrainerEnded(-signal.SIGKILL))
    assert agent.work() == calm.work()
    agent.task(train_task(2))
    agent.adapter()
    assert asked(agent(TrainerEnded(-signal.SIGKILL))) == ["open", "train"]


def test_a_trainer_that_the_kernel_killed_for_memory_is_not_tried_again() -> None:
    agent = _training()
    actions = agent(TrainerEnded(-signal.SIGKILL, out_of_memory=True))
    (failed,) = said(actions)
    assert isinstance(failed, Failed)
    assert (failed.kind, asked(actions)) == ("out-of-memory", [])


@pytest.mark.parametrize("task", [train_task(), score_task()])
def test_a_trainer_that_dies_too_late_is_not_tried_again(task: Any) -> None:
    agent = DriveAgent()
    agent.task(task)
    agent.adapter()
    (failed,) = said(agent(TrainerEnded(-signal.SIGKILL), after_s=599.0))
    assert isinstance(failed, Failed)
    assert failed.kind == "time"
    assert "after its trainer died" in failed.message


def test_a_trainer_that_dies_before_the_adapter_came_is_started_again() -> None:
    agent = DriveAgent()
    assert asked(agent.task(train_task())) == ["open"]
    assert said(agent(TrainerEnded(1))) == ()
    assert asked(agent.adapter()) == ["open", "train"]


def test_a_trainer_that_dies_after_its_work_is_no_failure() -> None:
    agent = _training()
    agent.work()
    assert said(agent(TrainerEnded(-signal.SIGKILL))) == ()


def test_a_trainer_that_cannot_be_opened_is_opened_anew_for_the_next_task() -> None:
    agent = DriveAgent()
    agent.task(survey_task())
    (failed,) = said(agent.reply(ErrorReply(kind="model", message="no such model")))
    assert isinstance(failed, Failed)
    assert failed.message == "no such model"
    assert said(agent.reply(ErrorReply(kind="internal", message="request 'survey' before a run was opened"))) == ()
    assert asked(agent.task(score_task())) == ["open", "score"]


def test_a_trainer_that_fails_once_keeps_its_process() -> None:
    agent = DriveAgent()
    agent.task(survey_task())
    agent.reply(Opened(context_bytes=1))
    agent.reply(ErrorReply(kind="data", message="no rows"))
    assert asked(agent.task(score_task())) == ["score"]


@pytest.mark.parametrize("task", [survey_task(), score_task(), train_task(), evaluate_task()])
def test_a_silent_trainer_is_ended_whatever_it_was_asked(task: Any) -> None:
    agent = DriveAgent()
    agent.task(task)
    agent.adapter()
    assert agent(Ticked(), after_s=90.0) == ()
    actions = agent(Ticked(), after_s=3600.0)
    assert asked(actions) == ["stop"]
    (failed,) = said(actions)
    assert isinstance(failed, Failed)
    assert failed.kind == "time"
    assert agent(Ticked(), after_s=3600.0) == ()


def test_an_error_is_said_once_however_long_ago_it_was() -> None:
    agent = _training()
    (failed,) = said(agent.reply(ErrorReply(kind="out-of-memory", message="too large", peak_bytes=7)))
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.peak_bytes) == ("out-of-memory", 7)
    assert agent(Ticked(), after_s=OVERRUN_S + 1000.0) == ()
    assert said(agent.task(train_task())) == (failed,)


def test_replies_that_answer_nothing_are_passed_over() -> None:
    agent = _training()
    agent.work()
    trained = agent.state
    assert agent.reply(EvaluatedReply(metrics=_metrics())) == ()
    assert agent.state == trained
    idle = DriveAgent()
    assert idle.reply(EvaluatedReply(metrics=_metrics())) == ()


def _metrics() -> Any:
    agent = _training()
    (evaluated, _) = agent.work()
    assert isinstance(evaluated, Evaluated)
    return evaluated.metrics


def test_a_second_update_of_the_same_training_is_not_shelved() -> None:
    agent = _training()
    agent.work()
    shelved = len(agent.all(ShelveUpdate))
    agent.work()
    assert len(agent.all(ShelveUpdate)) == shelved


def test_an_update_without_its_task_does_not_stay_in_the_outbox() -> None:
    agent = DriveAgent()
    blob = ref(name_of("left"))
    assert agent(UpdateShelved(blob)) == (DropUpdate(blob.sha256),)


def test_progress_is_said_with_run_and_round() -> None:
    agent = _training()
    (progress,) = said(agent.reply(ProgressReply(stage="training", done=3, of=6, loss=0.5)))
    assert progress == Progress(run=RUN, round=1, stage="training", done=3, of=6, loss=0.5)


# --- the adapter ------------------------------------------------------------------------------------------------


def test_an_adapter_that_does_not_come_is_a_failure() -> None:
    agent = DriveAgent()
    agent.task(train_task())
    (failed,) = said(agent(TransferFailed(ADAPTER.sha256, "no room on disk")))
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.round) == ("transfer", 1)
    assert asked(agent.adapter()) == []


def test_a_transfer_that_fails_while_the_adapter_is_in_use_changes_nothing() -> None:
    agent = _training()
    before = agent.state
    assert agent(TransferFailed(ADAPTER.sha256, "the broker went away")) == ()
    assert agent.state == before


def test_an_adapter_that_comes_twice_or_is_another_is_used_once() -> None:
    agent = DriveAgent()
    agent.task(train_task())
    assert agent.adapter(ref(name_of("other"))) == ()
    assert asked(agent.adapter()) == ["train"]
    assert agent.adapter() == ()


# --- kills ------------------------------------------------------------------------------------------------------


def test_a_training_that_was_in_hand_is_begun_again_in_the_time_that_is_left() -> None:
    agent = _training().restarted(after_s=30.0)
    assert agent.actions == []
    actions = agent(Welcomed())
    assert FetchAdapter(ADAPTER) in actions
    agent.adapter()
    (request,) = [ask.request for ask in agent.all(Ask) if isinstance(ask.request, TrainRequest)]
    assert request.budget_s <= 70.0
    assert isinstance(agent.work()[-1], Trained)


@pytest.mark.parametrize("task", [survey_task(), score_task(), evaluate_task()])
def test_every_other_task_that_was_in_hand_is_begun_again(task: Any) -> None:
    agent = DriveAgent()
    agent.task(task)
    agent.adapter()
    calm, again = agent.work(), DriveAgent()
    again.task(task)
    again = again.restarted()
    again(Welcomed())
    again.adapter()
    assert again.work() == calm


@pytest.mark.parametrize("in_hand", [True, False])
def test_a_training_whose_time_is_over_after_a_restart_is_said_to_be_lost_by_it(in_hand: bool) -> None:  # noqa: FBT001 - pytest's parameter
    agent = DriveAgent()
    agent.task(train_task())
    if in_hand:
        agent.adapter()
    agent = agent.restarted(after_s=99.0)
    (failed,) = said(agent(Welcomed()))
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.round) == ("time", 1)
    assert "are left of 100 s after the agent was restarted" in failed.message
    assert said(agent.task(train_task())) == (failed,)


def test_a_restart_with_other_settings_refuses_what_they_forbid() -> None:
    agent = _training().restarted()
    agent.state = replace(agent.state, setup=setup(datasets={}))
    (refused,) = said(agent(Welcomed()))
    assert isinstance(refused, Refused)
    assert "no dataset 'words' here" in refused.reason
    assert agent.state.task is None


def test_updates_of_several_rounds_wait_in_the_outbox_and_each_is_settled_by_itself() -> None:
    agent = _training()
    agent.work()
    agent.task(train_task(2))
    agent.adapter()
    agent.work()
    first, second = agent.state.memory.outbox
    assert (first.round, second.round) == (1, 2)
    agent = agent.restarted()
    agent.keep(agent(Welcomed()))
    assert [message for message in said(agent.actions) if isinstance(message, Trained)] == [first, second]
    agent(_ack(first.update.sha256, accepted=False))
    assert agent.state.memory.outbox == (second,)
    assert agent.all(DropUpdate) == [DropUpdate(first.update.sha256)]
    assert agent.state.stage == "offered"
    agent.task(end_task())
    assert not agent.state.memory.outbox


def test_a_coordinator_that_acknowledges_nothing_does_not_fill_the_outbox() -> None:
    agent = _training()
    agent.work()
    for round_ in range(2, MAX_OUTBOX + 3):
        agent.task(train_task(round_))
        agent.adapter()
        agent.work()
        assert len(agent.state.memory.outbox) <= MAX_OUTBOX
    offered = [message for message in said(agent.actions) if isinstance(message, Trained)]
    assert agent.state.memory.outbox == tuple(offered[2:])
    assert agent.all(DropUpdate) == [DropUpdate(each.update.sha256) for each in offered[:2]]
    told = [log.text for log in agent.all(Log) if "never acknowledged" in log.text]
    assert [offer.update.sha256[:12] in text for offer, text in zip(offered, told, strict=False)] == [True, True]
    # A late word of it changes nothing, and the others are settled as ever.
    agent(_ack(offered[0].update.sha256, accepted=True))
    agent(_ack(offered[-1].update.sha256, accepted=True, round_=offered[-1].round))
    assert agent.state.memory.outbox == tuple(offered[2:-1])


def test_an_update_of_a_run_that_is_not_worked_on_ends_with_its_run() -> None:
    agent = _training()
    agent.work()
    update = agent.update().sha256
    agent.task(survey_task("other-1"))
    assert asked(agent.task(end_task())) == []
    assert agent.all(DropUpdate) == [DropUpdate(update)]
    assert agent.state.in_hand


@pytest.mark.parametrize(("context_mib", "refused"), [(200, False), (600, True), (None, False)])
def test_a_plan_must_fit_beside_what_the_trainer_itself_holds(context_mib: int | None, *, refused: bool) -> None:
    """Of 1 GiB that is lent, 700 MiB for training leave 324 for the process; not known, it does not count."""
    mib = 1 << 20
    agent = _surveyed_and_scored()
    known = None if context_mib is None else context_mib * mib
    agent.state = replace(agent.state, setup=replace(agent.state.setup, context_bytes=known))
    predicted = Prediction(peak_bytes=700 * mib, round_s=1.0, compute_s=1.0, up_bytes=1, down_bytes=1)
    told = [message for message in said(agent.task(train_task(predicted=predicted))) if isinstance(message, Refused)]
    assert bool(told) is refused


def test_what_a_trainer_says_that_it_holds_is_remembered() -> None:
    agent = DriveAgent()
    agent.task(survey_task())
    agent.reply(Opened(context_bytes=12345, versions={}))
    assert agent.state.setup.context_bytes == 12345
