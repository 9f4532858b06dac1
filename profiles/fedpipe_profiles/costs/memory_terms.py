"""The predicted peak of one training step, term by term, and its upper bounds for ranks not chosen yet.

Static terms follow from the model's shape alone; what else lives is walked through (`activations.py`).

Sources: NF4 with double quantization (QLoRA, arXiv 2305.14314): blocks of 64
with one byte of scale each, and blocks of 256 scales with
one fp32 scale each. INT8 (LLM.int8(), arXiv 2208.07339): one fp32 scale per output row. Adam keeps two fp32 moments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from fedpipe_profiles.costs.account import OnWeight, Parts, all_moments, parts_of
from fedpipe_profiles.costs.activations import Moment, Phase
from fedpipe_profiles.costs.memory_generic import generic_moments
from fedpipe_profiles.costs.step import AdapterSize, StepConfig, StepSetting, adapter_size, compute_bytes
from fedpipe_profiles.costs.walk import GRADIENTS
from fedpipe_profiles.device import MIB, Bits
from fedpipe_profiles.model import ModelShape

STATE_BYTES = 12
"""Per trained parameter, always: fp32 value and two Adam moments."""

GRADIENT_BYTES = 4
"""Per trained parameter, from the way back through its layer to the optimizer's step."""

TRAINABLE_BYTES = STATE_BYTES + GRADIENT_BYTES

SIDE_BYTES = 4
"""Per frozen adapter parameter, kept in fp32."""


@dataclass(frozen=True, slots=True)
class MemoryCoefficients:
    """`activation_scale` multiplies what a step holds beside model and trained state, `slack_bytes` is added."""

    activation_scale: float = 1.0
    slack_bytes: float = 8.0 * MIB


@dataclass(frozen=True, slots=True)
class MemoryBreakdown:
    """The predicted peak of a step, each term in bytes as it is when the step holds the most.

    The runtime context is not among them. `phase` and `layer` say when that is.
    """

    quantized_base: int
    unquantized: int
    adapter_side_path: int
    trainable_state: int
    layer_activations: int
    attention_kernel: int
    adapter_inputs: int
    checkpoints: int
    logits: int
    dequantized_weight: int
    passing_gradients: int
    slack: int
    phase: Phase
    layer: int

    @property
    def total_bytes(self) -> int:
        """The peak."""
        return sum(self._terms().values())

    @property
    def scaled_bytes(self) -> int:
        """The terms that a device's `activation_scale` multiplies."""
        return (
            self.layer_activations
            + self.attention_kernel
            + self.adapter_inputs
            + self.checkpoints
            + self.logits
            + self.dequantized_weight
            + self.passing_gradients
        )

    def lines(self, context_bytes: int | None = None) -> tuple[str, ...]:
        """One readable line per term, and the total; with the runtime context where it is given."""
        rows = self._terms()
        if context_bytes is not None:
            rows["runtime_context"] = context_bytes
        rows["total"] = sum(rows.values())
        names = {"quantized_base": "quantized base with scales", "adapter_inputs": "inputs of adapters"}
        found = [f"{names.get(name, name.replace('_', ' ')):<26} {size / MIB:10.1f} MiB" for name, size in rows.items()]
        return (*found, f"the most is held in the {_PHASES[self.phase]}")

    def _terms(self) -> dict[str, int]:
        named = (term.name for term in fields(self))
        return {name: getattr(self, name) for name in named if name not in {"phase", "layer"}}


_PHASES: Mapping[Phase, str] = {
    "forward": "forward pass",
    "loss": "loss, on the way there or back",
    "backward": "backward pass",
    "optimizer": "optimizer's step",
}


def predict_memory(shape: ModelShape, config: StepConfig, coefficients: MemoryCoefficients) -> MemoryBreakdown:
    """Predict the peak of one training step.

    Raises:
        KeyError: if the model has no weight of some name in `config.ranks`.
        ValueError: if a rank is outside of 0 to the global rank.
    """
    size = adapter_size(shape, config.ranks, config.global_rank)
    parts = parts_of(shape, config)
    if parts is None:
        return most(shape, config, size, coefficients, generic_moments(shape, config, size))
    of = {rank: OnWeight(rank, config.global_rank - rank) for rank in set(config.ranks.values())}
    on = {name: of[rank] for name, rank in config.ranks.items()}
    return most(shape, config, size, coefficients, _moments(parts, on, OnWeight(0, 0), config))


def step_memory(
    shape: ModelShape, setting: StepSetting, size: AdapterSize, coefficients: MemoryCoefficients
) -> MemoryBreakdown:
    """As `predict_memory`, for adapters of which only the size is known: of the same ranks on all weights."""
    parts = parts_of(shape, setting)
    if parts is None:
        return most(shape, setting, size, coefficients, generic_moments(shape, setting, size))
    width = shape.weight_widths
    trained = max(0, size.trainable_parameters - shape.head_parameters) / width
    even = OnWeight(trained, size.side_parameters / width)
    return most(shape, setting, size, coefficients, _moments(parts, {}, even, setting))


def _moments(parts: Parts, on: Mapping[str, OnWeight], default: OnWeight, setting: StepSetting) -> list[Moment]:
    return all_moments(parts.costs(on, default, setting), parts)


def most(
    shape: ModelShape,
    setting: StepSetting,
    size: AdapterSize,
    coefficients: MemoryCoefficients,
    found: Sequence[Moment],
) -> MemoryBreakdown:
    """The breakdown of the one of the `found` moments that holds the most."""
    scale = coefficients.activation_scale

    def held(moment: Moment) -> float:
        return scale * (moment.total - moment.terms[GRADIENTS]) + moment.terms[GRADIENTS]

    moment = max(found, key=held)
    passing, layers, attention, adapters, checkpoints, logits, dequantized, gradients = moment.terms
    return MemoryBreakdown(
        quantized_base=base_bytes(shape, setting.bits),
        unquantized=_unquantized_bytes(shape, setting),
        adapter_side_path=SIDE_BYTES * size.side_parameters,
        trainable_state=STATE_BYTES * size.trainable_parameters + round(gradients),
        layer_activations=round(scale * layers),
        attention_kernel=round(scale * attention),
        adapter_inputs=round(scale * adapters),
        checkpoints=round(scale * checkpoints),
        logits=round(scale * logits),
        dequantized_weight=round(scale * dequantized),
        passing_gradients=round(scale * passing),
        slack=round(coefficients.slack_bytes),
        phase=moment.phase,
        layer=moment.layer,
    )


def _unquantized_bytes(shape: ModelShape, setting: StepSetting) -> int:
    """Beside a quantized base, tables that are only looked up are kept in bf16 whatever the compute dtype."""
    width = compute_bytes(setting.kind, setting.bits)
    halved = shape.lookup_parameters if setting.bits in (4, 8) else 0
    return (shape.other_parameters - halved) * width + min(2, width) * halved


def base_bytes(shape: ModelShape, bits: Bits) -> int:
    """Bytes of all candidate weights at one bit width, scales included; exact."""
    match bits:
        case 4:
            return round(shape.weight_parameters * (0.5 + (1 + 4 / 256) / 64))
        case 8:
            return shape.weight_parameters + 4 * shape.output_features
        case 16:
            return 2 * shape.weight_parameters
        case 32:
            return 4 * shape.weight_parameters


def is_counted(shape: ModelShape, setting: StepSetting) -> bool:
    """Whether the model is known in detail, so that its peak is counted and not estimated."""
    return parts_of(shape, setting) is not None
