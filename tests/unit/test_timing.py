"""The time model: counts a reader can check, laws, and the fit on synthetic devices."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_fleet import minilm, minilm_steps, profile, tiny_model

from fedpipe_profiles.costs.fit import Line, LinePrior, Point, fit_line
from fedpipe_profiles.costs.rates import counted_s
from fedpipe_profiles.costs.step import AdapterSize, StepConfig, StepSetting, Task
from fedpipe_profiles.costs.timing import (
    DEFAULT_TIMING,
    DeviceRates,
    TimingCoefficients,
    TimingModel,
    device_rates,
    evaluation_example_s,
    expected_step_s,
    fit_timing,
    load_s,
    predict_step_s,
    step_s,
    transfer_s,
)
from fedpipe_profiles.costs.work import step_work
from fedpipe_profiles.device import Bits
from fedpipe_profiles.plan import StepMeasurement

ONE_PER_S = DeviceRates("cpu", {"float32": 1.0}, 1e30)
SETTING = StepSetting(
    bits=32,
    batch_size=3,
    sequence_length=5,
    gradient_checkpointing=False,
    task="sequence-classification",
    num_labels=3,
)
NO_ADAPTER = AdapterSize(0, 0, 0)


def test_operations_of_a_step() -> None:
    def operations(size: AdapterSize, setting: StepSetting = SETTING) -> float:
        return step_work(tiny_model(), setting, size).operations

    # 15 tokens: 576 frozen entries, 2 forward and 2 backward; attention 4 * 2 layers * 5 * 8, thrice
    attention = 15 * 4 * 2 * 5 * 8 * 3
    assert operations(NO_ADAPTER) == 15 * 576 * 4 + attention
    # a side path costs as a frozen weight does, a trained parameter half as much again
    assert operations(AdapterSize(0, 10, 0)) == 15 * 586 * 4 + attention
    assert operations(AdapterSize(10, 0, 0)) == pytest.approx(15 * (576 * 4 + 60) + attention)
    # checkpointing adds one forward
    again = operations(NO_ADAPTER, replace(SETTING, gradient_checkpointing=True))
    assert again - operations(NO_ADAPTER) == 15 * (576 * 2 + 4 * 2 * 5 * 8)


def test_quantized_bases_are_dequantized_in_every_pass() -> None:
    eight = replace(SETTING, bits=8)
    # forward and backward, every one of the 576 weights
    assert step_work(tiny_model(), eight, NO_ADAPTER).dequantized == 2 * 576
    assert step_work(tiny_model(), SETTING, NO_ADAPTER).dequantized == 0
    rates = DeviceRates("cpu", {"float32": 1e30}, 1.0)
    plain = counted_s(step_work(tiny_model(), SETTING, NO_ADAPTER), SETTING, rates)
    # without a rate of its own: one byte read and four written for each
    assert counted_s(step_work(tiny_model(), eight, NO_ADAPTER), eight, rates) - plain == pytest.approx(2 * 576 * 5)
    measured = replace(rates, values_per_s={8: 2.0})
    assert counted_s(step_work(tiny_model(), eight, NO_ADAPTER), eight, measured) - plain == pytest.approx(576)


def test_the_optimizer_takes_its_own_rate() -> None:
    some = AdapterSize(100, 0, 0)
    rates = DeviceRates("cpu", {"float32": 1e30}, 1.0)
    bare = counted_s(step_work(tiny_model(), SETTING, NO_ADAPTER), SETTING, rates)
    assert counted_s(step_work(tiny_model(), SETTING, some), SETTING, rates) - bare == pytest.approx(3200)
    faster = replace(rates, parameters_per_s=10.0)
    assert counted_s(step_work(tiny_model(), SETTING, some), SETTING, faster) - bare == pytest.approx(10)


def test_more_work_takes_longer() -> None:
    def seconds(config: StepConfig) -> float:
        return predict_step_s(minilm(), config, device_rates(profile(1 << 30)), DEFAULT_TIMING)

    base = StepConfig(
        bits=32,
        batch_size=8,
        sequence_length=40,
        gradient_checkpointing=False,
        task="sequence-classification",
        ranks={"pooler": 4},
        global_rank=8,
    )
    assert seconds(base) < seconds(replace(base, sequence_length=40.5))
    assert seconds(base) < seconds(replace(base, batch_size=9))
    assert seconds(base) < seconds(replace(base, ranks={"pooler": 8}))
    assert seconds(base) < seconds(replace(base, gradient_checkpointing=True))


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_a_step_is_linear_in_both_parameter_counts(bits: Bits, task: Task) -> None:
    setting = replace(SETTING, bits=bits, task=task)

    def seconds(trained: int, side: int) -> float:
        return step_s(minilm(), setting, AdapterSize(trained, side, 0), RATES, DEFAULT_TIMING)

    none, all_of_it = seconds(0, 1_000_000), seconds(1_000_000, 0)
    assert none < all_of_it
    assert seconds(250_000, 750_000) == pytest.approx(0.75 * none + 0.25 * all_of_it)


def test_a_plan_is_expected_to_take_no_longer_than_the_search_counts() -> None:
    def both(rank: int) -> tuple[float, float]:
        config = StepConfig(
            bits=32,
            batch_size=8,
            sequence_length=40,
            gradient_checkpointing=False,
            task="sequence-classification",
            ranks={weight.name: rank for weight in minilm().weights},
            global_rank=8,
        )
        rates = device_rates(profile(1 << 30))
        return expected_step_s(minilm(), config, rates, DEFAULT_TIMING), predict_step_s(
            minilm(), config, rates, DEFAULT_TIMING
        )

    expected, searched = both(4)
    assert expected == pytest.approx(searched)
    for rank in (0, 8):  # one adapter on every weight
        expected, searched = both(rank)
        assert 0.6 * searched < expected < searched


def test_published_rates_are_not_taken_for_measured_ones() -> None:
    measured = profile(1 << 30)
    sheet = measured.model_copy(
        update={
            "matmul": tuple(rate.model_copy(update={"source": "theoretical"}) for rate in measured.matmul),
            "bandwidth": measured.bandwidth.model_copy(update={"source": "theoretical"}),
        }
    )
    # large steps: kernels do not matter
    setting = replace(SETTING, batch_size=64, sequence_length=500)
    peak = step_work(minilm(), setting, NO_ADAPTER).operations / measured.matmul[0].flops_per_s
    seconds = step_s(minilm(), setting, NO_ADAPTER, device_rates(sheet), DEFAULT_TIMING)
    assert 0.3 < peak / seconds < 0.45
    assert seconds > step_s(minilm(), setting, NO_ADAPTER, device_rates(measured), DEFAULT_TIMING)


def test_bf16_without_a_rate_of_its_own_takes_that_of_float32() -> None:
    assert device_rates(profile(1 << 30)).flops(16) == 30e9
    rates = DeviceRates("cpu", {"float32": 1.0, "bfloat16": 3.0}, 1.0)
    assert (rates.flops(16), rates.flops(4), rates.flops(32)) == (3.0, 1.0, 1.0)


@pytest.mark.parametrize(("size", "bps", "latency", "expected"), [(0, 1e6, 0.2, 0.2), (2_500_000, 20e6, 0.5, 1.5)])
def test_transfer_s(size: int, bps: float, latency: float, expected: float) -> None:
    assert transfer_s(size, bps, latency) == pytest.approx(expected)


# --- fitting ----------------------------------------------------------------------------------------------------

RATES = device_rates(profile(1 << 30))


def _measured(batch_size: int, *, slowdown: float, kernel_s: float, **more: Any) -> StepMeasurement:
    """A step of a device whose real coefficients are known."""
    bits, tokens, again = more.pop("bits", 32), more.pop("tokens", 40), more.pop("again", False)
    setting = replace(SETTING, bits=bits, batch_size=batch_size, sequence_length=tokens, gradient_checkpointing=again)
    work = step_work(minilm(), setting, AdapterSize(3080, 1_351_680, 0, 37))
    seconds = slowdown * counted_s(work, setting, RATES) + kernel_s * work.kernels
    return StepMeasurement.model_validate(
        {
            "bits": bits,
            "batch_size": batch_size,
            "sequence_length": tokens,
            "gradient_checkpointing": again,
            "trainable_parameters": 3080,
            "side_parameters": 1_351_680,
            "adapter_paths": 37,
            "steps": 30,
            "step_s": seconds * more.pop("off", 1.0),
            "peak_bytes": 1,
            "context_bytes": 0,
            **more,
        }
    )


def _fit(*measurements: StepMeasurement) -> TimingModel:
    return fit_timing(minilm(), measurements, RATES, task="sequence-classification")


def _predicted(model: TimingModel, m: StepMeasurement) -> float:
    setting = replace(
        SETTING,
        bits=m.bits,
        batch_size=m.batch_size,
        sequence_length=m.sequence_length,
        gradient_checkpointing=m.gradient_checkpointing,
    )
    size = AdapterSize(m.trainable_parameters, m.side_parameters, 0, m.adapter_paths)
    return step_s(minilm(), setting, size, RATES, model.coefficients(m.bits))


@pytest.mark.parametrize(("slowdown", "kernel_s"), [(0.4, 20e-6), (1.0, 5e-6), (6.0, 100e-6)])
def test_the_fit_recovers_a_device(slowdown: float, kernel_s: float) -> None:
    model = _fit(*(_measured(b, slowdown=slowdown, kernel_s=kernel_s) for b in (2, 4, 16)))
    found = model.coefficients(32)
    assert found.slowdown == pytest.approx(slowdown, rel=0.1)
    assert found.kernel_s == pytest.approx(kernel_s, rel=0.2, abs=5e-6)
    unseen = _measured(32, slowdown=slowdown, kernel_s=kernel_s, tokens=90, again=True)
    assert _predicted(model, unseen) == pytest.approx(unseen.step_s, rel=0.05)


@given(
    slowdown=st.floats(0.3, 10.0),
    kernel_s=st.floats(1e-6, 1e-4),
    noise=st.lists(st.floats(0.95, 1.05), min_size=8, max_size=8),
    stalled=st.integers(0, 7),
    stall=st.floats(1.0, 50.0),
)
@settings(max_examples=40, deadline=None)
def test_noise_and_a_stall_change_little(
    slowdown: float, kernel_s: float, noise: list[float], stalled: int, stall: float
) -> None:
    steps = [
        _measured(
            2 ** (index % 4 + 1), slowdown=slowdown, kernel_s=kernel_s, off=off * (stall if index == stalled else 1.0)
        )
        for index, off in enumerate(noise)
    ]
    calm = _measured(8, slowdown=slowdown, kernel_s=kernel_s)
    assert _predicted(_fit(*steps), calm) == pytest.approx(calm.step_s, rel=0.3)


@pytest.mark.parametrize("slowdown", [0.3, 1.0, 10.0])
def test_one_step_predicts_itself(slowdown: float) -> None:
    only = _measured(16, slowdown=slowdown, kernel_s=10e-6)
    assert _predicted(_fit(only), only) == pytest.approx(only.step_s, rel=0.03)


@pytest.mark.parametrize("times", [0.5, 2.0, 4.0])
def test_a_device_that_changes_its_speed_is_followed_within_two_rounds(times: float) -> None:
    before = [_measured(b, slowdown=1.0, kernel_s=10e-6) for b in (4, 16, 16, 8, 8, 4)]
    now = [_measured(b, slowdown=times, kernel_s=times * 10e-6) for b in (8, 16)]
    assert _predicted(_fit(*before, *now), now[0]) == pytest.approx(now[0].step_s, rel=0.15)


def test_a_single_stalled_round_is_forgotten_by_the_next() -> None:
    usual = [_measured(b, slowdown=1.0, kernel_s=10e-6) for b in (4, 16, 8)]
    stalled = _measured(8, slowdown=4.0, kernel_s=40e-6)
    assert _predicted(_fit(*usual, stalled, usual[0]), usual[2]) == pytest.approx(usual[2].step_s, rel=0.1)


def test_unmeasured_bits_take_the_ratio_of_the_measured_ones() -> None:
    model = _fit(
        *(_measured(b, slowdown=1.0, kernel_s=10e-6, bits=32) for b in (2, 16)),
        *(_measured(b, slowdown=4.0, kernel_s=10e-6, bits=8) for b in (2, 16)),
    )
    assert model.coefficients(4).slowdown == pytest.approx(2.0, rel=0.1)
    assert TimingModel().coefficients(4) == DEFAULT_TIMING


def test_evaluation_and_other_work_follow_what_was_measured() -> None:
    common: dict[str, Any] = {"slowdown": 1.0, "kernel_s": 10e-6, "evaluation_example_s": 0.02}
    steps = [_measured(16, **common, other_s=seconds) for seconds in (0.4, 0.4, 9.0, 0.5)]
    found = _fit(*steps).coefficients(32)
    setting = replace(SETTING, batch_size=16, sequence_length=40)
    size = AdapterSize(3080, 1_351_680, 0, 37)
    assert evaluation_example_s(minilm(), setting, size, RATES, found) == pytest.approx(0.02)
    assert found.other_s == 0.5  # one slow disk is no rule
    assert _fit(_measured(16, **common)).coefficients(32).other_s == DEFAULT_TIMING.other_s


def test_loading_is_told_by_the_newest_load_at_these_bits() -> None:
    def load(bits: Bits, seconds: float) -> StepMeasurement:
        return _measured(16, slowdown=1.0, kernel_s=10e-6, bits=bits, load_s=seconds)

    # the first load of a process imports libraries too
    assert load_s(minilm(), _fit(load(32, 3.0)).coefficients(32)) == 3.0
    assert load_s(minilm(), _fit(load(32, 3.0), load(32, 3.0), load(4, 1.0)).coefficients(32)) == 1.0
    assert load_s(minilm(), _fit(load(32, 3.0), load(4, 1.0), load(8, 2.0)).coefficients(4)) == 1.0
    # never measured: as long as the newest one, or as the first one without its imports
    assert load_s(minilm(), _fit(load(32, 3.0)).coefficients(4)) == pytest.approx(1.0)
    assert 0 < load_s(minilm(), _fit(load(32, 0.5)).coefficients(4)) < 0.5
    assert load_s(minilm(), _fit(load(32, 3.0), load(4, 1.0)).coefficients(8)) == 1.0
    # 22.7 million parameters of 2 bytes at 200 MB/s
    assert load_s(minilm(), TimingCoefficients()) == pytest.approx(0.227, rel=0.01)


def test_a_real_machine_is_predicted_from_its_own_steps() -> None:
    model = fit_timing(minilm(), minilm_steps(), RATES, task="sequence-classification")
    setting = replace(SETTING, batch_size=16, sequence_length=40)
    for bits in (4, 8, 16, 32):
        seconds = step_s(
            minilm(), replace(setting, bits=bits), AdapterSize(3080, 1_351_680, 0), RATES, model.coefficients(bits)
        )
        assert 16 / seconds == pytest.approx(40, rel=0.1)


def test_line_without_points_is_its_prior_and_limits_hold() -> None:
    prior = LinePrior(2.0, 1.0, 3.0, 1.0, least_slope=0.5, least_intercept=0.0)
    assert fit_line([], prior) == Line(2.0, 3.0)
    falling = fit_line([Point(0.0, 9.0, 0.01), Point(10.0, 1.0, 0.01)], prior)
    assert falling.slope == 0.5
    below = fit_line([Point(1.0, 1.0, 0.01), Point(2.0, 6.0, 0.01)], prior)
    assert below.intercept == 0.0
    assert below.slope == pytest.approx(13 / 5, rel=0.01)
