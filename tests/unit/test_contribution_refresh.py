"""Contributions measured again: averaged with the old ones, followed by the plan, refused where they are not sound."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_support import Drive, device, evaluated, finish, name_of, ref, scored, trained, training

from fedpipe_coordinator.runs.run_events import MakePlans, UpdateStored
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_coordinator.work import make_plans
from fedpipe_profiles.contribution import Contribution, average_contributions, moved_share, refreshed
from fedpipe_profiles.plan import Plan
from fedpipe_profiles.values import MAX_GAIN
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.coordinator_messages import TrainTask

AGENTS = ("a", "b")


def contribution(**heights: float) -> Contribution:
    curves = {name: tuple(height * rank**0.5 for rank in (1, 2, 3, 4)) for name, height in heights.items()}
    return Contribution(examples=8, curves=curves)


def drive_in(refresh_rounds: int = 1, number: int = 3) -> Drive:
    """A run in its first round, whose contributions are refreshed every so many rounds."""
    drive = training(*AGENTS, number=number)
    adapter = drive.state.job.adapter.model_copy(update={"refresh_rounds": refresh_rounds})
    drive.state = drive.state.model_copy(update={"job": drive.state.job.model_copy(update={"adapter": adapter})})
    return drive


def report(drive: Drive, agent: str, curves: Contribution | None, *more: object) -> None:
    """An agent's training is done, its curves with it, and its update stored."""
    drive.hear(agent, evaluated(drive.state.round))
    offer = trained(agent, drive.state.round, *more).model_copy(update={"contribution": curves})
    drive.hear(agent, offer)
    drive(UpdateStored(agent, drive.state.round, offer.update.sha256))


# --- what a refresh makes of one agent's curves -----------------------------------------------------------------


def test_half_of_what_was_and_half_of_what_is_by_shares() -> None:
    before = Contribution(examples=8, curves={"x": (3.0, 6.0), "y": (1.0, 2.0)})
    measured = Contribution(examples=2, curves={"x": (0.01, 0.02), "y": (0.04, 0.06)})
    found = refreshed(before, measured)
    # of 8: x had 6 and has a quarter of the new, y had 2 and has three quarters
    assert found.curves["x"] == pytest.approx((0.5 * 3 + 0.5 * 8 / 8, 0.5 * 6 + 0.5 * 8 / 4))
    assert found.curves["y"] == pytest.approx((0.5 * 1 + 0.5 * 8 / 2, 0.5 * 2 + 0.5 * 6))
    assert found.examples == 8
    assert moved_share(before.curves, found.curves) == pytest.approx({"x": -0.25, "y": 0.25})


gains = st.one_of(st.just(0.0), st.floats(1e-300, MAX_GAIN), st.sampled_from((5e-324, MAX_GAIN)))
curve_lists = st.lists(gains, min_size=3, max_size=3).map(lambda rises: tuple(sorted(rises)))
any_curves = st.fixed_dictionaries({"x": curve_lists, "y": curve_lists})


@given(any_curves, st.lists(any_curves, min_size=1, max_size=4))
def test_no_refresh_makes_curves_that_cannot_be_stored_or_weigh_more(first: Any, later: list[Any]) -> None:
    start = Contribution(examples=8, curves=first)
    now = start
    for curves in later:
        now = refreshed(now, Contribution(examples=1 << 40, curves=curves))
    assert Contribution.model_validate_json(now.model_dump_json()) == now
    assert now.examples == 8
    size = sum(curve[-1] for curve in first.values())
    if size > 1e-290:  # below, halves are rounded
        assert sum(curve[-1] for curve in now.curves.values()) <= size * (1 + 1e-9)
    assert all(list(curve) == sorted(curve) for curve in now.curves.values())


def test_gradients_that_are_all_zero_change_nothing() -> None:
    before = contribution(x=1.0, y=2.0)
    assert refreshed(before, contribution(x=0.0, y=0.0)) == before


def test_curves_of_two_methods_are_not_averaged() -> None:
    other = contribution(x=1.0).model_copy(update={"method": "sensitivity"})
    with pytest.raises(ValueError, match="gradient-sketch, sensitivity"):
        average_contributions([contribution(x=1.0), other])


# --- in a run ---------------------------------------------------------------------------------------------------


def test_agents_are_asked_every_so_many_rounds_but_not_in_the_last() -> None:
    drive = drive_in(refresh_rounds=2, number=4)
    for round_ in (1, 2, 3, 4):
        for agent in AGENTS:
            report(drive, agent, None)
        drive.aggregate()
        if round_ < 4:
            drive.plan()
    asked = {task.round: task.score_batches for task in drive.asked("a", TrainTask)}
    assert asked == {1: 0, 2: drive.state.job.train.score_batches, 3: 0, 4: 0}


def real_plan(drive: Drive, folder: Path) -> Plan:
    """What the real planner gives agent `a`, which can carry only a part of the ranks."""
    state = drive.state
    profile = device("a", memory_free_bytes=1 << 30)
    action = MakePlans(state.round, ("a",))
    limits = profile.limits.model_copy(update={"uplink_bps": 60.0})
    slow = profile.model_copy(update={"limits": limits})
    made = make_plans(state.model_copy(update={"adapter": None}), action, {"a": slow}, BlobStore(folder), folder)
    return made.plans["a"]


