"""Laws of the damped figures and of the cap after an out-of-memory error, for any history."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_fleet import minilm_device, minilm_steps
from run_support import plan, trained

from fedpipe_coordinator.runs.backoff import MOST_PATIENCE, Backoff, eased, ran_out
from fedpipe_coordinator.runs.steadying import FREE, HOLD, Rule, Steady, settle, slowed, taken
from fedpipe_profiles.device import DeviceProfile
from fedpipe_profiles.values import MAX_COUNT, MAX_RATE, MIN_RATE

FIGURES = st.floats(1.0, 1e15)
RULES = st.builds(Rule, drop=st.floats(0.0, 0.5), rise=st.floats(0.0, 0.5), reserve=st.floats(0.0, 0.1))


def profile(free: int, flops: float = 30e9, uplink: float = 20e6, latency_s: float = 0.05) -> DeviceProfile:
    found = minilm_device(1 << 20, flops_per_s=flops, uplink_bps=uplink, latency_s=latency_s).profile
    host = found.host.model_copy(update={"free_bytes": free})
    return found.model_copy(update={"host": host})


@given(st.lists(st.integers(0, MAX_COUNT), min_size=1, max_size=30))
def test_memory_in_use_is_never_above_what_was_said_last(history: list[int]) -> None:
    steady = Steady()
    for free in history:
        settled = settle(steady, profile(free), ())
        assert settled.profile.host.free_bytes <= free
        steady = settled.steady


@given(RULES, st.lists(FIGURES, min_size=1, max_size=30))
def test_what_is_used_was_nearly_said_and_bad_news_counts_at_once(rule: Rule, history: list[float]) -> None:
    in_use, held = taken(None, (), history[0], rule)
    assert in_use == history[0]
    for said in history[1:]:
        in_use, held = taken(in_use, held, said, rule)
        assert in_use <= said / (1 - rule.drop) * (1 + 1e-9)
        assert len(held) < HOLD


@given(RULES, FIGURES, FIGURES)
def test_a_figure_that_stays_is_followed_after_a_while(rule: Rule, before: float, after: float) -> None:
    in_use: float = before
    held: tuple[float, ...] = ()
    for _ in range(HOLD):
        in_use, held = taken(in_use, held, after, rule)
    assert after * (1 - rule.reserve) / (1 + rule.rise) * (1 - 1e-9) <= in_use
    assert in_use <= after / (1 - rule.drop) * (1 + 1e-9)
    assert taken(in_use, held, after, rule)[0] == in_use


@given(RULES, st.lists(st.floats(1.0, 1.0 + 1e-9), min_size=2, max_size=9))
def test_within_its_band_nothing_changes(rule: Rule, noise: list[float]) -> None:
    band = Rule(0.05, 0.05, rule.reserve)
    in_use = 1e9
    for share in noise:
        in_use, held = taken(in_use, (), 1e9 * share, band)
        assert (in_use, held) == (1e9, ())


@given(
    st.lists(
        st.tuples(
            st.integers(1, MAX_COUNT),
            st.floats(MIN_RATE, MAX_RATE),
            st.floats(MIN_RATE, MAX_RATE / 8),
            st.floats(0.0, 1e9),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_any_legal_history_gives_legal_figures_and_the_same_again(
    history: list[tuple[int, float, float, float]],
) -> None:
    def run() -> list[str]:
        steady, told = Steady(), []
        for said in history:
            settled = settle(steady, profile(*said), minilm_steps())
            steady = Steady.model_validate_json(settled.steady.model_dump_json())
            DeviceProfile.model_validate(settled.profile.model_dump())
            for step in settled.measurements:
                type(step).model_validate(step.model_dump())
            told.append(settled.steady.model_dump_json())
        return told

    assert run() == run()


def test_another_machine_of_the_same_name_begins_anew() -> None:
    steady = settle(Steady(), profile(1000), ()).steady
    other = profile(4000)
    other = other.model_copy(update={"host": other.host.model_copy(update={"cpu": "another"})})
    assert settle(steady, other, ()).profile.host.free_bytes == 4000
    assert settle(steady, profile(4000), ()).profile.host.free_bytes == 1000


def test_steps_of_a_faster_clock_are_told_as_the_present_one_takes_them() -> None:
    steps = minilm_steps((4, 8))
    steady = settle(Steady(), profile(1000), steps).steady
    halved = settle(steady, profile(1000, flops=15e9), steps)
    assert [m.step_s for m in halved.measurements] == pytest.approx([2 * m.step_s for m in steps])
    assert [m.peak_bytes for m in halved.measurements] == [m.peak_bytes for m in steps]
    newer = (*steps, slowed(steps[0], 2.0))
    heard = halved.steady.model_copy(update={"speeds": (*halved.steady.speeds, 0.0)})
    after = settle(heard, profile(1000, flops=15e9), newer)
    assert after.measurements[2] == newer[2]


def test_a_figure_that_is_no_more_said_is_forgotten() -> None:
    steady = settle(Steady(), profile(1000), ()).steady
    without = settle(steady, profile(1000).model_copy(update={"link": None}), ())
    assert set(without.steady.figures) == set(steady.figures) - {"uplink", "downlink", "latency"}
    assert without.profile.link is None
    assert FREE in without.steady.figures


# --- the cap ----------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=60), st.integers(1000, MAX_COUNT))
def test_a_failure_lowers_the_cap_below_the_plan_and_doubles_the_wait(fails: list[bool], peak: int) -> None:
    backoff, cap = Backoff(), None
    for failing in fails:
        made = min(peak, cap - 1) if cap is not None else peak
        if failing and made > 1:
            before = backoff
            backoff, cap = ran_out(backoff, cap, plan("a", 1, made))
            assert 0 < cap < made
            assert backoff.patience == (min(MOST_PATIENCE, 2 * before.patience) or 2)
        before_cap = cap
        backoff, cap = eased(backoff, cap, good=True)
        assert cap is None or before_cap is None or cap >= before_cap
        assert Backoff.model_validate_json(backoff.model_dump_json()) == backoff


def test_failing_at_each_try_is_ever_rarer_and_ends_with_none_forgotten() -> None:
    backoff, cap, failures = Backoff(), None, []
    for round_ in range(1000):
        backoff, cap = eased(backoff, cap, good=True)
        made = 100_000 if cap is None else min(100_000, cap - 1)
        if made >= 99_000:
            backoff, cap = ran_out(backoff, cap, plan("a", 1, made))
            failures.append(round_)
    waits = [after - before for before, after in itertools.pairwise(failures)]
    assert waits == sorted(waits)
    assert len(failures) <= 12
    assert waits[0] < 8


def test_who_was_disturbed_once_is_free_again_and_its_failure_forgotten() -> None:
    failed, lowered = ran_out(Backoff(), None, plan("a", 1, 1000))
    backoff, cap = eased(failed, lowered, good=True)
    for _ in range(40):
        backoff, cap = eased(backoff, cap, good=True)
    assert backoff == Backoff()
    assert cap is None


def test_a_bad_round_brings_no_step_up() -> None:
    backoff, cap = eased(*ran_out(Backoff(), None, plan("a", 1, 1000)), good=False)
    for _ in range(40):
        assert eased(backoff, cap, good=False) == (backoff, cap)


def test_what_fitted_in_the_plans_stead_is_allowed() -> None:
    took = trained("a", 1)
    fewer = took.measurement.model_copy(update={"bits": 8, "peak_bytes": 950})
    took = took.model_copy(update={"measurement": fewer, "out_of_memory": True})
    backoff, cap = ran_out(Backoff(), None, plan("a", 1, 1000), took)
    assert (backoff.most_bits, cap) == (8, 950)
    assert ran_out(Backoff(), None, plan("a", 1, 900), took)[1] == 899
