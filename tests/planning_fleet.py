"""Builders of models, devices and jobs for the planner's tests.

An all-MiniLM-L6-v2, and a model that is small enough to count by hand.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedpipe_profiles.device import (
    MIB,
    BandwidthRate,
    Bits,
    DeviceProfile,
    Host,
    Limits,
    Link,
    MatmulRate,
)
from fedpipe_profiles.model import ModelShape, ParameterShape, WeightShape
from fedpipe_profiles.plan import StepMeasurement
from fedpipe_profiles.planning.problem import DeviceProblem, JobProblem

ALL_BITS: tuple[Bits, ...] = (4, 8, 16, 32)


def tiny_model(*, fused_attention: bool = True) -> ModelShape:
    return ModelShape(
        model_type="tiny",
        layers=2,
        hidden_size=8,
        intermediate_size=32,
        heads=2,
        vocabulary_size=100,
        weights=(
            WeightShape(name="up", d_out=32, d_in=8),
            WeightShape(name="down", d_out=8, d_in=32),
            WeightShape(name="out", d_out=8, d_in=8),
        ),
        other_parameters=1000,
        head=(ParameterShape(name="head.weight", shape=(3, 8)), ParameterShape(name="head.bias", shape=(3,))),
        fused_attention=fused_attention,
        fingerprint="0",
    )


def minilm() -> ModelShape:
    """all-MiniLM-L6-v2 with a classifier of 8 labels: 37 weights of 10.8 million parameters."""
    weights = [
        WeightShape(name=f"layer.{layer}.{name}", d_out=d_out, d_in=d_in)
        for layer in range(6)
        for name, d_out, d_in in (
            ("query", 384, 384),
            ("key", 384, 384),
            ("value", 384, 384),
            ("output", 384, 384),
            ("up", 1536, 384),
            ("down", 384, 1536),
        )
    ]
    weights.append(WeightShape(name="pooler", d_out=384, d_in=384))
    return ModelShape(
        model_type="bert",
        layers=6,
        hidden_size=384,
        intermediate_size=1536,
        heads=12,
        vocabulary_size=30522,
        weights=tuple(weights),
        other_parameters=11_900_000,
        head=(ParameterShape(name="head.weight", shape=(8, 384)), ParameterShape(name="head.bias", shape=(8,))),
        fingerprint="0",
    )


def falling_curves(shape: ModelShape, ranks: int, seed: int) -> dict[str, tuple[float, ...]]:
    """Concave curves of unlike height: cumulated squares in falling order, as singular values give them."""
    random = np.random.default_rng(seed)
    return {
        weight.name: tuple(np.cumsum(np.sort(random.gamma(1.0, size=ranks) ** 2 * random.gamma(1.0))[::-1]).tolist())
        for weight in shape.weights
    }


def tiny_job(seed: int = 0, *, batch_sizes: tuple[int, ...] = (2, 4)) -> JobProblem:
    shape = tiny_model()
    return JobProblem(
        shape=shape,
        curves=falling_curves(shape, 4, seed),
        rank_ladder=(1, 2, 4),
        batch_sizes=batch_sizes,
        global_rank=4,
        sequence_length=16,
        task="sequence-classification",
        num_labels=3,
        examples_per_round=12,
        evaluation_examples=4,
        learning_rate=1e-3,
        scale=2.0,
        seed=seed,
    )


def minilm_job() -> JobProblem:
    shape = minilm()
    return JobProblem(
        shape=shape,
        curves=falling_curves(shape, 32, 0),
        rank_ladder=(4, 8, 16, 32),
        batch_sizes=(4, 8, 16),
        global_rank=32,
        sequence_length=128,
        task="sequence-classification",
        num_labels=8,
        examples_per_round=256,
        evaluation_examples=64,
        learning_rate=1e-3,
        scale=2.0,
        seed=0,
    )


def profile(  # a machine with two threads
    memory_bytes: int,
    *,
    agent: str = "a",
    bits: tuple[Bits, ...] = ALL_BITS,
    flops_per_s: float = 30e9,
    uplink_bps: float = 20e6,
    latency_s: float = 0.05,
) -> DeviceProfile:
    return DeviceProfile(
        agent=agent,
        host=Host(cpu="test", threads=2, total_bytes=1 << 34, free_bytes=1 << 33),
        supported_bits=bits,
        matmul=(
            MatmulRate(dtype="float32", shape=(512, 512, 512), flops_per_s=flops_per_s, repeats=5, relative_spread=0.1),
        ),
        bandwidth=BandwidthRate(bytes_per_s=8e9, buffer_bytes=1 << 26, repeats=5, relative_spread=0.1),
        link=Link(uplink_bps=uplink_bps, downlink_bps=4 * uplink_bps, latency_s=latency_s, measured_bytes=1 << 20),
        limits=Limits(memory_bytes=memory_bytes),
    )


def minilm_steps(bits: Sequence[Bits] = ALL_BITS) -> tuple[StepMeasurement, ...]:
    """Steps as a machine with two threads takes them: about 40 examples per second at batch 16."""
    peaks = {4: 212, 8: 219, 16: 170, 32: 248}
    return tuple(
        StepMeasurement(
            bits=width,
            batch_size=16,
            sequence_length=40,
            longest_sequence=64,
            gradient_checkpointing=False,
            trainable_parameters=3080,
            side_parameters=1_351_680,
            steps=4,
            step_s=0.4,
            evaluation_example_s=0.009,
            load_s=1.0,
            peak_bytes=peaks[width] * MIB,
            context_bytes=430 * MIB,
        )
        for width in bits
    )


def minilm_device(memory_mib: float, **settings: Any) -> DeviceProblem:
    return DeviceProblem(
        profile=profile(int(memory_mib * MIB), **settings),
        measurements=minilm_steps(),
        train_examples=1000,
        held_out_examples=100,
        mean_tokens=40.0,
    )


def tiny_device(memory_bytes: int, measurements: tuple[StepMeasurement, ...] = (), **settings: Any) -> DeviceProblem:
    return DeviceProblem(
        profile=profile(memory_bytes, **settings),
        measurements=measurements,
        train_examples=30,
        held_out_examples=4,
        mean_tokens=10.0,
    )


def first_components(agent: str, weight: str, of: int, rank: int) -> tuple[int, ...]:
    del agent, weight, of
    return tuple(range(rank))
