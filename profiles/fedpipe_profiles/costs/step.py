"""One training step: its setting and the size of its adapters, as the memory and time models need them.

Owns the words that both models share. Never predicts anything itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedpipe_profiles.device import Bits, DeviceProfile
from fedpipe_profiles.model import ModelShape

Task = Literal["causal-lm", "sequence-classification"]
DeviceKind = Literal["cpu", "cuda"]
ComputeDtype = Literal["float32", "bfloat16"]


def device_kind(profile: DeviceProfile) -> DeviceKind:
    """What the trainer runs on: the accelerator where there is one."""
    return "cpu" if profile.accelerator is None else "cuda"


def compute_dtype(kind: DeviceKind, bits: Bits) -> ComputeDtype:
    """The dtype of activations and unquantized frozen parameters.

    On a processor bf16 is used only when it is asked for, because most processors have no fast bf16; on a GPU only 32
    bits compute in float32.
    """
    in_bf16: tuple[Bits, ...] = (16,) if kind == "cpu" else (4, 8, 16)
    return "bfloat16" if bits in in_bf16 else "float32"


def compute_bytes(kind: DeviceKind, bits: Bits) -> int:
    """Bytes per number in the compute dtype."""
    return 4 if compute_dtype(kind, bits) == "float32" else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSetting:
    """What a step is, apart from its adapters.

    `sequence_length` is padded tokens per example: the longest for memory, the mean for time. `padded`: some example is
    shorter than the others, as in most batches, so that attention takes a mask.
    """

    bits: Bits
    batch_size: int
    sequence_length: float
    gradient_checkpointing: bool
    task: Task
    num_labels: int = 0
    kind: DeviceKind = "cpu"
    padded: bool = True

    @property
    def tokens(self) -> float:
        """Tokens of the whole batch."""
        return self.batch_size * self.sequence_length


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConfig(StepSetting):
    """A step with its adapters.

    `ranks` names every weight that the global adapter covers, with the rank trained on it: 0 where none is. The
    remaining `global_rank - rank` components of each are the frozen side path.
    """

    ranks: Mapping[str, int]
    global_rank: int


@dataclass(frozen=True, slots=True)
class AdapterSize:
    """How much of the adapters is trained and how much is carried along.

    `trainable_parameters` counts the parameters trained whole (the head) too; `rank_sum` adds the trained ranks of all
    weights; `paths` counts the adapters, up to two on a weight: trained and side path. None where that is not known.
    """

    trainable_parameters: int
    side_parameters: int
    rank_sum: float
    paths: float | None = None


def adapter_size(shape: ModelShape, ranks: Mapping[str, int], global_rank: int) -> AdapterSize:
    """Count the parameters of `ranks` (see `StepConfig`).

    Raises:
        KeyError: if the model has no weight of some name.
        ValueError: if a rank is negative or above `global_rank`.
    """
    widths = {weight.name: weight.d_in + weight.d_out for weight in shape.weights}
    trained = side = 0
    for name, rank in ranks.items():
        if not 0 <= rank <= global_rank:
            raise ValueError(
                f"rank {rank} of {name} is outside of 0 to the global rank {global_rank}: "
                "plan a rank that the global adapter has"
            )
        trained += rank * widths[name]
        side += (global_rank - rank) * widths[name]
    return AdapterSize(trained + shape.head_parameters, side, sum(ranks.values()))


def adapter_paths(ranks: Mapping[str, int], global_rank: int) -> int:
    """How many adapters there are, of which a weight has one where all or none of its components are trained."""
    return sum((rank > 0) + (rank < global_rank) for rank in ranks.values())
