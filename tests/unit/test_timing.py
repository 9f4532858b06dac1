"""The time model: counts a reader can check, laws, and the fit on synthetic devices."""

from dataclasses import replace

import pytest
from planning_fleet import minilm, minilm_steps, profile, tiny_model

from fedpipe_profiles.costs.fit import Line, LinePrior, Point, fit_line
from fedpipe_profiles.costs.step import AdapterSize, StepConfig, StepSetting
from fedpipe_profiles.costs.timing import (
    DEFAULT_TIMING,
    DeviceRates,
    TimingCoefficients,
    TimingModel,
    counted_step_s,
    device_rates,
    evaluation_example_s,
    fit_timing,
    load_s,
    predict_step_s,
    step_s,
    transfer_s,
)
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
    # 15 tokens: 576 frozen entries, 2 forward and 2 backward; attention 4 * 2 layers * 5 * 8, thrice
    attention = 15 * 4 * 2 * 5 * 8 * 3
    assert counted_step_s(tiny_model(), SETTING, NO_ADAPTER, ONE_PER_S) == 15 * 576 * 4 + attention
    # a side path costs as a frozen weight does, a trained parameter half as much again
    side = counted_step_s(tiny_model(), SETTING, AdapterSize(0, 10, 0), ONE_PER_S)
    trained = counted_step_s(tiny_model(), SETTING, AdapterSize(10, 0, 0), ONE_PER_S)
    assert side == 15 * 586 * 4 + attention
    assert trained == pytest.approx(15 * (576 * 4 + 60) + attention)


def test_checkpointing_adds_one_forward() -> None:
    plain = counted_step_s(tiny_model(), SETTING, NO_ADAPTER, ONE_PER_S)
    again = counted_step_s(tiny_model(), replace(SETTING, gradient_checkpointing=True), NO_ADAPTER, ONE_PER_S)
    assert again - plain == 15 * (576 * 2 + 4 * 2 * 5 * 8)


def test_quantized_bases_are_dequantized_in_every_pass() -> None:
    slow_memory = DeviceRates("cpu", {"float32": 1e30}, 1.0)
    # forward and backward, 768 bytes read and 576 floats written each time
    found = counted_step_s(tiny_model(), replace(SETTING, bits=8), NO_ADAPTER, slow_memory)
    assert found == pytest.approx(2 * (768 + 2304))
    assert counted_step_s(tiny_model(), SETTING, NO_ADAPTER, slow_memory) == pytest.approx(0, abs=1e-6)


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


def test_bf16_without_a_rate_of_its_own_takes_that_of_float32() -> None:
    assert device_rates(profile(1 << 30)).flops(16) == 30e9
    rates = DeviceRates("cpu", {"float32": 1.0, "bfloat16": 3.0}, 1.0)
    assert (rates.flops(16), rates.flops(4), rates.flops(32)) == (3.0, 1.0, 1.0)


@pytest.mark.parametrize(("size", "bps", "latency", "expected"), [(0, 1e6, 0.2, 0.2), (2_500_000, 20e6, 0.5, 1.5)])
def test_transfer_s(size: int, bps: float, latency: float, expected: float) -> None:
    assert transfer_s(size, bps, latency) == pytest.approx(expected)


# --- fitting ----------------------------------------------------------------------------------------------------

RATES = device_rates(profile(1 << 30))


def _measured(
    batch_size: int, *, slowdown: float, overhead_s: float, bits: Bits = 32, tokens: int = 40, **more: float
) -> StepMeasurement:
    setting = replace(SETTING, bits=bits, batch_size=batch_size, sequence_length=tokens)
    size = AdapterSize(3080, 1_351_680, 0)
    return StepMeasurement.model_validate(
        {
            "bits": bits,
            "batch_size": batch_size,
            "sequence_length": tokens,
            "gradient_checkpointing": False,
            "trainable_parameters": 3080,
            "side_parameters": 1_351_680,
            "steps": 4,
            "step_s": slowdown * counted_step_s(minilm(), setting, size, RATES) + overhead_s,
            "peak_bytes": 1,
            "context_bytes": 0,
            **more,
        }
    )


def _fit(*measurements: StepMeasurement) -> TimingModel:
    return fit_timing(minilm(), measurements, RATES, task="sequence-classification")


