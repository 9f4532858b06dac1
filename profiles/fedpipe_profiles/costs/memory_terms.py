"""The predicted peak of one training step, term by term, and its upper bounds for ranks not chosen yet.

Static terms follow from the model's shape alone; what else lives is walked through (`activations.py`).

Sources: NF4 with double quantization (QLoRA, arXiv 2305.14314): blocks of 64
with one byte of scale each, and blocks of 256 scales with
one fp32 scale each. INT8 (LLM.int8(), arXiv 2208.07339): one fp32 scale per output row. Adam keeps two fp32 moments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

from fedpipe_profiles.costs.account import OnWeight, Parts, SameShape, all_moments, parts_of
from fedpipe_profiles.costs.activations import Moment, PartCost, Phase
from fedpipe_profiles.costs.memory_generic import generic_moments, rank_bytes
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
        return _most(shape, config, size, coefficients, generic_moments(shape, config, size))
    of = {rank: OnWeight(rank, config.global_rank - rank) for rank in set(config.ranks.values())}
    on = {name: of[rank] for name, rank in config.ranks.items()}
    return _most(shape, config, size, coefficients, _moments(parts, on, OnWeight(0, 0), config))


def step_memory(
    shape: ModelShape, setting: StepSetting, size: AdapterSize, coefficients: MemoryCoefficients
) -> MemoryBreakdown:
    """As `predict_memory`, for adapters of which only the size is known: of the same ranks on all weights."""
    parts = parts_of(shape, setting)
    if parts is None:
        return _most(shape, setting, size, coefficients, generic_moments(shape, setting, size))
    width = shape.weight_widths
    trained = max(0, size.trainable_parameters - shape.head_parameters) / width
    even = OnWeight(trained, size.side_parameters / width)
    return _most(shape, setting, size, coefficients, _moments(parts, {}, even, setting))


def _moments(parts: Parts, on: Mapping[str, OnWeight], default: OnWeight, setting: StepSetting) -> list[Moment]:
    return all_moments(parts.costs(on, default, setting), parts)


def _most(
    shape: ModelShape,
    setting: StepSetting,
    size: AdapterSize,
    coefficients: MemoryCoefficients,
    found: Sequence[Moment],
) -> MemoryBreakdown:
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


# --- upper bounds -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """An upper bound of the bytes held in one phase of a step, linear in what is trained: a plan must keep every row.

    `fixed_bytes` holds with every adapter on the side path and the head trained; `per_parameter` and `per_rank` are
    added for each adapter parameter, and each rank of a weight, that is trained instead.
    """

    fixed_bytes: float
    per_parameter: float
    per_rank: float

    def at(self, parameters: float, ranks: float) -> float:
        """Bytes with so many adapter parameters and ranks trained."""
        return self.fixed_bytes + self.per_parameter * parameters + self.per_rank * ranks


def memory_rows(
    shape: ModelShape, setting: StepSetting, adapter_parameters: int, coefficients: MemoryCoefficients
) -> tuple[MemoryRow, ...]:
    """The phases of a step whose largest is its peak; `adapter_parameters` is the size of the whole global adapter.

    No choice of ranks on the weights needs more than the largest of them says.
    """
    size = AdapterSize(shape.head_parameters, adapter_parameters, 0)
    scale = coefficients.activation_scale
    state = STATE_BYTES - SIDE_BYTES
    parts = parts_of(shape, setting)
    if parts is None:
        frozen = _most(shape, setting, size, coefficients, generic_moments(shape, setting, size))
        per_rank = scale * rank_bytes(shape, setting)
        return (MemoryRow(frozen.total_bytes + 1, TRAINABLE_BYTES - SIDE_BYTES, per_rank),)
    static = _most(shape, setting, size, coefficients, [Moment("optimizer", 0, (0.0,) * 8)]).total_bytes
    plain = StepSetting(**{of.name: getattr(setting, of.name) for of in fields(StepSetting)})
    bound = _bound(SameShape(shape), plain, adapter_parameters)
    head = GRADIENT_BYTES * shape.head_parameters
    fixed = static + head + 8  # each of the terms of an exact prediction is rounded by itself
    return (
        MemoryRow(fixed + scale * bound.forward, state, scale * bound.per_rank),
        MemoryRow(
            fixed + scale * bound.backward + bound.layer_gradients,
            state + GRADIENT_BYTES * bound.gradient_share,
            scale * bound.per_rank,
        ),
        MemoryRow(fixed, state + GRADIENT_BYTES, 0.0),
    )


@dataclass(frozen=True, slots=True)
class _Bound:
    """What the rows are made of; bytes before they are scaled."""

    forward: float
    backward: float
    per_rank: float
    layer_gradients: float
    gradient_share: float


@lru_cache(maxsize=1024)
def _bound(same: SameShape, setting: StepSetting, adapter_parameters: int) -> _Bound:
    """Walk once with both adapters on every weight, at rank 0, and bound what ranks add.

    On the way back a layer gives its saved bytes and takes its gradients. Where gradients are the more, the sum grows
    towards the first layer: for the largest gradients that a layer can have, by the share of `gradient_share` of all.
    """
    shape = same.shape
    parts = parts_of(shape, setting)
    assert parts is not None
    rank = adapter_parameters / shape.weight_widths
    costs = parts.costs({}, OnWeight(0, 0, stands=True), setting)
    found = all_moments(costs, parts)
    per_layer = [sum(w.d_in + w.d_out for _, w in layer) for layer in parts.layers]
    outside = sum(w.d_in + w.d_out for w in parts.outside)
    widest = rank * max([*per_layer, outside])
    # what a rank adds to a weight for a moment: its product and that one's gradient, of both adapters
    width = parts.flow.width
    column = parts.flow.tokens * width
    most_weights = max(len(layer) for layer in parts.layers)
    passing = 4 * column * rank
    casts = 0.0 if width == _FP32 else width * (widest if setting.gradient_checkpointing else adapter_parameters)
    casts += 0.0 if width == _FP32 else 2 * width * widest
    again = column * rank * most_weights if setting.gradient_checkpointing else 0.0
    extra = passing + casts + again

    def total(moment: Moment) -> float:
        return moment.total - moment.terms[GRADIENTS]

    back = [total(m) for m in found if m.phase == "backward"]
    forward = max(total(m) for m in found if m.phase in ("forward", "loss"))
    gradient = GRADIENT_BYTES * widest
    falls = [(back[0] - later) / done for done, later in enumerate(back) if done]
    share = max(0.0, 1 - max(0.0, min(falls, default=0.0)) / gradient) if len(back) > 1 and gradient else 0.0
    return _Bound(
        forward=forward + extra + GRADIENT_BYTES * rank * outside,
        backward=max([back[0], *(later for later in back if later > back[0])]) + extra,
        per_rank=0.0 if setting.gradient_checkpointing else column,
        layer_gradients=gradient + GRADIENT_BYTES * rank * outside,
        gradient_share=share,
    )


_FP32 = 4


def is_counted(shape: ModelShape, setting: StepSetting) -> bool:
    """Whether the model is known in detail, so that its peak is counted and not estimated."""
    return parts_of(shape, setting) is not None


__all__ = [
    "GRADIENT_BYTES",
    "SIDE_BYTES",
    "STATE_BYTES",
    "TRAINABLE_BYTES",
    "MemoryBreakdown",
    "MemoryCoefficients",
    "MemoryRow",
    "PartCost",
    "base_bytes",
    "is_counted",
    "memory_rows",
    "predict_memory",
    "rank_bytes",
    "step_memory",
]
