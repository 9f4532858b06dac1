"""The memory model: the peak of one training step, term by term, without any library of tensors.

The static terms follow from the model's shape alone. What the trainer's libraries add to the activations is one factor,
and what the allocator keeps back is one constant, both fitted per device and bit width to steps that it really took.

Sources: NF4 with double quantization (QLoRA, arXiv 2305.14314): blocks of 64 with one byte of scale each, and blocks of
256 scales with one fp32 scale each. INT8 (LLM.int8(), arXiv 2208.07339): one fp32 scale per output row. Adam keeps two
fp32 moments. Activations per layer follow the counting of Korthikanti et al. (arXiv 2205.05198), reduced to what a
frozen base needs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from fedpipe_profiles.costs.fit import Line, LinePrior, Point, fit_line
from fedpipe_profiles.costs.step import (
    AdapterSize,
    DeviceKind,
    StepConfig,
    StepSetting,
    Task,
    adapter_size,
    compute_bytes,
    device_kind,
)
from fedpipe_profiles.device import MIB, Bits, DeviceProfile
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import StepMeasurement

SAFETY_MARGIN = 0.1
"""Share added to a predicted peak before it is compared with what is lent."""

TRAINABLE_BYTES = 16
"""Per trained parameter: fp32 value, gradient and two Adam moments."""

SIDE_BYTES = 4
"""Per frozen adapter parameter, kept in fp32."""

DEFAULT_CONTEXT_BYTES: Mapping[DeviceKind, int] = {"cpu": 450 * MIB, "cuda": 512 * MIB}
"""What a trainer process holds before any model is loaded, until it was measured."""


@dataclass(frozen=True, slots=True)
class MemoryCoefficients:
    """`activation_scale` multiplies the counted activations, `slack_bytes` is added once."""

    activation_scale: float = 1.0
    slack_bytes: float = 8.0 * MIB


DEFAULT_COEFFICIENTS = MemoryCoefficients()
CAUTIOUS_COEFFICIENTS = MemoryCoefficients(slack_bytes=48.0 * MIB)
"""For a first try on a device that was never measured: tokenizer, encoded data, libraries that grow with use and what
the allocator keeps are counted nowhere else, and fitted slacks on CPU lie between 40 and 80 MiB."""
_PRIOR = LinePrior(
    slope=DEFAULT_COEFFICIENTS.activation_scale,
    slope_sd=0.5,
    intercept=DEFAULT_COEFFICIENTS.slack_bytes,
    intercept_sd=32.0 * MIB,
    least_slope=0.3,
    least_intercept=4.0 * MIB,
)
_MOST_SCALE = 3.0
_RELATIVE_SD = 0.02


@dataclass(frozen=True, slots=True)
class MemoryBreakdown:
    """The predicted peak of a step, each term in bytes; the runtime context is not among them."""

    quantized_base: int
    unquantized: int
    adapter_side_path: int
    trainable_state: int
    activations: int
    dequantized_weight: int
    logits: int
    slack: int

    @property
    def total_bytes(self) -> int:
        """The peak. The logits are gone when the layers' weights are dequantized, so only the larger one counts."""
        once = sum(self._terms().values())
        return once - min(self.dequantized_weight, self.logits)

    def lines(self) -> tuple[str, ...]:
        """One readable line per term, and the total."""
        rows = self._terms() | {"total": self.total_bytes}
        return tuple(f"{name.replace('_', ' '):<20} {size / MIB:10.1f} MiB" for name, size in rows.items())

    def _terms(self) -> dict[str, int]:
        return {term.name: getattr(self, term.name) for term in fields(self)}


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """The fitted coefficients of one device. Bit widths never measured take the largest ones of those measured."""

    fitted: Mapping[Bits, MemoryCoefficients] = field(default_factory=dict)

    def coefficients(self, bits: Bits) -> MemoryCoefficients:
        """The coefficients of one bit width."""
        if bits in self.fitted:
            return self.fitted[bits]
        known = self.fitted.values() or (DEFAULT_COEFFICIENTS,)
        return MemoryCoefficients(max(c.activation_scale for c in known), max(c.slack_bytes for c in known))


def predict_memory(shape: ModelShape, config: StepConfig, coefficients: MemoryCoefficients) -> MemoryBreakdown:
    """Predict the peak of one training step.

    Raises:
        KeyError: if the model has no weight of some name in `config.ranks`.
        ValueError: if a rank is outside of 0 to the global rank.
    """
    return step_memory(shape, config, adapter_size(shape, config.ranks, config.global_rank), coefficients)