def _predicted(model: TimingModel, m: StepMeasurement) -> float:
    setting = replace(SETTING, bits=m.bits, batch_size=m.batch_size, sequence_length=m.sequence_length)
    size = AdapterSize(m.trainable_parameters, m.side_parameters, 0)
    return step_s(minilm(), setting, size, RATES, model.coefficients(m.bits))


@pytest.mark.parametrize(("slowdown", "overhead_s"), [(0.4, 0.02), (1.0, 0.0), (6.0, 0.3)])
def test_the_fit_recovers_a_device(slowdown: float, overhead_s: float) -> None:
    model = _fit(*(_measured(b, slowdown=slowdown, overhead_s=overhead_s) for b in (2, 4, 16)))
    found = model.coefficients(32)
    assert found.slowdown == pytest.approx(slowdown, rel=0.05)
    assert found.overhead_s == pytest.approx(overhead_s, rel=0.2, abs=0.003)
    unseen = _measured(32, slowdown=slowdown, overhead_s=overhead_s, tokens=90)
    assert _predicted(model, unseen) == pytest.approx(unseen.step_s, rel=0.05)


@pytest.mark.parametrize("slowdown", [0.3, 1.0, 10.0])
def test_one_step_predicts_itself(slowdown: float) -> None:
    only = _measured(16, slowdown=slowdown, overhead_s=0.01)
    assert _predicted(_fit(only), only) == pytest.approx(only.step_s, rel=0.03)


def test_the_newest_steps_weigh_most() -> None:
    before = [_measured(8, slowdown=1.0, overhead_s=0.0)] * 3
    now = _measured(8, slowdown=2.0, overhead_s=0.0)
    late = _predicted(_fit(*before, now, now, now), now)
    early = _predicted(_fit(now, now, now, *before), now)
    assert early < 0.7 * now.step_s < 0.8 * now.step_s < late < now.step_s


def test_unmeasured_bits_take_the_ratio_of_the_measured_ones() -> None:
    model = _fit(
        *(_measured(b, slowdown=1.0, overhead_s=0.0, bits=32) for b in (2, 16)),
        *(_measured(b, slowdown=4.0, overhead_s=0.0, bits=8) for b in (2, 16)),
    )
    assert model.coefficients(4).slowdown == pytest.approx(2.0, rel=0.05)
    assert TimingModel().coefficients(4) == DEFAULT_TIMING


def test_evaluation_and_loading_follow_what_was_measured() -> None:
    measured = _measured(16, slowdown=1.0, overhead_s=0.0, evaluation_example_s=0.02, load_s=3.0)
    warm = _measured(16, slowdown=1.0, overhead_s=0.0, evaluation_example_s=0.02)
    found = _fit(measured, warm).coefficients(32)
    setting = replace(SETTING, batch_size=16, sequence_length=40)
    size = AdapterSize(3080, 1_351_680, 0)
    assert evaluation_example_s(minilm(), setting, size, RATES, found) == pytest.approx(0.02)
    assert load_s(minilm(), found) == 3.0
    # 22.7 million parameters of 2 bytes at 200 MB/s
    assert load_s(minilm(), TimingCoefficients()) == pytest.approx(0.227, rel=0.01)


def test_a_real_machine_is_predicted_from_its_own_steps() -> None:
    model = fit_timing(minilm(), minilm_steps(), RATES, task="sequence-classification")
    setting = replace(SETTING, batch_size=16, sequence_length=40)
    for bits in (4, 8, 16, 32):
        seconds = step_s(
            minilm(), replace(setting, bits=bits), AdapterSize(3080, 1_351_680, 0), RATES, model.coefficients(bits)
        )
        assert 16 / seconds == pytest.approx(40, rel=0.05)


def test_line_without_points_is_its_prior_and_limits_hold() -> None:
    prior = LinePrior(2.0, 1.0, 3.0, 1.0, least_slope=0.5, least_intercept=0.0)
    assert fit_line([], prior) == Line(2.0, 3.0)
    falling = fit_line([Point(0.0, 9.0, 0.01), Point(10.0, 1.0, 0.01)], prior)
    assert falling.slope == 0.5
    below = fit_line([Point(1.0, 1.0, 0.01), Point(2.0, 6.0, 0.01)], prior)
    assert below.intercept == 0.0
    assert below.slope == pytest.approx(13 / 5, rel=0.01)
