"""What can go wrong within a round: who is waited for, who is not, and what counts."""

import pytest
from run_support import (
    PEAK,
    RUN,
    Drive,
    begin,
    evaluated,
    failed,
    finish,
    planned,
    scored,
    survey,
    tasks,
    trained,
    training,
)

from fedpipe_coordinator.runs.backoff import DROP
from fedpipe_coordinator.runs.late import FETCH_AGAIN_S
from fedpipe_coordinator.runs.membership import OFFLINE_GRACE_S
from fedpipe_coordinator.runs.resume import rebase, resume
from fedpipe_coordinator.runs.round_machine import (
    DEADLINE_GRACE,
    DEADLINE_GRACE_S,
    EVALUATION_GRACE_S,
    MIN_ATTEMPTS,
    PAUSES_S,
)
from fedpipe_coordinator.runs.run_events import (
    AgentOffline,
    AgentOnline,
    Aggregate,
    Export,
    Fetch,
    MakePlans,
    SaveRound,
    StopFetch,
    Ticked,
    UpdateDelayed,
    UpdateRejected,
    UpdateStored,
    WorkDelayed,
)
from fedpipe_coordinator.runs.run_machine import WORK_AGAIN_S
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_wire.agent_messages import Refused
from fedpipe_wire.coordinator_messages import Ack, EvaluateTask, IdleTask, TrainTask
from fedpipe_wire.moments import Moment

AFTER_DEADLINE_S = 100.0 * DEADLINE_GRACE + DEADLINE_GRACE_S + 1


def _lose(drive: Drive, agent: str) -> None:
    drive(AgentOffline(agent))
    drive(Ticked(), after_s=OFFLINE_GRACE_S + 1)


def test_the_round_goes_on_without_an_agent_that_died_and_says_so() -> None:
    drive = training("a", "b")
    finish(drive, "a")
    drive(AgentOffline("b"))
    drive(Ticked(), after_s=OFFLINE_GRACE_S - 1)
    assert drive.phase == "training"
    drive(Ticked(), after_s=2)
    (aggregate,) = drive.all(Aggregate)
    assert list(aggregate.updates) == ["a"]
    assert "b is offline" in drive.notes("gone")[0].text


def test_an_agent_back_before_the_grace_gets_its_task_again() -> None:
    drive = training("a", "b")
    finish(drive, "a")
    drive(AgentOffline("b"))
    drive(Ticked(), after_s=OFFLINE_GRACE_S - 1)
    ((agent, task),) = tasks(drive(AgentOnline("b", "b-1")))
    assert agent == "b"
    assert task == drive.asked("b", TrainTask)[0]
    drive(Ticked(), after_s=OFFLINE_GRACE_S)
    finish(drive, "b")
    assert sorted(drive.all(Aggregate)[0].updates) == ["a", "b"]


def test_an_agent_back_after_the_grace_may_still_bring_its_update() -> None:
    drive = training("a", "b")
    _lose(drive, "b")
    assert drive.member("b").standing == "gone"
    drive(AgentOnline("b", "b-2"))
    assert drive.member("b").standing == "asked"
    finish(drive, "a")
    finish(drive, "b")
    assert sorted(drive.all(Aggregate)[0].updates) == ["a", "b"]


def test_after_the_deadline_and_its_grace_nobody_is_waited_for() -> None:
    drive = training("a", "b")
    finish(drive, "a")
    drive(Ticked(), after_s=AFTER_DEADLINE_S - 2)
    assert drive.phase == "training"
    drive(Ticked(), after_s=2)
    assert list(drive.all(Aggregate)[0].updates) == ["a"]
    assert "b sent no update by the deadline of 100 s" in drive.notes("gone")[0].text


def test_an_update_on_its_way_is_waited_for_beyond_the_deadline() -> None:
    drive = training("a")
    offer = trained("a", 1)
    drive.hear("a", offer)
    drive(Ticked(), after_s=10 * AFTER_DEADLINE_S)
    assert drive.phase == "training"
    drive(UpdateStored("a", 1, offer.update.sha256))
    assert drive.phase == "aggregating"


def test_out_of_memory_lowers_the_cap_for_each_plan_once() -> None:
    drive = training("a", "b", number=4)
    drive.hear("a", failed(1, "out-of-memory"))
    cap = drive.member("a").memory_cap_bytes
    assert cap == int(DROP * PEAK)
    drive.hear("a", failed(1, "out-of-memory"))
    assert drive.member("a").memory_cap_bytes == cap
    finish(drive, "b")
    drive.aggregate()
    drive.plan()
    plan = drive.asked("a", TrainTask)[-1].plan
    assert plan.predicted.peak_bytes == cap
    drive.hear("a", failed(2, "out-of-memory"))
    assert drive.member("a").memory_cap_bytes == int(DROP * cap)


