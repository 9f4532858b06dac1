"""The memory model, term by term; the numbers are of a model small enough to count by hand."""

from dataclasses import replace

import pytest
from planning_fleet import minilm, tiny_model

from fedpipe_profiles.costs.memory import (
    DEFAULT_COEFFICIENTS,
    MemoryCoefficients,
    MemoryModel,
    base_bytes,
    fit_memory,
    predict_memory,
    step_memory,
)
from fedpipe_profiles.costs.step import AdapterSize, StepConfig, StepSetting, adapter_size, compute_dtype
from fedpipe_profiles.device import MIB, Bits
from fedpipe_profiles.model import WeightShape
from fedpipe_profiles.plan import StepMeasurement

EXACT = MemoryCoefficients(activation_scale=1.0, slack_bytes=0)
CONFIG = StepConfig(
    bits=32,
    batch_size=3,
    sequence_length=5,
    gradient_checkpointing=False,
    task="sequence-classification",
    num_labels=3,
    ranks={"up": 2, "down": 0, "out": 4},
    global_rank=4,
)


@pytest.mark.parametrize(("bits", "expected"), [(4, 297), (8, 768), (16, 1152), (32, 2304)])
def test_base_bytes(bits: Bits, expected: int) -> None:
    # 576 entries: at 4 bits 288 + 9 blocks of (1 + 4/256), at 8 bits 576 + 4 * 48 rows
    assert base_bytes(tiny_model(), bits) == expected


def test_adapter_terms() -> None:
    found = predict_memory(tiny_model(), CONFIG, EXACT)
    # trained: up 2 * (32 + 8) = 80, out 4 * 16 = 64, head 27; carried: up 2 * 40 = 80, down 4 * 40 = 160
    assert found.trainable_state == 16 * (80 + 64 + 27)
    assert found.adapter_side_path == 4 * (80 + 160)


def test_activations() -> None:
    # per layer and token: 8 * 8 + 2 * 32 floats, and 2 heads' softmax sums, all of 4 bytes: 520; 15 tokens
    none = replace(CONFIG, ranks=dict.fromkeys(CONFIG.ranks, 0))
    assert predict_memory(tiny_model(), none, EXACT).activations == 2 * 15 * 520
    checkpointed = replace(none, gradient_checkpointing=True)
    assert predict_memory(tiny_model(), checkpointed, EXACT).activations == 15 * 520 + 2 * 15 * 8 * 4
    # six trained ranks keep 4 bytes per token each
    assert predict_memory(tiny_model(), CONFIG, EXACT).activations == 2 * 15 * 520 + 6 * 15 * 4


def test_unfused_attention_stores_scores_twice() -> None:
    fused, unfused = (predict_memory(tiny_model(fused_attention=f), CONFIG, EXACT) for f in (True, False))
    # 2 layers, batch 3, 2 heads, 5 x 5 scores of 4 bytes, before and after the softmax
    assert unfused.activations - fused.activations == 2 * 3 * 2 * 25 * 4 * 2


def test_gated_feed_forward_saves_more() -> None:
    plain = tiny_model().model_copy(update={"layers": 1})
    gate = WeightShape(name="gate", d_out=32, d_in=8)
    gated = plain.model_copy(update={"weights": (*plain.weights, gate)})
    more = predict_memory(gated, CONFIG, EXACT).activations - predict_memory(plain, CONFIG, EXACT).activations
    assert more == 15 * 2 * 32 * 4


def test_the_larger_of_logits_and_dequantized_weight_counts() -> None:
    found = predict_memory(tiny_model(), replace(CONFIG, bits=8, task="causal-lm"), EXACT)
    assert found.dequantized_weight == 256 * 4
    assert found.logits == 15 * 100 * 12
    terms = (
        found.quantized_base + found.unquantized + found.adapter_side_path + found.trainable_state + found.activations
    )
    assert found.total_bytes == terms + 15 * 100 * 12


@pytest.mark.parametrize(
    ("kind", "in_bf16"),
    [("cpu", {4: False, 8: False, 16: True, 32: False}), ("cuda", {4: True, 8: True, 16: True, 32: False})],
)
def test_compute_dtype(kind: str, in_bf16: dict[Bits, bool]) -> None:
    for bits, expected in in_bf16.items():
        assert (compute_dtype(kind, bits) == "bfloat16") is expected  # type: ignore[arg-type]  # a parameter
        found = predict_memory(tiny_model(), replace(CONFIG, bits=bits, kind=kind), EXACT)  # type: ignore[arg-type]  # same
        assert found.unquantized == 1000 * (2 if expected else 4)


