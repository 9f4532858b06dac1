"""The run from survey to export, seen from outside: events in, actions out."""

import pytest
from run_support import (
    LABELS,
    RUN,
    Drive,
    begin,
    evaluated,
    failed,
    finish,
    scored,
    shape,
    survey,
    tasks,
    trained,
    training,
)

from fedpipe_coordinator.runs.run_events import (
    AgentOffline,
    AgentOnline,
    Aggregate,
    Export,
    Exported,
    Fetch,
    MakePlans,
    SaveRound,
    StopAsked,
    Ticked,
    UpdateStored,
    WorkFailed,
)
from fedpipe_coordinator.runs.run_state import IllegalTransitionError, RunState
from fedpipe_wire.agent_messages import Refused
from fedpipe_wire.coordinator_messages import Ack, EndTask, EvaluateTask, ScoreTask, SurveyTask, TrainTask


def _online(drive: Drive, *agents: str) -> None:
    for agent in agents:
        drive(AgentOnline(agent, f"{agent}-1"))


def _scored(*agents: str, **settings: object) -> Drive:
    """A run whose agents are surveyed and scored: plans are asked for."""
    drive = Drive(begin(**settings))
    _online(drive, *agents)
    for agent in agents:
        drive.hear(agent, survey())
    for agent in agents:
        drive.hear(agent, scored())
    assert drive.phase == "planning"
    return drive


def test_a_run_goes_from_survey_to_export() -> None:
    drive = Drive(begin(min_agents=2))
    _online(drive, "a", "b")
    assert drive.asked("a", SurveyTask)
    assert drive.asked("b", SurveyTask)
    drive.hear("a", survey())
    assert drive.phase == "surveying"
    drive.hear("b", survey())
    assert drive.asked("a", ScoreTask)[0].labels == LABELS
    drive.hear("a", scored())
    drive.hear("b", scored())
    for round_ in (1, 2):
        assert drive.all(MakePlans)[-1] == MakePlans(round_, ("a", "b"))
        drive.plan()
        for agent in ("a", "b"):
            assert drive.asked(agent, TrainTask)[-1].plan.agent == agent
            drive.hear(agent, evaluated(round_, loss=3.0 - round_))
            offer = trained(agent, round_)
            assert drive.hear(agent, offer)[-1] == Fetch(agent, round_, offer.update)
            drive(UpdateStored(agent, round_, offer.update.sha256))
            assert drive.asked(agent, Ack)[-1].accepted
        names = {agent: trained(agent, round_).update.sha256 for agent in ("a", "b")}
        assert drive.all(Aggregate)[-1] == Aggregate(round_, names)
        drive.aggregate()
    for agent in ("a", "b"):
        assert drive.asked(agent, EvaluateTask)[0].round == 3
        drive.hear(agent, evaluated(3, loss=0.5))
    drive.export()
    assert drive.phase == "done"
    assert (drive.state.initial_metric, drive.state.final_metric) != (None, None)
    assert drive.state.initial_metric is not None
    assert drive.state.initial_metric.loss == 2.0
    assert drive.state.final_metric is not None
    assert drive.state.final_metric.loss == 0.5
    records = drive.all(SaveRound)
    assert [(record.result.round, record.metric.loss if record.metric else None) for record in records] == [
        (1, 1.0),
        (2, 0.5),
    ]
    assert drive.asked("a", EndTask)[0].reason == "the run is done"


def test_labels_are_the_union_of_the_silos_and_the_head_fits_them() -> None:
    drive = Drive(begin())
    _online(drive, "a", "b")
    drive.hear("b", survey(labels=("west", "south")))
    drive.hear("a", survey(labels=("east",)))
    assert drive.state.labels == ("east", "south", "west")
    assert drive.state.shape == shape(labels=3)
    assert drive.asked("a", ScoreTask)[0].labels == ("east", "south", "west")