def test_an_agent_that_runs_out_of_memory_alone_is_planned_smaller_in_the_same_round() -> None:
    drive = training("a")
    drive.hear("a", failed(1, "out-of-memory"))
    assert drive.phase == "planning"
    assert drive.all(MakePlans)[-1].round == 1
    drive.plan()
    first, second = drive.asked("a", TrainTask)
    assert (first.attempt, second.attempt) == (0, 1)
    assert second.plan.predicted.peak_bytes < first.plan.predicted.peak_bytes
    finish(drive, "a")
    assert drive.phase == "aggregating"


@pytest.mark.parametrize("report", [failed(1), Refused(run=RUN, round=1, reason="hours")])
def test_what_an_agent_says_of_an_older_round_does_not_count_for_the_present_one(report: object) -> None:
    drive = training("a", "b")
    finish(drive, "a")
    _lose(drive, "b")
    drive(AgentOnline("b", "b-1"))
    drive.aggregate()
    drive.plan()
    assert drive.member("b").standing == "asked"
    assert drive.state.round == 2
    before = drive.state
    actions = drive.hear("b", report)
    assert drive.state == before
    assert drive.notes("late")
    assert not tasks(actions)


def test_an_update_of_an_older_round_is_declined_where_it_has_no_weight() -> None:
    drive = training("a", "b", late_weight=0.0)
    finish(drive, "a")
    _lose(drive, "b")
    drive(AgentOnline("b", "b-1"))
    drive.aggregate()
    drive.plan()
    assert drive.member("b").standing == "asked"
    ((_, ack),) = tasks(drive.hear("b", trained("b", 1)))
    assert isinstance(ack, Ack)
    assert (ack.accepted, ack.round, ack.sha256) == (False, 1, trained("b", 1).update.sha256)
    assert "round 1 is over" in ack.reason
    assert "rounds.late_weight is 0" in ack.reason
    assert drive.member("b").standing == "asked"
    assert not drive.all(Fetch)[1:]


def test_the_same_update_offered_twice_is_fetched_again_and_counted_once() -> None:
    drive = training("a", "b")
    offer = trained("a", 1)
    drive.hear("a", offer)
    before = drive.state
    assert drive.hear("a", offer) == (Fetch("a", 1, offer.update),)
    assert drive.state == before
    drive(UpdateStored("a", 1, offer.update.sha256))
    accepted = drive.state
    assert drive(UpdateStored("a", 1, offer.update.sha256)) == ()
    ((_, ack),) = tasks(drive.hear("a", offer))
    assert isinstance(ack, Ack)
    assert ack.accepted
    assert drive.state == accepted
    assert len(drive.member("a").measurements) == 2


def test_an_update_that_was_taken_is_never_called_not_taken() -> None:
    drive = training("a", number=2)
    finish(drive, "a")
    for phase in ("aggregating", "planning", "training"):
        assert drive.phase == phase
        before = drive.state
        ((_, ack),) = tasks(drive.hear("a", trained("a", 1)))
        assert isinstance(ack, Ack)
        assert (ack.accepted, ack.round) == (True, 1)
        assert drive.state == before
        if phase == "aggregating":
            drive.aggregate()
        elif phase == "planning":
            drive.plan()


def test_a_second_update_of_a_round_is_declined_once_one_is_taken() -> None:
    drive = training("a", "b")
    finish(drive, "a")
    other = trained("a", 1, "other")
    ((_, ack),) = tasks(drive.hear("a", other))
    assert isinstance(ack, Ack)
    assert (ack.accepted, ack.sha256) == (False, other.update.sha256)
    finish(drive, "b")
    assert drive.all(Aggregate)[0].updates["a"] == trained("a", 1).update.sha256


def test_an_agent_that_lost_the_update_that_is_fetched_trains_again() -> None:
    drive = training("a", "b")
    finish(drive, "b")
    first, second = trained("a", 1, "first"), trained("a", 1, "second")
    drive.hear("a", first)
    drive(AgentOffline("a"))
    ((_, task),) = tasks(drive(AgentOnline("a", "a-2")))
    assert isinstance(task, TrainTask)
    assert drive.member("a").standing == "offered"
    drive(UpdateDelayed("a", 1, first.update.sha256, "nothing came for 120 s"))
    assert StopFetch("a", first.update.sha256) in drive.hear("a", second)
    drive(UpdateStored("a", 1, first.update.sha256))  # of the transfer that was given up
    assert drive.member("a").standing == "offered"
    drive(UpdateStored("a", 1, second.update.sha256))
    assert drive.all(Aggregate)[0].updates["a"] == second.update.sha256