def test_more_work_never_needs_less() -> None:
    def total(config: StepConfig) -> int:
        return predict_memory(minilm(), config, DEFAULT_COEFFICIENTS).total_bytes

    names = [weight.name for weight in minilm().weights]
    base = replace(CONFIG, ranks=dict.fromkeys(names, 8), global_rank=32, sequence_length=64)
    more = replace(base, ranks=dict.fromkeys(names, 16))
    assert total(base) < total(replace(base, batch_size=4))
    assert total(base) < total(replace(base, sequence_length=65))
    assert total(base) < total(more)
    assert total(replace(base, gradient_checkpointing=True)) < total(base)
    totals = [total(replace(base, bits=bits)) for bits in (4, 8, 32)]
    assert totals == sorted(totals)


def test_lines_name_every_term() -> None:
    lines = predict_memory(minilm(), replace(CONFIG, ranks={"pooler": 4}), DEFAULT_COEFFICIENTS).lines()
    assert [line[:20].strip() for line in lines] == [
        "quantized base",
        "unquantized",
        "adapter side path",
        "trainable state",
        "activations",
        "dequantized weight",
        "logits",
        "slack",
        "total",
    ]
    assert "45.4 MiB" in lines[1]  # 11.9 million parameters of 4 bytes


def test_a_rank_above_the_global_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 5 of up is outside of 0 to the global rank 4"):
        adapter_size(tiny_model(), {"up": 5}, 4)


# --- fitting ----------------------------------------------------------------------------------------------------


def _measured(
    batch_size: int,
    sequence_length: int,
    *,
    scale: float,
    slack_mib: float,
    bits: Bits = 32,
    checkpointing: bool = False,
) -> StepMeasurement:
    """A step of a synthetic device that keeps `scale` times the counted activations."""
    setting = StepSetting(
        bits=bits,
        batch_size=batch_size,
        sequence_length=sequence_length,
        gradient_checkpointing=checkpointing,
        task="sequence-classification",
        num_labels=8,
    )
    found = step_memory(minilm(), setting, AdapterSize(3080, 500_000, 0), EXACT)
    return StepMeasurement(
        bits=bits,
        batch_size=batch_size,
        sequence_length=sequence_length,
        gradient_checkpointing=checkpointing,
        trainable_parameters=3080,
        side_parameters=500_000,
        steps=1,
        step_s=1.0,
        peak_bytes=round(found.total_bytes + (scale - 1) * found.activations + slack_mib * MIB),
        context_bytes=0,
    )


def _predicted(model: MemoryModel, m: StepMeasurement) -> int:
    setting = StepSetting(
        bits=m.bits,
        batch_size=m.batch_size,
        sequence_length=m.sequence_length,
        gradient_checkpointing=m.gradient_checkpointing,
        task="sequence-classification",
        num_labels=8,
    )
    size = AdapterSize(m.trainable_parameters, m.side_parameters, 0)
    return step_memory(minilm(), setting, size, model.coefficients(m.bits)).total_bytes


def _fit(*measurements: StepMeasurement) -> MemoryModel:
    return fit_memory(minilm(), measurements, kind="cpu", task="sequence-classification", num_labels=8)


@pytest.mark.parametrize(("scale", "slack_mib"), [(0.6, 5.0), (1.0, 20.0), (1.7, 40.0)])
def test_three_steps_tell_the_device_apart(scale: float, slack_mib: float) -> None:
    model = _fit(*(_measured(b, 128, scale=scale, slack_mib=slack_mib) for b in (2, 8, 16)))
    unseen = _measured(32, 100, scale=scale, slack_mib=slack_mib)
    assert _predicted(model, unseen) == pytest.approx(unseen.peak_bytes, rel=0.05)


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0, 6.0])
def test_no_measured_peak_is_above_its_prediction(batch_size: int, scale: float) -> None:
    measurements = (
        _measured(batch_size, 128, scale=scale, slack_mib=10),
        _measured(4, 64, scale=1.0, slack_mib=60, checkpointing=True),
    )
    for known in (measurements[:1], measurements):
        model = _fit(*known)
        assert all(_predicted(model, m) >= m.peak_bytes - 64 for m in known)


def test_coefficients_stay_above_their_floor() -> None:
    # a device that claims to need almost nothing
    model = _fit(_measured(16, 128, scale=0.0, slack_mib=-60))
    found = model.coefficients(32)
    assert found.activation_scale >= 0.3
    assert found.slack_bytes >= 4 * MIB


def test_unmeasured_bits_take_the_most_careful_coefficients() -> None:
    model = _fit(
        _measured(16, 128, scale=0.7, slack_mib=60, bits=32), _measured(16, 128, scale=1.6, slack_mib=5, bits=8)
    )
    unknown = model.coefficients(4)
    assert unknown.activation_scale == max(model.coefficients(b).activation_scale for b in (8, 32))
    assert unknown.slack_bytes == max(model.coefficients(b).slack_bytes for b in (8, 32))
    assert MemoryModel().coefficients(4) == DEFAULT_COEFFICIENTS