def test_labels_of_the_job_bind_the_silos() -> None:
    drive = Drive(begin(labels=("west", "east")))
    _online(drive, "a", "b")
    drive.hear("a", survey(labels=("east",)))
    drive.hear("b", survey(labels=("east", "up<b>")))
    assert drive.state.labels == ("west", "east")
    assert drive.member("b").standing == "refused"
    (end,) = drive.asked("b", EndTask)
    assert "'up<b>'" in end.reason
    assert "data.labels" in end.reason


def test_one_label_is_no_classification() -> None:
    drive = Drive(begin())
    _online(drive, "a")
    drive.hear("a", survey(labels=("east",)))
    assert drive.phase == "failed"
    assert "the silos have 1" in drive.state.note


def test_more_labels_than_a_task_may_name_fail_the_run_in_words() -> None:
    drive = Drive(begin())
    _online(drive, "a", "b")
    drive.hear("a", survey(labels=[f"a{n}" for n in range(6000)]))
    drive.hear("b", survey(labels=[f"b{n}" for n in range(6000)]))
    assert drive.phase == "failed"
    assert "12000" in drive.state.note


def test_the_base_that_most_hold_is_the_runs() -> None:
    drive = Drive(begin())
    _online(drive, "a", "b", "c")
    drive.hear("a", survey(fingerprint="odd"))
    drive.hear("b", survey())
    drive.hear("c", survey(labels=("east", "west")))
    assert drive.state.shape is not None
    assert drive.state.shape.fingerprint == "0"
    assert "another base model" in drive.asked("a", EndTask)[0].reason
    assert drive.asked("b", ScoreTask)
    assert drive.asked("c", ScoreTask)
    assert not drive.asked("a", ScoreTask)


def test_a_false_shape_under_the_right_fingerprint_is_no_base() -> None:
    wrong = survey().model_copy(update={"shape": shape().model_copy(update={"hidden_size": 9})})
    drive = Drive(begin())
    _online(drive, "a", "b", "c")
    drive.hear("a", wrong)
    drive.hear("b", survey())
    drive.hear("c", survey())
    assert drive.member("a").standing == "refused"
    assert drive.state.shape == shape()


def test_too_few_agents_of_one_base_fail_the_run_at_once() -> None:
    drive = Drive(begin(min_agents=2))
    _online(drive, "a", "b")
    drive.hear("a", survey(fingerprint="1"))
    drive.hear("b", survey(fingerprint="2"))
    assert drive.phase == "failed"
    assert "1 agents are ready and rounds.min_agents is 2" in drive.state.note
    assert "another base model" in drive.state.note


def test_too_few_agents_fail_the_run_after_the_wait() -> None:
    drive = Drive(begin(min_agents=2, wait_s=50.0))
    _online(drive, "a")
    drive.hear("a", survey())
    drive(Ticked(), after_s=49)
    assert drive.phase == "surveying"
    drive(Ticked(), after_s=2)
    assert drive.phase == "failed"
    assert "lower min_agents" in drive.state.note
    assert drive.state.failure == "not-enough-agents"


def test_agents_that_came_and_could_not_work_are_another_failure_than_none_that_came() -> None:
    drive = Drive(begin(min_agents=1, wait_s=50.0))
    _online(drive, "a")
    drive.hear("a", failed(0, "data", "no such field"))
    drive(Ticked(), after_s=51)
    assert drive.phase == "failed"
    assert drive.state.failure == "failed"


def test_an_agent_that_never_answers_the_survey_is_not_waited_for_again() -> None:
    drive = Drive(begin(wait_s=50.0))
    _online(drive, "a", "b")
    drive.hear("a", survey())
    drive(Ticked(), after_s=51)
    assert drive.phase == "scoring"
    drive.hear("a", scored())
    assert drive.all(MakePlans) == [MakePlans(1, ("a",))]


