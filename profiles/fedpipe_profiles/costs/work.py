"""The work of a training step and of an evaluated batch, counted: operations, bytes, values, parameters and kernels.

Owns the counts. What a device takes for them is `timing.py`'s matter.

Operations follow Kaplan et al. (arXiv 2001.08361): two per parameter and token forward, two more backward for the
input's gradient, two more for the weight's own gradient where it is trained; checkpointing adds one forward. Bytes are
those that small models are bound by: weights read once per pass, activations read and written by norms, sums,
activation functions, adapters, logits and loss. A kernel is one call of the tensor library, whatever its size.
"""

from dataclasses import dataclass

from fedpipe_profiles.costs.step import AdapterSize, StepSetting, compute_bytes
from fedpipe_profiles.model import ModelShape

PATHS = 2.0
"""Adapters on every weight where it is not said how many: one that is trained, and beside it the side path."""

_LAYER_KERNELS = 25
"""Forward, per layer, beside its weights: norms, heads, positions, attention, sums, the activation function."""
_WEIGHT_KERNELS = 3
_PATH_KERNELS = 6
"""Forward, per adapter on a weight: two casts, two products, the scale, the sum."""
_BACKWARD_KERNELS = 1.0
_RECOMPUTED_KERNELS = 1.3
"""A recomputed forward costs more than the first: checkpointing hooks every tensor that is saved."""
_HIDDEN_VALUES = 20
"""Values that a layer reads and writes forward per token and hidden unit: two norms (4), two sums (6), heads and
attention's inputs and output (10)."""
_INNER_VALUES = 5
"""Per token and unit of the feed-forward part: the activation function (2) and, counted for all, a gate (3)."""


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do.

    `operations` (a multiply-add is two), bytes read and written, values made out of compressed ones, parameters that
    the optimizer changes, and kernels.
    """

    operations: float
    moved_bytes: float
    dequantized: float
    optimized: float
    kernels: float


def step_work(shape: ModelShape, setting: StepSetting, size: AdapterSize) -> Work:
    """The work of one step: forward, backward and optimizer. Linear in both parameter counts and in the paths."""
    again = 1 if setting.gradient_checkpointing else 0
    passes = 2 + again
    operations = setting.tokens * (
        2 * passes * (shape.weight_parameters + size.side_parameters)
        + (2 * passes + 2) * size.trainable_parameters
        # scores and weighted values, 2 * s * h each; their backward pass needs both gradients
        + 4 * shape.layers * setting.sequence_length * shape.hidden_size * (passes + 1)
        + _head_operations(shape, setting) * 2
    )
    values = (3 + again) * _layer_values(shape) + _path_values(shape, size, again)
    kernels = 1 + _BACKWARD_KERNELS + _RECOMPUTED_KERNELS * again
    return Work(
        operations=operations,
        moved_bytes=_moved_bytes(shape, setting, values, passes, logits=3),
        dequantized=_dequantized(shape, setting, passes),
        optimized=size.trainable_parameters,
        kernels=kernels * _forward_kernels(shape, size) + _dequantizing_kernels(shape, setting, passes),
    )


def evaluation_work(shape: ModelShape, setting: StepSetting, size: AdapterSize) -> Work:
    """The work of one evaluated batch of the setting's size."""
    parameters = shape.weight_parameters + size.side_parameters + size.trainable_parameters
    attention = 4 * shape.layers * setting.sequence_length * shape.hidden_size
    path = paths(shape, size) * (7 * _mean_width(shape) / 2)
    return Work(
        operations=setting.tokens * (2 * parameters + attention + _head_operations(shape, setting)),
        moved_bytes=_moved_bytes(shape, setting, _layer_values(shape) + path, 1, logits=2),
        dequantized=_dequantized(shape, setting, 1),
        optimized=0.0,
        kernels=_forward_kernels(shape, size) + _dequantizing_kernels(shape, setting, 1),
    )


def paths(shape: ModelShape, size: AdapterSize) -> float:
    """Adapters on weights, counted; `PATHS` on each where the size does not tell."""
    return PATHS * len(shape.weights) if size.paths is None else size.paths


def _mean_width(shape: ModelShape) -> float:
    """`d_in + d_out`, mean over the weights."""
    return shape.weight_widths / len(shape.weights)


def _layer_values(shape: ModelShape) -> float:
    return shape.layers * (_HIDDEN_VALUES * shape.hidden_size + _INNER_VALUES * shape.intermediate_size)


def _path_values(shape: ModelShape, size: AdapterSize, again: int) -> float:
    """Values that the adapters read and write per token.

    Forward the input (d_in), the product, the scaled product and the sum (6 d_out); backward the gradients of both
    factors' inputs (3 d_out) and the sum of the input's gradient (4 d_in).
    """
    half = _mean_width(shape) / 2
    return paths(shape, size) * half * (7 * (1 + again) + 7)


def _moved_bytes(shape: ModelShape, setting: StepSetting, values: float, passes: int, *, logits: int) -> float:
    width = compute_bytes(setting.kind, setting.bits)
    moved = width * (setting.tokens * values + passes * shape.weight_parameters)
    if setting.task == "causal-lm":
        # fp32 logits; the loss reads them and writes their softmax, backward its gradient
        moved += setting.tokens * shape.vocabulary_size * (width + 4 * logits)
    return moved


def _head_operations(shape: ModelShape, setting: StepSetting) -> float:
    """Forward operations per token of the output layer, where every token has logits."""
    return 2.0 * shape.vocabulary_size * shape.hidden_size if setting.task == "causal-lm" else 0.0


def _dequantized(shape: ModelShape, setting: StepSetting, passes: int) -> float:
    return passes * float(shape.weight_parameters) if setting.bits in (4, 8) else 0.0


def _forward_kernels(shape: ModelShape, size: AdapterSize) -> float:
    weights = _WEIGHT_KERNELS * len(shape.weights) + _PATH_KERNELS * paths(shape, size)
    return _LAYER_KERNELS * shape.layers + weights


def _dequantizing_kernels(shape: ModelShape, setting: StepSetting, passes: int) -> float:
    return 2.0 * passes * len(shape.weights) if setting.bits in (4, 8) else 0.0
