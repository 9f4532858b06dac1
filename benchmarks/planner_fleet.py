"""The planner's benchmark fleets: unlike devices drawn from wide ranges, and the job of a 7 B Llama.

Nothing here was measured. A draw says what a device might be, from 4 to 141 GiB, 5 to 900 TFLOP/s and 5 Mbit/s to
10 Gbit/s; its steps, where it has some, are what the models would say, off by a factor of its own.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

from fedpipe_profiles.architectures.shape import shape_of
from fedpipe_profiles.catalog.model_catalogue import catalogued_model
from fedpipe_profiles.costs.memory import DEFAULT_COEFFICIENTS, step_memory
from fedpipe_profiles.costs.step import AdapterSize, StepSetting
from fedpipe_profiles.costs.timing import DEFAULT_TIMING, device_rates, evaluation_example_s, step_s
from fedpipe_profiles.device import (
    MIB,
    Accelerator,
    BandwidthRate,
    Bits,
    DeviceProfile,
    Host,
    Limits,
    Link,
    MatmulRate,
)
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import StepMeasurement
from fedpipe_profiles.planning.problem import DeviceProblem, JobProblem

GIB = 1024 * MIB
FLEETS = ("mixed", "memory", "time", "link")
"""What binds most devices of a fleet."""

_SEQUENCE = 512
_MEASURED = 0.5


@cache
def llama_2_7b() -> ModelShape:
    """Llama 2 7B from its config.json (arXiv 2307.09288): 224 candidate weights, every layer counted in detail."""
    config = catalogued_model("meta-llama/Llama-2-7b-hf")
    assert config is not None, "the catalogue of models has Llama 2 7B"
    return shape_of(config, task="causal-lm")


def job(random: np.random.Generator, *, least_share: float = 0.0) -> JobProblem:
    """Curves fall by a power that differs from weight to weight; later layers and some kinds of weights gain more."""
    shape = llama_2_7b()
    ranks = np.arange(1, 65)
    curves = {}
    kinds = dict.fromkeys(weight.name.split(".", 3)[3] for weight in shape.weights)
    liked = dict(zip(kinds, random.lognormal(sigma=0.7, size=len(kinds)), strict=True))
    for weight in shape.weights:
        layer, kind = int(weight.name.split(".")[2]), weight.name.split(".", 3)[3]
        height = liked[kind] * (1 + layer / shape.layers) * random.lognormal(sigma=0.5)
        squares = height * ranks ** -float(random.uniform(0.8, 2.2)) * random.uniform(0.9, 1.1, size=len(ranks))
        curves[weight.name] = tuple(np.cumsum(np.sort(squares)[::-1]).tolist())
    return JobProblem(
        shape=shape,
        curves=curves,
        rank_ladder=(4, 8, 16, 32, 64),
        batch_sizes=(1, 2, 4, 8, 16, 32),
        global_rank=64,
        sequence_length=_SEQUENCE,
        task="causal-lm",
        examples_per_round=256,
        evaluation_examples=64,
        learning_rate=2e-4,
        scale=1.0,
        seed=0,
        least_share=least_share,
    )


def fleet(random: np.random.Generator, count: int, kind: str = "mixed") -> dict[str, DeviceProblem]:
    """So many devices, no two alike."""
    return {f"agent-{place:05d}": _device(random, f"agent-{place:05d}", kind) for place in range(count)}


def _between(random: np.random.Generator, low: float, high: float) -> float:
    """Spread evenly in ratio."""
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


def _device(random: np.random.Generator, agent: str, kind: str) -> DeviceProblem:
    memory = _between(random, 4, 14 if kind == "memory" else 141) if kind != "time" else _between(random, 24, 141)
    flops = _between(random, 5e12, 900e12) if kind != "time" else _between(random, 5e12, 40e12)
    uplink = _between(random, 5e6, 30e6) if kind == "link" else _between(random, 5e6, 10e9)
    profile = DeviceProfile(
        agent=agent,
        host=Host(cpu="drawn", threads=8, total_bytes=64 * GIB, free_bytes=48 * GIB),
        accelerator=Accelerator(
            name="drawn",
            total_bytes=int(memory * GIB),
            free_bytes=int(memory * GIB * random.uniform(0.9, 1)),
            unified_memory=False,
        ),
        supported_bits=(4, 8, 16),
        matmul=(
            _rate("bfloat16", flops),
            _rate("float32", flops * float(random.uniform(0.1, 0.5))),
        ),
        bandwidth=BandwidthRate(
            bytes_per_s=_between(random, 1e11, 4.8e12), buffer_bytes=1 << 28, repeats=9, relative_spread=0.05
        ),
        link=Link(
            uplink_bps=uplink,
            downlink_bps=uplink * float(random.uniform(1, 5)),
            latency_s=_between(random, 0.001, 0.2),
            measured_bytes=1 << 20,
        ),
        limits=Limits(),
    )
    mean_tokens = float(random.uniform(60, _SEQUENCE))
    return DeviceProblem(
        profile=profile,
        measurements=_steps(random, profile) if random.random() < _MEASURED else (),
        train_examples=int(_between(random, 20, 20000)),
        held_out_examples=int(random.integers(4, 200)),
        mean_tokens=mean_tokens,
    )


def _rate(dtype: str, flops: float) -> MatmulRate:
    return MatmulRate.model_validate(
        {"dtype": dtype, "shape": (4096, 4096, 4096), "flops_per_s": flops, "repeats": 9, "relative_spread": 0.05}
    )


_SHAPE = llama_2_7b()
_ADAPTERS = 64 * sum(weight.d_in + weight.d_out for weight in _SHAPE.weights)


def _steps(random: np.random.Generator, profile: DeviceProfile) -> tuple[StepMeasurement, ...]:
    rates = device_rates(profile)
    widths: Sequence[Bits] = (4, 8, 16)
    slower, larger = float(random.uniform(0.5, 2.0)), float(random.uniform(0.9, 1.3))
    found = []
    for bits in widths[: int(random.integers(1, 4))]:
        for batch in (1, 4)[: int(random.integers(1, 3))]:
            setting = StepSetting(
                bits=bits,
                batch_size=batch,
                sequence_length=float(_SEQUENCE),
                gradient_checkpointing=bool(random.random() < 0.5),
                task="causal-lm",
                kind="cuda",
            )
            size = AdapterSize(_ADAPTERS // 2, _ADAPTERS // 2, 32 * len(_SHAPE.weights))
            found.append(
                StepMeasurement(
                    bits=bits,
                    batch_size=batch,
                    sequence_length=_SEQUENCE,
                    longest_sequence=_SEQUENCE,
                    gradient_checkpointing=setting.gradient_checkpointing,
                    trainable_parameters=size.trainable_parameters,
                    side_parameters=size.side_parameters,
                    steps=4,
                    step_s=slower * step_s(_SHAPE, setting, size, rates, DEFAULT_TIMING),
                    evaluation_example_s=slower * evaluation_example_s(_SHAPE, setting, size, rates, DEFAULT_TIMING),
                    load_s=float(random.uniform(5, 90)),
                    peak_bytes=int(larger * step_memory(_SHAPE, setting, size, DEFAULT_COEFFICIENTS).total_bytes),
                    context_bytes=int(random.uniform(300, 900) * MIB),
                )
            )
    return tuple(found)
