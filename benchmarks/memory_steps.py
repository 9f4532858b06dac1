"""Real training steps under torch's memory profiler: what the allocator held at most, by the trainer's own code."""

import gc
import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.memory_models import LABELS, WORDS, Model
from fedpipe_agent.train.adapters import SIDE, TRAINED, Factors, attached
from fedpipe_agent.train.base import Base, load_base
from fedpipe_agent.train.data import IGNORED, PAD_TO, Encoded
from fedpipe_agent.train.memory import HostMeter
from fedpipe_agent.train.shape import read_shape
from fedpipe_agent.train.step import Stepper, StepSettings
from fedpipe_profiles.costs.memory import MemoryBreakdown, MemoryCoefficients, predict_memory
from fedpipe_profiles.costs.step import DeviceKind, StepConfig
from fedpipe_profiles.device import Bits
from fedpipe_profiles.model import ModelShape

COUNTED = MemoryCoefficients(activation_scale=1.0, slack_bytes=0.0)
"""Nothing is fitted: what is compared with the allocator is the count alone."""


class FreeMeter(HostMeter):
    """Measures, and limits nothing."""

    def __init__(self) -> None:
        self.limit_bytes = 1 << 45
        self.context_bytes = 0
        self._data_bytes = 1 << 45


@dataclass(frozen=True, slots=True)
class Case:
    """One step. `ranks`: `all` of the global rank on every weight, `half` of it, or `mixed` by a draw."""

    bits: Bits
    batch_size: int
    sequence_length: int
    checkpointing: bool
    ranks: str
    global_rank: int
    padded: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step was predicted to hold, and what it held."""

    model: Model
    case: Case
    predicted: MemoryBreakdown
    true_bytes: int

    @property
    def error(self) -> float:
        """Share by which the prediction is too high; negative where it is too low."""
        return self.predicted.total_bytes / self.true_bytes - 1


def labels_of(model: Model) -> tuple[str, ...]:
    """The labels that a model is trained for, if any."""
    return LABELS if model.task == "sequence-classification" else ()


def load(model: Model, bits: Bits, seed: int, device: DeviceKind = "cpu") -> tuple[Base, ModelShape]:
    """The base at `bits` on a device, and its shape."""
    gc.collect()
    gc.freeze()  # what is there already is no tensor of a step, and need not be searched for one each time
    labels = labels_of(model)
    base = load_base(model.folder, model.task, labels, bits=bits, device=device, seed=seed, meter=FreeMeter())
    return base, read_shape(model.folder, model.task, labels)


def ranks_of(shape: ModelShape, case: Case, seed: int) -> dict[str, int]:
    """The trained rank of every weight."""
    draw = random.Random(seed)
    whole = case.global_rank
    choose = {"all": lambda: whole, "half": lambda: whole // 2, "mixed": lambda: draw.choice((0, 0, whole // 2, whole))}
    ranks = {weight.name: choose[case.ranks]() for weight in shape.weights}
    return ranks if any(ranks.values()) else ranks | {shape.weights[0].name: whole}


def config_of(model: Model, case: Case, ranks: Mapping[str, int], kind: DeviceKind = "cpu") -> StepConfig:
    """The step as the memory model knows it."""
    return StepConfig(
        kind=kind,
        bits=case.bits,
        batch_size=case.batch_size,
        sequence_length=case.sequence_length,
        gradient_checkpointing=case.checkpointing,
        task=model.task,
        num_labels=len(labels_of(model)),
        padded=case.padded,
        ranks=ranks,
        global_rank=case.global_rank,
    )


def factors(shape: ModelShape, ranks: Mapping[str, int], global_rank: int) -> dict[str, dict[str, Factors]]:
    """The trained factors and those carried along, of small random numbers."""
    found: dict[str, dict[str, Factors]] = {TRAINED: {}, SIDE: {}}
    for weight in shape.weights:
        rank = ranks[weight.name]
        for adapter, size in ((TRAINED, rank), (SIDE, global_rank - rank)):
            if size:
                a, b = torch.randn(size, weight.d_in), torch.randn(weight.d_out, size)
                found[adapter][weight.name] = Factors(0.02 * a, 0.02 * b)
    return found


def batch(task: str, case: Case) -> list[Encoded]:
    """The longest batch that there can be: of full length, but for a few tokens of all but one where it is padded."""
    found = []
    for row in range(case.batch_size):
        length = case.sequence_length - (PAD_TO if case.padded and row else 0)
        ids = tuple(4 + (7 * row + column) % (WORDS - 4) for column in range(length))
        if task == "causal-lm":
            found.append(Encoded(ids, labels=(IGNORED, *ids[1:])))
        else:
            found.append(Encoded(ids, target=row % len(LABELS)))
    return found


def true_peak(model: Model, base: Base, shape: ModelShape, case: Case, ranks: Mapping[str, int]) -> int:
    """Bytes at the peak of the second step, when the optimizer's moments are there.

    On a processor by torch's profiler, on a GPU by its allocator.
    """
    with attached(base, factors(shape, ranks, case.global_rank), scale=1.0) as on_base:
        settings = StepSettings(case.sequence_length, 1e-4, 0, case.batch_size, case.checkpointing)
        stepper = Stepper(base, on_base, settings, FreeMeter())
        examples = batch(model.task, case)
        stepper.step(examples)
        for parameter in on_base.trainable:  # freed by a step at its beginning; before it is profiled, to be counted
            parameter.grad = None
        if base.device == "cuda":
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
            stepper.step(examples)
            return torch.cuda.max_memory_allocated()
        held = live_bytes()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            stepper.step(examples)
    rise = most = 0
    events = seen.profiler.kineto_results.events() if seen.profiler is not None else []
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        rise += change
        most = max(most, rise)
    return held + most


def live_bytes() -> int:
    """Bytes of all distinct storages that tensors refer to."""
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def outcome(model: Model, base: Base, shape: ModelShape, case: Case, seed: int) -> Outcome:
    """Predict one step, take it, and compare."""
    ranks = ranks_of(shape, case, seed)
    predicted = predict_memory(shape, config_of(model, case, ranks, base.device), COUNTED)
    return Outcome(model, case, predicted, true_peak(model, base, shape, case, ranks))