def step_memory(
    shape: ModelShape, setting: StepSetting, size: AdapterSize, coefficients: MemoryCoefficients
) -> MemoryBreakdown:
    """As `predict_memory`, for adapters of which only the size is known."""
    width = compute_bytes(setting.kind, setting.bits)
    activations = _layer_activations(shape, setting) + size.rank_sum * rank_bytes(shape, setting)
    dequantized = 0
    if setting.bits in (4, 8):
        dequantized = max(weight.parameters for weight in shape.weights) * width
    return MemoryBreakdown(
        quantized_base=base_bytes(shape, setting.bits),
        unquantized=_unquantized_bytes(shape, setting.bits, width),
        adapter_side_path=SIDE_BYTES * size.side_parameters,
        trainable_state=TRAINABLE_BYTES * size.trainable_parameters,
        activations=round(coefficients.activation_scale * activations),
        dequantized_weight=dequantized,
        logits=round(_logits(shape, setting, width)),
        slack=round(coefficients.slack_bytes),
    )


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

    No choice of ranks on the weights needs more than its largest row says.
    """
    frozen = step_memory(shape, setting, AdapterSize(shape.head_parameters, adapter_parameters, 0), coefficients)
    per_rank = coefficients.activation_scale * rank_bytes(shape, setting)
    return (MemoryRow(frozen.total_bytes + 1, TRAINABLE_BYTES - SIDE_BYTES, per_rank),)


def _unquantized_bytes(shape: ModelShape, bits: Bits, width: int) -> int:
    """Beside a quantized base, tables that are only looked up are kept in bf16 whatever the compute dtype."""
    halved = shape.lookup_parameters if bits in (4, 8) else 0
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


def rank_bytes(shape: ModelShape, setting: StepSetting) -> float:
    """Counted activation bytes that one more trained rank on one weight saves for the backward pass: x A^T in fp32."""
    alive = 1 / shape.layers if setting.gradient_checkpointing else 1.0
    return 4 * setting.tokens * alive


def _layer_activations(shape: ModelShape, setting: StepSetting) -> float:
    """Counted bytes saved for the backward pass, without those of the adapters' ranks."""
    width = compute_bytes(setting.kind, setting.bits)
    # queries, keys, values, attention's output, two sums and two norms; then each product of the feed-forward part and
    # what the activation function makes of it
    floats = 8 * shape.hidden_size + 2 * _products(shape) * shape.intermediate_size
    layer = setting.tokens * (floats * width + shape.heads * 4)
    if not shape.fused_attention:
        # scores before and after the softmax, which are (batch, heads, s, s)
        layer += 2 * setting.tokens * setting.sequence_length * shape.heads * width
    if not setting.gradient_checkpointing:
        return shape.layers * layer
    return layer + shape.layers * setting.tokens * shape.hidden_size * width


def _products(shape: ModelShape) -> float:
    """Matrices per layer that lead from the hidden to the intermediate width: 2 with a gate, else 1."""
    outputs = sum(
        w.d_out for w in shape.weights if w.d_in == shape.hidden_size and w.d_out % shape.intermediate_size == 0
    )
    if shape.intermediate_size == shape.hidden_size:
        return 1.0
    return max(1.0, outputs / shape.intermediate_size / shape.layers)


def _logits(shape: ModelShape, setting: StepSetting, width: int) -> float:
    """Logits in the compute dtype, their fp32 copy and its gradient."""
    if setting.task == "causal-lm":
        return setting.tokens * shape.vocabulary_size * (width + 8)
    return float(setting.batch_size * setting.num_labels * (width + 8))


def fit_memory(
    shape: ModelShape,
    measurements: Sequence[StepMeasurement],
    *,
    kind: DeviceKind,
    task: Task,
    num_labels: int = 0,
) -> MemoryModel:
    """Fit both coefficients per bit width to measured peaks.

    The slack is raised until no measured peak is above its prediction: a memory model may be wrong by being too high
    only.
    """
    points: dict[Bits, list[Point]] = {}
    for m in measurements:
        setting = StepSetting(
            bits=m.bits,
            batch_size=m.batch_size,
            sequence_length=m.longest_sequence or m.sequence_length,
            gradient_checkpointing=m.gradient_checkpointing,
            task=task,
            num_labels=num_labels,
            kind=kind,
        )
        counted = step_memory(shape, setting, measured_size(shape, m), MemoryCoefficients(1.0, 0))
        static = counted.total_bytes - counted.activations
        sd = _RELATIVE_SD * m.peak_bytes + MIB
        points.setdefault(m.bits, []).append(Point(counted.activations, float(m.peak_bytes - static), sd))
    return MemoryModel({bits: _above(found) for bits, found in points.items()})


def _above(points: Sequence[Point]) -> MemoryCoefficients:
    line = fit_line(points, _PRIOR)
    slope = min(line.slope, _MOST_SCALE)
    under = max(p.y - Line(slope, line.intercept).at(p.x) for p in points)
    return MemoryCoefficients(slope, line.intercept + max(0.0, under))


def measured_size(shape: ModelShape, m: StepMeasurement) -> AdapterSize:
    """The adapters of a measured step; its ranks are estimated by the mean width of the weights."""
    adapters = max(0, m.trainable_parameters - shape.head_parameters)
    mean_width = sum(w.d_in + w.d_out for w in shape.weights) / len(shape.weights)
    return AdapterSize(m.trainable_parameters, m.side_parameters, adapters / mean_width)


def context_bytes(profile: DeviceProfile, measurements: Sequence[StepMeasurement]) -> int:
    """What the process holds beside the training memory: the most that was measured, else a default."""
    measured = [m.context_bytes for m in measurements if m.context_bytes > 0]
    return max(measured) if measured else DEFAULT_CONTEXT_BYTES[device_kind(profile)]


def with_margin(context: int, total_bytes: float) -> float:
    """Bytes that the whole process must be lent to train with a predicted peak of `total_bytes`."""
    return context + total_bytes * (1 + SAFETY_MARGIN)
