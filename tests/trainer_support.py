"""What the trainer's tests share: a meter without a limit, plans, adapter files, and bases that are loaded once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedpipe_agent.train.base import Base, load_base, quiet_libraries
from fedpipe_agent.train.memory import HostMeter
from fedpipe_agent.train.shape import Task
from fedpipe_profiles.device import Bits
from fedpipe_profiles.plan import Plan, Prediction
from fedpipe_wire.tensors import a_name, b_name, head_name, write_tensors

GLOBAL_RANK = 6
SCALE = 2.0
LABELS = ("class0", "class1", "class2")


class FreeMeter(HostMeter):
    """Measures, and limits nothing: the test process has more to do."""

    def __init__(self) -> None:
        self.limit_bytes = 1 << 40
        self.context_bytes = 0
        self._data_bytes = 1 << 45


def load(folder: Path, task: Task, bits: Bits, labels: Sequence[str] = LABELS) -> Base:
    quiet_libraries()
    torch.set_num_threads(1)
    chosen = labels if task == "sequence-classification" else ()
    return load_base(folder, task, chosen, bits=bits, device="cpu", seed=0, meter=FreeMeter())


def make_plan(components: Mapping[str, Sequence[int]], **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "agent": "a",
        "round": 1,
        "bits": 32,
        "batch_size": 4,
        "gradient_checkpointing": False,
        "sequence_length": 32,
        "learning_rate": 0.01,
        "seed": 7,
        "examples": 16,
        "deadline_s": 60.0,
        "scale": SCALE,
        "global_rank": GLOBAL_RANK,
        "components": {name: tuple(indices) for name, indices in components.items()},
        "predicted": Prediction(peak_bytes=1, round_s=1.0, compute_s=1.0, up_bytes=0, down_bytes=0),
        "bound": "nothing",
        "reason": "test",
    }
    return Plan.model_validate(values | changes)


def adapter_tensors(base: Base, *, seed: int = 1, size: float = 0.1) -> dict[str, NDArray[np.float32]]:
    """A global adapter on every candidate weight, random in both factors, and a random head."""
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return (size * draw.standard_normal(shape)).astype(np.float32)

    tensors = {a_name(name): normal(GLOBAL_RANK, w.d_in) for name, w in base.weights.items()}
    tensors |= {b_name(name): normal(w.d_out, GLOBAL_RANK) for name, w in base.weights.items()}
    return tensors | {head_name(name): normal(*p.shape) for name, p in base.head.items()}


def write_adapter(path: Path, tensors: Mapping[str, NDArray[np.float32]]) -> Path:
    write_tensors(path, tensors)
    return path


def some_components(base: Base) -> dict[str, tuple[int, ...]]:
    """Ranks of every sort: none, one, some, all; in turn over the weights."""
    kinds: list[tuple[int, ...]] = [(), (4,), (0, 2, 5), tuple(range(GLOBAL_RANK))]
    return {name: kinds[i % len(kinds)] for i, name in enumerate(base.weights)}
