"""A coarse account of a step for architectures that are not known in detail: more than most layers keep.

After the counting of Korthikanti et al. (arXiv 2205.05198), reduced to what a frozen base needs.
"""

from fedpipe_profiles.costs.activations import Moment
from fedpipe_profiles.costs.step import AdapterSize, StepSetting, compute_bytes
from fedpipe_profiles.costs.walk import ADAPTERS, ATTENTION, CHECKPOINTS, DEQUANTIZED, GRADIENTS, LAYERS, LOGITS, TERMS
from fedpipe_profiles.model import ModelShape

CAUTION = 1.5
"""How much more than is counted a layer of an unknown architecture is thought to keep."""


def generic_moments(shape: ModelShape, setting: StepSetting, size: AdapterSize) -> list[Moment]:
    """The loss and the way back through one layer, of `size` adapters."""
    width = compute_bytes(setting.kind, setting.bits)
    tokens, layers = setting.tokens, shape.layers
    floats = 8 * shape.hidden_size + 2 * _products(shape) * shape.intermediate_size
    attention = tokens * shape.heads * 4
    if not shape.fused_attention:
        attention += 2 * tokens * setting.sequence_length * shape.heads * width
    ranks = rank_bytes(shape, setting) * size.rank_sum
    terms = [0.0] * TERMS
    terms[LAYERS], terms[ATTENTION] = CAUTION * tokens * floats * width, CAUTION * attention
    if setting.gradient_checkpointing:
        terms[CHECKPOINTS] = layers * tokens * shape.hidden_size * width
    else:
        terms[LAYERS] *= layers
        terms[ATTENTION] *= layers
    terms[ADAPTERS] = ranks
    back, loss = list(terms), list(terms)
    if setting.bits in (4, 8):
        back[DEQUANTIZED] = shape.largest_weight * width
    back[GRADIENTS] = 4.0 * size.trainable_parameters
    loss[LOGITS] = _logits(shape, setting, width)
    return [Moment("loss", layers, tuple(loss)), Moment("backward", 0, tuple(back))]


def rank_bytes(shape: ModelShape, setting: StepSetting) -> float:
    """Bytes that one more trained rank on one weight keeps for the way back: x A^T."""
    alive = 1 / shape.layers if setting.gradient_checkpointing else 1.0
    return 4 * setting.tokens * alive


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
