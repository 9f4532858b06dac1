"""Devices that change during a run, through the real run machine and the real planner: what is followed, and when."""

import pytest
from planning_fleet import first_components, minilm_device, minilm_job
from replanned_fleet import CONTEXT, Trial, Truth, flips, noisy

from fedpipe_coordinator.runs.backoff import Backoff, ran_out
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_coordinator.runs.steadying import HOLD
from fedpipe_profiles.device import MIB
from fedpipe_profiles.plan import NoPlan, Plan
from fedpipe_profiles.planning.planner import plan_device

ROUNDS = 50
MOST_FLIPS = 3
"""Of bits or batch in fifty rounds, on a device whose every figure is noise."""


def ranks(plan: Plan | NoPlan) -> int:
    return 0 if isinstance(plan, NoPlan) else sum(plan.ranks.values())


def examples(plan: Plan | NoPlan) -> int:
    return 0 if isinstance(plan, NoPlan) else plan.examples


def told(trial: Trial) -> list[str]:
    """What the record says of device a's plans."""
    return [note.text for note in trial.drive.notes("replanned") if note.agent == "a"]


def undamped(truth: Truth, deadline_s: float) -> list[tuple[int, int] | None]:
    """What the planner alone would do with what the device says."""
    found: list[tuple[int, int] | None] = []
    for at in range(1, ROUNDS + 1):
        device = minilm_device(1)
        problem = type(device)(
            profile=truth.profile(at),
            measurements=device.measurements,
            train_examples=device.train_examples,
            held_out_examples=device.held_out_examples,
            mean_tokens=device.mean_tokens,
        )
        plan = plan_device(minilm_job(), problem, round_=1, deadline_s=deadline_s, draw=first_components)
        found.append(None if isinstance(plan, NoPlan) else (plan.bits, plan.batch_size))
    return found


def nervous(free_mib: float, seed: int) -> Truth:
    memory, rates = noisy(seed, 0.08), noisy(seed + 100, 0.1)
    return Truth(free_mib=lambda _: free_mib * memory(), noise=rates)