def test_an_agent_restarted_after_its_update_came_need_not_train_again() -> None:
    drive = training("a")
    offer = trained("a", 1)
    drive.hear("a", offer)
    drive(AgentOnline("a", "a-2"))
    drive(UpdateStored("a", 1, offer.update.sha256))
    assert drive.all(Aggregate)[0].updates == {"a": offer.update.sha256}


def test_an_update_that_is_rejected_leaves_the_round_to_the_others() -> None:
    drive = training("a", "b")
    offer = trained("a", 1)
    drive.hear("a", offer)
    drive(UpdateRejected("a", 1, offer.update.sha256, "up.lora_A: 3 of 16 values are not finite"))
    ack = drive.asked("a", Ack)[0]
    assert not ack.accepted
    assert "not finite" in ack.reason
    ((_, again),) = tasks(drive.hear("a", offer))
    assert isinstance(again, Ack)
    assert not again.accepted
    finish(drive, "b")
    assert list(drive.all(Aggregate)[0].updates) == ["b"]


def test_an_agent_that_left_with_its_update_learns_that_it_was_not_waited_for() -> None:
    drive = training("a", "b", number=1)
    offer = trained("b", 1)
    drive.hear("b", offer)
    _lose(drive, "b")
    finish(drive, "a")
    assert drive.phase == "aggregating"
    (ack,) = drive.asked("b", Ack)
    assert (ack.accepted, ack.sha256) == (False, offer.update.sha256)
    assert "went on without it" in ack.reason


def test_an_update_nobody_asked_for_is_declined() -> None:
    drive = training("a", "b", peaks={"b": 0})
    assert drive.asked("b", IdleTask)[0].no_plan.reason == "too small"
    ((_, ack),) = tasks(drive.hear("b", trained("b", 1)))
    assert isinstance(ack, Ack)
    assert not ack.accepted
    assert "too small" in ack.reason
    drive(AgentOnline("j", "j-1"))
    ((_, ack),) = tasks(drive.hear("j", trained("j", 1)))
    assert isinstance(ack, Ack)
    assert not ack.accepted
    assert not drive.all(Fetch)


def _b_fails_at_once(drive: Drive) -> float:
    """The time until the round is planned again."""
    began, asked = drive.now, len(drive.all(MakePlans))
    drive.hear("b", failed(1, "data", "row 7 has no label"))
    while drive.phase == "planning" and len(drive.all(MakePlans)) == asked:
        drive(Ticked(), after_s=0.5)
    return drive.now - began


def test_a_round_with_too_few_updates_is_planned_again_after_a_pause_and_then_given_up() -> None:
    drive = training("a", "b", min_agents=2, wait_s=150.0)
    finish(drive, "a")
    pauses = []
    while drive.state.open:
        pauses.append(_b_fails_at_once(drive))
        if drive.state.open:
            assert f"planned again in {pauses[-1]:.0f} s" in drive.notes("round-repeated")[-1].text
            drive.plan()
    assert pauses == [*PAUSES_S, 50.0, 0.0]  # the last pause ends with rounds.wait_s
    assert drive.phase == "failed"
    assert "rounds.min_agents is 2, 5 times in a row" in drive.state.note
    assert "row 7 has no label" in drive.state.note
    assert not drive.all(Aggregate)


def test_a_round_is_tried_three_times_however_long_each_attempt_takes() -> None:
    drive = training("a", "b", min_agents=2, wait_s=60.0)
    finish(drive, "a")
    for _ in range(MIN_ATTEMPTS):
        assert drive.state.open
        drive(Ticked(), after_s=120.0)
        assert _b_fails_at_once(drive) <= PAUSES_S[0]
        if drive.state.open:
            drive.plan()
    assert "3 times in a row" in drive.state.note


def test_a_round_that_succeeds_ends_the_count_and_the_pauses() -> None:
    drive = training("a", "b", min_agents=2, wait_s=60.0, number=3)
    finish(drive, "a")
    _b_fails_at_once(drive)
    drive.plan()
    finish(drive, "b")
    drive.aggregate()
    assert (drive.state.missed, drive.state.missed_since, drive.state.pause_s) == (0, None, 0.0)
    assert drive.all(MakePlans)[-1] == MakePlans(2, ("a", "b"))