def test_the_order_of_reports_changes_neither_curves_nor_aggregate() -> None:
    outcomes = []
    for order in (("a", "b", "c"), ("c", "a", "b")):
        drive = Drive(begin())
        _online(drive, *order)
        for agent in order:
            drive.hear(agent, survey())
        heights = {"a": 0.1, "b": 1e16, "c": -0.0 + 0.3}
        for agent in order:
            drive.hear(agent, scored(examples=3 + ord(agent) % 5, height=heights[agent]))
        drive.plan()
        for agent in order:
            drive.hear(agent, trained(agent, 1))
        for agent in reversed(order):
            drive(UpdateStored(agent, 1, trained(agent, 1).update.sha256))
        outcomes.append((drive.state.curves, drive.all(Aggregate)))
    assert outcomes[0] == outcomes[1]


def test_curves_of_another_model_keep_their_agent_out() -> None:
    drive = Drive(begin())
    _online(drive, "a", "b")
    for agent in ("a", "b"):
        drive.hear(agent, survey())
    drive.hear("a", scored(weights=("up", "down", "other")))
    drive.hear("b", scored())
    assert drive.all(MakePlans) == [MakePlans(1, ("b",))]
    assert "'other'" in drive.asked("a", EndTask)[0].reason


def test_scores_without_a_survey_count_for_nothing() -> None:
    drive = _scored("a")
    _online(drive, "b")
    drive.hear("b", scored())
    assert drive.member("b").contribution is None


def test_a_joiner_is_surveyed_scored_and_planned_from_the_next_round() -> None:
    drive = _scored("a")
    drive.plan()
    _online(drive, "j")
    drive.hear("j", survey(labels=("east", "west")))
    assert drive.asked("j", ScoreTask)[0].labels == LABELS
    drive.hear("j", scored())
    assert not drive.asked("j", TrainTask)
    drive.hear("a", trained("a", 1))
    drive(UpdateStored("a", 1, trained("a", 1).update.sha256))
    drive.aggregate()
    assert drive.all(MakePlans)[-1] == MakePlans(2, ("a", "j"))


@pytest.mark.parametrize(
    ("report", "said"), [(survey(labels=("east", "up")), "data.labels"), (survey(fingerprint="1"), "another base")]
)
def test_a_joiner_that_does_not_fit_is_told_why(report: object, said: str) -> None:
    drive = _scored("a")
    drive.plan()
    _online(drive, "j")
    drive.hear("j", report)
    assert said in drive.asked("j", EndTask)[0].reason
    assert not drive.asked("j", ScoreTask)
    assert not tasks(drive(AgentOnline("j", "j-1")))


def test_an_agent_that_was_mended_and_restarted_is_surveyed_anew() -> None:
    drive = _scored("a")
    drive.plan()
    _online(drive, "j")
    drive.hear("j", survey(fingerprint="1"))
    ((agent, task),) = tasks(drive(AgentOnline("j", "j-2")))
    assert (agent, type(task)) == ("j", SurveyTask)
    drive.hear("j", survey())
    assert drive.asked("j", ScoreTask)


def test_an_agent_that_refuses_the_survey_is_left_out() -> None:
    drive = Drive(begin())
    _online(drive, "a", "b")
    drive.hear("a", Refused(run=RUN, round=0, reason="no dataset 'words' here"))
    drive.hear("b", survey())
    assert drive.phase == "scoring"
    drive.hear("b", scored())
    drive.plan()
    assert drive.member("a").note == "no dataset 'words' here"
    assert drive.asked("b", TrainTask)


def test_stop_ends_the_run_and_tells_everybody() -> None:
    drive = _scored("a", "b")
    drive(StopAsked())
    assert drive.phase == "stopped"
    assert {agent for agent, task in tasks(drive.actions) if isinstance(task, EndTask)} == {"a", "b"}
    before = drive.state
    assert drive.plan() == ()
    assert drive.state == before


