"""The memory model, term by term; the numbers are of a model small enough to count by hand."""

import random
from dataclasses import replace

import pytest
from planning_fleet import minilm, tiny_model

from fedpipe_profiles.costs.memory import (
    DEFAULT_COEFFICIENTS,
    MemoryCoefficients,
    MemoryModel,
    base_bytes,
    fit_memory,
    memory_rows,
    predict_memory,
    step_memory,
)
from fedpipe_profiles.costs.operations import Adapted, Flow, linear, norm
from fedpipe_profiles.costs.step import AdapterSize, StepConfig, StepSetting, adapter_size, compute_dtype
from fedpipe_profiles.costs.walk import Arena, Buffer, Edge, Value
from fedpipe_profiles.device import MIB, Bits
from fedpipe_profiles.model import BlockShape, ModelShape, WeightShape
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


def test_norm_keeps_its_input_and_one_number_per_token() -> None:
    # 2 examples of 3 tokens, hidden width 8, fp32: the input of 6 * 8 * 4 bytes, and a root of 4 bytes per token
    flow = _flow("rms")
    arena = Arena()
    x = Value(Buffer(arena, flow.bytes(8)), Edge())
    y = norm(arena, flow, x)
    del x
    assert y.size == 192
    assert arena.total == 192 + 24 + y.size


def test_a_trained_factor_keeps_its_input_and_a_frozen_one_does_not() -> None:
    for trained, kept in ((0, 0), (2, 6 * 8 * 4 + 6 * 2 * 4)):
        flow = _flow("rms")
        arena = Arena()
        x = Value(Buffer(arena, flow.bytes(8)), Edge())
        y = linear(arena, flow, Adapted(8, 16, trained, 4, trained > 0, has_side=True), x, (8, 16))
        del x
        # the input, and its product with the factor A of rank 2
        assert arena.total - y.size == kept


def test_walking_back_leaves_only_gradients() -> None:
    flow = _flow("rms")
    arena = Arena()
    x = Value(Buffer(arena, flow.bytes(8)), Edge())
    y = linear(arena, flow, Adapted(8, 16, 2, 0, is_trained=True, has_side=False), x, (8, 16))
    edge, size, end = y.edge, y.size, x.edge
    assert edge is not None
    del x, y
    arena.go_back(edge, size)
    assert end is not None
    assert end.gradient is not None
    # of rank 2: (2, 8) and (16, 2) numbers of 4 bytes, and the gradient of the input
    assert arena.total == 4 * 2 * (8 + 16) + 6 * 8 * 4


def _flow(kind: str) -> Flow:
    block = BlockShape.model_validate({"norm": kind, "key_value_heads": 2, "head_size": 4, "activation": "silu"})
    return Flow(
        block=block,
        hidden=8,
        intermediate=16,
        heads=2,
        batch=2,
        length=3,
        width=4,
        bits=32,
        kind="cpu",
        kernel="fused",
        padded=False,
        norm_after=False,
    )


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
    found = predict_memory(minilm(), replace(CONFIG, ranks={"pooler": 4}), DEFAULT_COEFFICIENTS)
    lines = found.lines()
    assert [line[:26].strip() for line in lines[:-1]] == [
        "quantized base with scales",
        "unquantized",
        "adapter side path",
        "trainable state",
        "layer activations",
        "attention kernel",
        "inputs of adapters",
        "checkpoints",
        "logits",
        "dequantized weight",
        "passing gradients",
        "slack",
        "total",
    ]
    assert "45.4 MiB" in lines[1]  # 11.9 million parameters of 4 bytes
    shown = [float(line.split()[-2]) for line in lines[:-1]]
    assert shown[-1] == pytest.approx(sum(shown[:-1]), abs=0.7)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_rows_hold_for_any_ranks(bits: Bits, *, checkpointing: bool) -> None:
    shape = _known()
    widths = sum(w.d_in + w.d_out for w in shape.weights)
    draw = random.Random(bits)
    for _ in range(15):
        ranks = {w.name: draw.choice((0, 0, 3, 8)) for w in shape.weights}
        config = replace(
            CONFIG,
            bits=bits,
            gradient_checkpointing=checkpointing,
            task="causal-lm",
            batch_size=draw.choice((1, 4)),
            sequence_length=draw.choice((4, 64)),
            ranks=ranks,
            global_rank=8,
        )
        size = adapter_size(shape, ranks, 8)
        exact = predict_memory(shape, config, EXACT).total_bytes
        rows = memory_rows(shape, config, 8 * widths, EXACT)
        assert max(row.at(size.trainable_parameters, size.rank_sum) for row in rows) >= exact


def _known() -> ModelShape:
    weights = tuple(
        WeightShape(name=f"model.layers.{layer}.{name}", d_out=d_out, d_in=d_in)
        for layer in range(4)
        for name, d_out, d_in in (
            ("self_attn.q_proj", 64, 64),
            ("self_attn.k_proj", 32, 64),
            ("self_attn.v_proj", 32, 64),
            ("self_attn.o_proj", 64, 64),
            ("mlp.gate_proj", 160, 64),
            ("mlp.up_proj", 160, 64),
            ("mlp.down_proj", 64, 160),
        )
    )
    return ModelShape(
        model_type="llama",
        layers=4,
        hidden_size=64,
        intermediate_size=160,
        heads=4,
        vocabulary_size=100,
        weights=weights,
        other_parameters=20_000,
        block=BlockShape(norm="rms", key_value_heads=2, head_size=16, rotary_size=16, gated=True, activation="silu"),
        fingerprint="0",
    )


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
        peak_bytes=round(found.total_bytes + (scale - 1) * found.scaled_bytes + slack_mib * MIB),
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


@pytest.mark.parametrize(("scale", "slack_mib"), [(0.9, 5.0), (1.0, 20.0), (1.3, 40.0)])
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
    assert found.activation_scale >= 0.8
    assert found.slack_bytes >= 0


def test_unmeasured_bits_take_the_most_careful_coefficients() -> None:
    model = _fit(
        _measured(16, 128, scale=0.7, slack_mib=60, bits=32), _measured(16, 128, scale=1.6, slack_mib=5, bits=8)
    )
    unknown = model.coefficients(4)
    assert unknown.activation_scale == max(model.coefficients(b).activation_scale for b in (8, 32))
    assert unknown.slack_bytes == max(model.coefficients(b).slack_bytes for b in (8, 32))
    assert MemoryModel().coefficients(4) == DEFAULT_COEFFICIENTS