def test_a_pause_goes_on_after_a_restart_with_the_time_that_is_left_of_it() -> None:
    drive = training("a", "b", min_agents=2)
    for _ in range(2):
        finish(drive, "a")
        drive.hear("b", failed(1))
        drive(Ticked(), after_s=12.0)
        if drive.phase == "planning" and drive.state.missed == 1:
            drive.plan()
    assert drive.state.pause_s == PAUSES_S[1]
    then, now = Moment("one", drive.now, 5000.0), Moment("another", 77.0, 5010.0)
    stored = RunState.model_validate_json(drive.state.model_dump_json())
    state, _ = resume(rebase(stored, then, now), 77.0)
    again = Drive(state, 77.0)
    for name in ("a", "b"):
        again(AgentOnline(name, f"{name}-1"))
    again(Ticked(), after_s=7.5)  # 12 s before, 10 s away, 7.5 s since
    assert not again.all(MakePlans)
    again(Ticked(), after_s=1.0)
    assert again.all(MakePlans) == [MakePlans(1, ("b",))]
    assert drive.state.missed_since is not None
    assert again.state.missed_since == pytest.approx(drive.state.missed_since + 77.0 - drive.now - 10.0)


def test_an_update_of_a_round_that_is_planned_again_counts_and_is_not_asked_anew() -> None:
    drive = training("a", "b", min_agents=2, number=1)
    drive.hear("a", evaluated(1, 0.5))
    finish(drive, "a")
    drive.hear("b", failed(1, "out-of-memory"))
    drive(Ticked(), after_s=PAUSES_S[0])
    assert drive.all(MakePlans)[-1] == MakePlans(1, ("b",))
    drive.plan()
    assert len(drive.asked("a", TrainTask)) == 1
    assert drive.asked("b", TrainTask)[-1].attempt == 1
    finish(drive, "b")
    assert drive.all(Aggregate) == [Aggregate(1, {name: trained(name, 1).update.sha256 for name in ("a", "b")})]


def test_a_transfer_that_died_is_tried_again_while_the_round_waits() -> None:
    drive = training("a", "b")
    finish(drive, "b")
    offer = trained("a", 1)
    drive.hear("a", offer)
    drive(UpdateDelayed("a", 1, offer.update.sha256, "the disk is full: make room"))
    assert not drive.asked("a", Ack)
    assert "disk is full" in drive.notes("delayed")[0].text
    assert drive(Ticked(), after_s=FETCH_AGAIN_S - 1) == ()
    assert drive(Ticked(), after_s=2) == (Fetch("a", 1, offer.update),)
    assert drive(Ticked(), after_s=FETCH_AGAIN_S + 1) == ()
    drive(UpdateStored("a", 1, offer.update.sha256))
    assert sorted(drive.all(Aggregate)[0].updates) == ["a", "b"]


def test_a_transfer_that_died_is_not_waited_for_beyond_the_deadline() -> None:
    drive = training("a", "b")
    finish(drive, "b")
    offer = trained("a", 1)
    drive.hear("a", offer)
    drive(Ticked(), after_s=AFTER_DEADLINE_S)
    assert drive.phase == "training"
    drive(UpdateDelayed("a", 1, offer.update.sha256, "nothing came for 120 s"))
    assert sorted(drive.all(Aggregate)[0].updates) == ["b"]


@pytest.mark.parametrize("phase", ["aggregating", "exporting"])
def test_work_that_lacks_room_is_asked_again_and_ends_no_run(phase: str) -> None:
    drive = training("a", number=1)
    finish(drive, "a")
    if phase == "exporting":
        drive.aggregate()
        drive.hear("a", evaluated(2))
    assert drive.phase == phase
    first = drive.actions[-1]
    drive(WorkDelayed(phase, "5 bytes are free"))
    drive(WorkDelayed(phase, "5 bytes are free"))
    assert (drive.phase, drive.state.note) == (phase, f"{phase} waits: 5 bytes are free")
    assert len(drive.notes("work-delayed")) == 1
    assert drive(Ticked(), after_s=WORK_AGAIN_S - 1) == ()
    assert drive(Ticked(), after_s=2) == (first,)
    assert drive(Ticked(), after_s=WORK_AGAIN_S + 1) == ()
    if phase == "aggregating":
        drive.aggregate()
    else:
        drive.export()
    assert drive.state.note == ""