def test_after_the_end_agents_are_told_and_late_updates_declined() -> None:
    drive = _scored("a")
    drive.plan()
    drive(StopAsked())
    ((_, end),) = tasks(drive(AgentOnline("a", "a-2")))
    assert isinstance(end, EndTask)
    ((_, ack),) = tasks(drive.hear("a", trained("a", 1)))
    assert isinstance(ack, Ack)
    assert not ack.accepted
    assert "stopped" in ack.reason
    assert tasks(drive(AgentOnline("stranger", "s-1"))) == []


def test_a_run_that_ends_early_still_records_its_last_round() -> None:
    drive = _scored("a")
    drive.plan()
    drive.hear("a", trained("a", 1))
    drive(UpdateStored("a", 1, trained("a", 1).update.sha256))
    drive.aggregate()
    drive(WorkFailed("planning", "the solver broke"))
    assert [record.result.round for record in drive.all(SaveRound)] == [1]
    assert drive.state.note == "planning: the solver broke"


def test_an_export_that_nobody_waits_for_changes_nothing() -> None:
    drive = _scored("a")
    assert drive(Exported({})) == ()
    assert drive.phase == "planning"


def test_all_agents_gone_before_the_first_plan_fails_with_the_missing_agents() -> None:
    drive = _scored("a", wait_s=60.0)
    drive.plan()
    drive(AgentOffline("a"))
    for _ in range(40):
        drive(Ticked(), after_s=10)
    assert drive.phase == "failed"
    assert "0 agents are online" in drive.state.note
    assert "a is offline" in " ".join(note.text for note in drive.notes("gone"))


def test_patience_ends_a_run_that_no_longer_improves() -> None:
    drive = _scored("a", number=50, patience=2)
    losses = [3.0, 2.0, 2.5, 2.5, 2.5, 2.5]
    for round_, loss in enumerate(losses, start=1):
        if drive.phase == "evaluating":
            break
        drive.plan()
        drive.hear("a", evaluated(round_, loss))
        drive.hear("a", trained("a", round_))
        drive(UpdateStored("a", round_, trained("a", round_).update.sha256))
        drive.aggregate()
    assert drive.phase == "evaluating"
    assert drive.state.round == 4
    assert "no better loss than 2.0000 for 2 rounds" in drive.notes("stopped-early")[0].text
    drive.hear("a", evaluated(5, 2.4))
    assert drive.all(Export)


def test_failed_scoring_leaves_an_agent_out_until_it_is_restarted() -> None:
    drive = Drive(begin())
    _online(drive, "a", "b")
    for agent in ("a", "b"):
        drive.hear(agent, survey())
    drive.hear("a", failed(0, "out-of-memory"))
    drive.hear("b", scored())
    assert drive.all(MakePlans) == [MakePlans(1, ("b",))]
    assert tasks(drive(AgentOnline("a", "a-1"))) == []
    ((_, task),) = tasks(drive(AgentOnline("a", "a-2")))
    assert isinstance(task, SurveyTask)


def test_an_illegal_transition_is_a_defect_with_both_phases() -> None:
    state: RunState = begin()
    with pytest.raises(IllegalTransitionError, match="'done' may not follow 'surveying'"):
        state.to("done", 0.0)


def test_what_a_rounds_transfers_took_is_kept_for_the_next_plan() -> None:
    drive = training("a", "b")
    drive.now += 20.0
    finish(drive, "a")
    (kept,) = drive.member("a").transfers
    offer = drive.member("a").trained
    assert offer is not None
    # 20 s in all, of which the agent downloaded for 0.5 and computed for 15
    assert kept.down_s == 0.5
    assert kept.up_s == pytest.approx(4.5)
    assert (kept.down_bytes, kept.up_bytes) == (4000, offer.update.size)
    drive.now -= 15.0
    finish(drive, "b")  # it claims to have computed for longer than it was awaited
    assert drive.member("b").transfers[0].up_s == 0.0