def test_the_next_plan_follows_what_moved(tmp_path: Path) -> None:
    steady, moving = drive_in(), drive_in()
    at_first = scored().contribution.curves
    assert max(at_first, key=lambda name: at_first[name][-1]) == "out"
    for drive, curves in ((steady, None), (moving, contribution(up=100.0, down=1.0, out=1.0))):
        for agent in AGENTS:
            report(drive, agent, curves)
        drive.aggregate()
    before, after = (drive.state.curves for drive in (steady, moving))
    assert before == at_first
    assert max(after, key=lambda name: after[name][-1]) == "up"
    plans = [real_plan(drive, tmp_path / str(at)) for at, drive in enumerate((steady, moving))]
    ranks = [plan.ranks.get("up", 0) for plan in plans]
    assert ranks[1] > ranks[0]
    note = moving.notes("contributions")[-1]
    assert note.data["moved"]["up"] > 0.3
    assert "up" in note.text
    assert steady.notes("contributions")[-1].round == 0


def test_only_the_first_refresh_of_a_round_counts_and_none_costs_an_update() -> None:
    drive = drive_in()
    for attempt in range(3):
        offer = trained("a", 1, attempt).model_copy(update={"contribution": contribution(up=9.0, down=1.0, out=1.0)})
        drive.hear("a", offer)
    assert len(drive.notes("refreshed")) == 1
    once = drive_in()
    report(once, "a", contribution(up=9.0, down=1.0, out=1.0))
    assert drive.member("a").contribution == once.member("a").contribution


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        (contribution(up=1.0), "do not fit the model"),
        (contribution(up=1.0, down=1.0, out=1.0, more=1.0), "do not fit the model"),
        (Contribution(examples=8, curves=dict.fromkeys(("up", "down", "out"), (1.0, 2.0))), "expected 4 ranks, got 2"),
        (contribution(up=1.0, down=1.0, out=1.0).model_copy(update={"method": "sensitivity"}), "'sensitivity'"),
        (Contribution(examples=8, curves=dict.fromkeys(("up", "down", "out"), (9.0, 8.0, 7.0, 1.0))), "falls"),
        (Contribution(examples=8, curves=dict.fromkeys(("up", "down", "out"), (1.0, 2.0, 4.0, 8.0))), "bends upwards"),
    ],
    ids=(
        "a weight is missing",
        "a weight too many",
        "too short",
        "another method",
        "a curve that falls",
        "a curve that bends up",
    ),
)
def test_what_is_wrong_with_new_curves_is_said_and_counted_and_changes_nothing(curves: Contribution, said: str) -> None:
    drive = drive_in()
    before = drive.member("a").contribution
    report(drive, "a", curves)
    assert drive.member("a").contribution == before
    assert drive.member("a").standing == "accepted"
    assert drive.member("a").refused_refreshes == 1
    (note,) = drive.notes("refresh-refused")
    assert said in note.text
    assert note.data["refused"] == 1
    report(drive, "b", None)
    drive.aggregate()
    assert drive.state.curves == scored().contribution.curves


def test_curves_that_nobody_asked_for_are_refused() -> None:
    drive = drive_in(refresh_rounds=2)
    report(drive, "a", contribution(up=9.0, down=1.0, out=1.0))
    assert "not asked for" in drive.notes("refresh-refused")[0].text
    assert not drive.state.curves_moved


def test_a_restart_in_between_changes_nothing() -> None:
    plain, restarted = drive_in(), drive_in()
    for drive in (plain, restarted):
        report(drive, "a", contribution(up=9.0, down=1.0, out=1.0))
        if drive is restarted:
            drive.state = RunState.model_validate_json(drive.state.model_dump_json())
        report(drive, "b", contribution(up=1.0, down=5.0, out=1.0))
        drive.aggregate()
    assert plain.state.model_dump_json() == restarted.state.model_dump_json()


def test_who_reported_first_does_not_matter() -> None:
    drives = drive_in(), drive_in()
    for drive, order in zip(drives, (AGENTS, AGENTS[::-1]), strict=True):
        for agent in order:
            report(drive, agent, contribution(up=9.0 if agent == "a" else 1.0, down=2.0, out=1.0))
        drive.aggregate()
    assert drives[0].state.curves == drives[1].state.curves


def test_a_state_stored_before_there_were_refreshes_is_still_read() -> None:
    drive = drive_in()
    old = json.loads(drive.state.model_dump_json())
    for member in old["members"].values():
        del member["refreshed"], member["refused_refreshes"], member["contribution"]["method"]
    del old["curves_moved"], old["job"]["adapter"]["contribution"], old["job"]["adapter"]["refresh_rounds"]
    state = RunState.model_validate(old)
    assert state.members["a"].contribution == drive.member("a").contribution
    assert not state.curves_moved


def test_curves_are_not_kept_with_what_an_agent_reported() -> None:
    drive = drive_in()
    report(drive, "a", contribution(up=9.0, down=1.0, out=1.0))
    kept = drive.member("a").trained
    assert kept is not None
    assert kept.contribution is None
    finish(drive, "b")
    assert ref(name_of("update", "a", 1)) == kept.update