def test_planning_that_lacks_room_is_asked_again() -> None:
    drive = training("a")
    finish(drive, "a")
    drive.aggregate()
    asked = drive.all(MakePlans)[-1]
    drive(WorkDelayed("planning", "5 bytes are free"))
    assert drive(Ticked(), after_s=1) == ()
    assert drive(Ticked(), after_s=WORK_AGAIN_S) == (asked,)


def test_too_few_plans_end_the_run_with_every_devices_reason() -> None:
    drive = Drive(begin(min_agents=2))
    for agent in ("a", "b"):
        drive(AgentOnline(agent, f"{agent}-1"))
    for agent in ("a", "b"):
        drive.hear(agent, survey())
    for agent in ("a", "b"):
        drive.hear(agent, scored())
    drive.plan({"b": 0})
    assert drive.phase == "failed"
    assert "1 agents can carry a plan, 2 are needed. b: too small" in drive.state.note


def test_planning_waits_a_moment_for_an_agent_that_was_just_lost() -> None:
    drive = training("a", "b")
    finish(drive, "a")
    drive(AgentOffline("b"))
    finish(drive, "b")
    before = len(drive.all(MakePlans))
    drive.aggregate()
    assert len(drive.all(MakePlans)) == before
    drive(AgentOnline("b", "b-1"))
    assert drive.all(MakePlans)[-1] == MakePlans(2, ("a", "b"))


def test_planning_goes_on_without_an_agent_that_stays_away() -> None:
    drive = training("a", "b")
    finish(drive, "a")
    drive(AgentOffline("b"))
    finish(drive, "b")
    drive.aggregate()
    drive(Ticked(), after_s=OFFLINE_GRACE_S + 1)
    assert drive.all(MakePlans)[-1] == MakePlans(2, ("a",))


def test_plans_of_another_round_are_not_taken() -> None:
    drive = training("a")
    finish(drive, "a")
    old = planned(drive.state, MakePlans(1, ("a",)))
    drive.aggregate()
    assert drive(old) == ()
    assert drive.phase == "planning"


def test_evaluation_goes_on_without_an_agent_that_left() -> None:
    drive = training("a", "b", number=1)
    finish(drive, "a")
    finish(drive, "b")
    drive.aggregate()
    assert drive.asked("b", EvaluateTask)
    drive.hear("a", evaluated(2))
    drive(AgentOffline("b"))
    drive(Ticked(), after_s=OFFLINE_GRACE_S + 1)
    assert drive.all(Export)
    (record,) = drive.all(SaveRound)
    assert record.metric is not None
    assert record.metric.examples == 4


def test_an_agent_just_lost_before_the_evaluation_is_waited_for() -> None:
    drive = training("a", number=1)
    finish(drive, "a")
    drive(AgentOffline("a"))
    drive.aggregate()
    assert drive.phase == "evaluating"
    ((_, task),) = tasks(drive(AgentOnline("a", "a-1")))
    assert isinstance(task, EvaluateTask)
    drive.hear("a", evaluated(2, 0.25))
    assert drive.state.final_metric is not None
    assert drive.state.final_metric.loss == 0.25


def test_evaluation_ends_when_its_time_is_over() -> None:
    drive = training("a", number=1)
    finish(drive, "a")
    drive.aggregate()
    drive(Ticked(), after_s=EVALUATION_GRACE_S + 1)
    assert drive.phase == "exporting"
    assert drive.state.final_metric is None


def test_metrics_weigh_by_examples_and_the_first_word_counts() -> None:
    drive = training("a", "b")
    drive.hear("a", evaluated(1, 1.0))
    drive.hear("a", evaluated(1, 9.0))
    many = evaluated(1, 3.0).model_copy(
        update={"metrics": evaluated(1, 3.0).metrics.model_copy(update={"examples": 12})}
    )
    drive.hear("b", many)
    finish(drive, "a")
    finish(drive, "b")
    assert drive.state.initial_metric is not None
    assert drive.state.initial_metric.loss == pytest.approx((4 * 1.0 + 12 * 3.0) / 16)


def test_only_a_share_of_the_agents_is_drawn_and_every_round_anew() -> None:
    agents = tuple("abcdef")
    drive = training(*agents, fraction=0.5, number=8)
    drawn = []
    while drive.phase == "training":
        (planned_for,) = {drive.all(MakePlans)[-1].agents}
        assert len(planned_for) == 3
        drawn.append(planned_for)
        for agent in planned_for:
            finish(drive, agent)
        drive.aggregate()
        if drive.phase == "planning":
            drive.plan()
    assert len(set(drawn)) > 1
    assert set().union(*drawn) == set(agents)