@pytest.mark.parametrize(("free_mib", "deadline_s", "rounds"), [(720, 10.0, ROUNDS), (800, None, ROUNDS // 2)])
def test_noise_flips_neither_bits_nor_batch(free_mib: float, deadline_s: float | None, rounds: int) -> None:
    trial = Trial([nervous(free_mib, 7)], deadline_s=deadline_s).rounds(rounds)
    assert flips(trial.settings()) <= MOST_FLIPS
    assert trial.failures == []


def test_the_same_noise_flips_an_undamped_plan_all_the_time() -> None:
    assert flips(undamped(nervous(660, 7), 10.0)) > 3 * MOST_FLIPS


def test_no_plan_is_above_what_is_free_now() -> None:
    truth = nervous(700, 3)
    trial = Trial([truth], deadline_s=20.0)
    for _ in range(12):
        trial.plan()
        said = trial.drive.member("a").steady.figures["free memory"] / MIB
        assert trial.peaks()[-1] <= said + 1e-6
        trial.train()
    assert trial.failures == []


def test_a_shrink_is_followed_in_the_next_round_and_a_growth_soon() -> None:
    trial = Trial([Truth(free_mib=lambda at: 900 if at < 4 or at >= 8 else 620)]).rounds(8 + HOLD)
    peaks, trained = trial.peaks(), [ranks(plan) for plan in trial.history["a"]]
    assert min(peaks[:3]) > 620
    assert max(peaks[3:7]) <= 620
    assert 0 < max(trained[3:7]) < trained[2]
    assert trained[7 + HOLD - 1] == trained[2]
    assert any("free memory 900 -> 595 MiB" in text for text in told(trial))
    assert trial.failures == []


@pytest.mark.parametrize("says_its_speed", [True, False], ids=["by its profile", "by its steps alone"])
def test_a_throttled_clock_is_planned_with_in_the_next_round(*, says_its_speed: bool) -> None:
    truth = Truth(speed=lambda at: 0.5 if 4 <= at < 9 else 1.0, says_its_speed=says_its_speed)
    trial = Trial([truth], deadline_s=8.0).rounds(9 + HOLD)
    done = [examples(plan) for plan in trial.history["a"]]
    first = 3 if says_its_speed else 4  # the profile tells it before the round, the steps after it
    assert done[2] > 150
    assert max(done[first + 1 : 8]) < 0.7 * done[2]
    assert done[-1] > 0.8 * done[2]
    assert any(("GFLOP/s" if says_its_speed else "times as long") in text for text in told(trial))


def test_one_stalled_round_is_forgotten_by_the_next() -> None:
    truth = Truth(speed=lambda at: 0.4 if at == 5 else 1.0, says_its_speed=False)
    trial = Trial([truth], deadline_s=8.0).rounds(8)
    done = [examples(plan) for plan in trial.history["a"]]
    assert done[5] < 0.7 * done[3]
    assert min(done[6:]) > 0.85 * done[3]


def test_a_slowed_link_is_planned_with_in_the_next_round() -> None:
    trial = Trial([Truth(uplink_mbit=lambda at: 1.0 if 4 <= at < 8 else 20.0)], deadline_s=12.0).rounds(8 + HOLD)
    sent = [ranks(plan) for plan in trial.history["a"]]
    assert max(sent[3:7]) < 0.2 * sent[2]
    assert sent[-1] > 0.5 * sent[2]
    assert any("uplink 20 -> 1 Mbit/s" in text for text in told(trial))


@pytest.mark.parametrize("slower", [2.0, 5.0])
def test_a_link_that_is_a_little_slower_is_planned_with_at_once_and_a_faster_one_later(slower: float) -> None:
    truth = Truth(uplink_mbit=lambda at: 20.0 / slower if 6 <= at < 12 else 20.0)
    trial = Trial([truth], deadline_s=12.0).rounds(12 + HOLD)
    plans = [plan for plan in trial.history["a"] if isinstance(plan, Plan)]
    assert len(plans) == 12 + HOLD
    taken = [truth.upload_s(plan, at) / plan.predicted.up_s for at, plan in enumerate(plans, start=1)]
    assert max(taken[2:]) < 1.15, "a transfer took longer than a plan expected"
    # its figures are believed again once they have held, and not before
    assert [round(ratio, 1) for ratio in taken[6:11]] == [1.0] * 5
    assert taken[12] < 0.8
    assert min(taken[-2:]) > 0.85


@pytest.mark.parametrize("catches", [True, False], ids=["caught by its trainer", "failed"])
def test_out_of_memory_is_planned_smaller_and_recovers(*, catches: bool) -> None:
    hidden = Truth(free_mib=lambda _: 800, hidden_mib=lambda at: 200 if at < 4 else 0, catches=catches)
    trial = Trial([hidden], deadline_s=20.0).rounds(40)
    peaks = trial.peaks()
    assert trial.failures
    for at in trial.failures:
        assert peaks[at] < peaks[at - 1]
    untroubled = Trial([Truth(free_mib=lambda _: 800)], deadline_s=20.0).rounds(40)
    assert ranks(trial.history["a"][-1]) > 0.9 * ranks(untroubled.history["a"][-1])
    assert trial.drive.member("a").memory_cap_bytes is None


def test_who_always_lies_about_its_memory_fails_ever_more_rarely() -> None:
    trial = Trial([Truth(free_mib=lambda _: 900, hidden_mib=lambda _: 280)], deadline_s=20.0).rounds(100)
    assert 0 < len(trial.failures) < 8
    assert sum(plan is not None for plan in trial.settings()) > 90


def test_fewer_bits_that_worked_are_planned_next() -> None:
    hidden = Truth(free_mib=lambda _: 900, hidden_mib=lambda at: 300 if at == 1 else 0, catches=True)
    trial = Trial([hidden], deadline_s=20.0).rounds(2)
    first, second = trial.history["a"]
    assert isinstance(first, Plan)
    assert isinstance(second, Plan)
    assert second.bits < first.bits
    assert second.predicted.peak_bytes < first.predicted.peak_bytes
    (note,) = [note for note in trial.drive.notes("replanned") if note.agent == "a"]
    assert "it ran out of memory" in note.text
    assert note.data["from"]["bits"] == first.bits
    assert note.data["to"]["bits"] == second.bits
    assert trial.drive.member("a").replanned in note.text


@pytest.mark.parametrize("free_mib", [700, 800, 1000])
def test_a_setting_that_failed_is_not_tried_again_at_once_at_fewer_ranks(free_mib: int) -> None:
    trial = Trial([Truth(free_mib=lambda _: free_mib)], deadline_s=20.0).rounds(2)
    first, second = trial.history["a"]
    assert isinstance(first, Plan)
    assert isinstance(second, Plan)
    assert (first.bits, first.batch_size) == (second.bits, second.batch_size)
    state, member = trial.drive.state, trial.drive.member("a")
    # what fitted in its stead took almost as much: the cap leaves room for the same with fewer ranks
    failed, _ = ran_out(Backoff(), None, second, None)
    told = {"backoff": failed, "memory_cap_bytes": second.predicted.peak_bytes * 99 // 100}
    trial.drive.state = state.model_copy(update={"members": {**state.members, "a": member.model_copy(update=told)}})
    trial.plan()
    third = trial.history["a"][-1]
    assert isinstance(third, Plan)
    smaller = third.bits < second.bits or third.batch_size < second.batch_size
    assert smaller or third.gradient_checkpointing > second.gradient_checkpointing


def test_the_same_history_gives_the_same_plans_also_across_a_restart() -> None:
    def history(*, restarted: bool) -> list[Plan | NoPlan]:
        trial = Trial([nervous(700, 5)], deadline_s=20.0)
        for _ in range(6):
            trial.plan()
            trial.train()
            if restarted:
                trial.drive.state = RunState.model_validate_json(trial.drive.state.model_dump_json())
        return trial.history["a"]

    assert history(restarted=False) == history(restarted=True)


def test_a_store_without_memories_is_planned_from() -> None:
    trial = Trial([Truth()]).rounds(2)
    raw = trial.drive.state.model_dump(mode="json")
    for member in raw["members"].values():
        for name in ("steady", "backoff", "replanned"):
            del member[name]
    raw["members"]["a"]["memory_cap_bytes"] = 120 * MIB
    trial.drive.state = RunState.model_validate(raw)
    trial.rounds(30)
    assert trial.peaks()[2] < (CONTEXT + 1.1 * 140 * MIB) / MIB
    assert trial.drive.member("a").memory_cap_bytes is None
