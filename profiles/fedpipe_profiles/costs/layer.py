"""The program of one transformer layer: the operations of the model's own code, and what each keeps for the way back.

Written after the modules of transformers 5 (`models/llama`, `bert`, `gpt2`, `qwen3`, `gemma`), peft's LoRA layers and
the matrix products of bitsandbytes. What is counted is what torch's autograd saves: an operation with frozen factors
saves nothing of what flows through it, so a frozen layer keeps far less than a trained one.
"""

from dataclasses import dataclass
from typing import Literal

from fedpipe_profiles.costs.step import DeviceKind
from fedpipe_profiles.costs.walk import ADAPTERS, ATTENTION, DEQUANTIZED, Arena, Back, Buffer, Value
from fedpipe_profiles.device import Bits
from fedpipe_profiles.model import BlockShape

Kernel = Literal["fused", "math", "eager"]
"""How attention is computed: `fused` keeps no scores (flash, memory-efficient), `math` is torch's composed fallback,
`eager` the model's own code."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """A candidate weight with what stands on it: ranks trained and carried along. A rank of 0 may stand on it too."""

    d_in: int
    d_out: int
    trained_rank: float
    side_rank: float
    is_trained: bool
    has_side: bool


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The candidate weights of a layer by their part in it; `fused` is queries, keys and values in one."""

    query: Adapted | None
    key: Adapted | None
    value: Adapted | None
    fused: Adapted | None
    out: Adapted | None
    gate: Adapted | None
    up: Adapted | None
    gate_up: Adapted | None
    down: Adapted | None


@dataclass(frozen=True, slots=True)
class Flow:
    """What flows through a layer: sizes of the model and of the batch, and how they are computed."""

    block: BlockShape
    hidden: int
    intermediate: int
    heads: int
    batch: float
    length: float
    width: int
    bits: Bits
    kind: DeviceKind
    kernel: Kernel
    padded: bool
    norm_after: bool

    @property
    def tokens(self) -> float:
        """Tokens of the batch."""
        return self.batch * self.length

    def bytes(self, columns: float) -> float:
        """Bytes of a tensor with so many columns per token, in the compute dtype."""
        return self.tokens * columns * self.width

    @property
    def scores(self) -> float:
        """Bytes of all attention scores (batch, heads, length, length), in the compute dtype."""
        return self.bytes(self.heads * self.length)


def run_layer(arena: Arena, flow: Flow, weights: LayerWeights, x: Value) -> Value:
    """The layer's output for its input `x`."""
    if flow.norm_after:
        x = norm(arena, flow, _joined(arena, flow, _attention(arena, flow, weights, x), x))
        return norm(arena, flow, _joined(arena, flow, _feed_forward(arena, flow, weights, x), x))
    residual = x
    x = norm(arena, flow, x)
    x = _joined(arena, flow, _attention(arena, flow, weights, x), residual)
    residual = x
    x = norm(arena, flow, x)
    return _joined(arena, flow, _feed_forward(arena, flow, weights, x), residual)


def _joined(arena: Arena, flow: Flow, x: Value, residual: Value) -> Value:
    """A part's output, added to what went around it."""
    x = dropout(arena, flow, x, flow.block.hidden_dropout)
    if flow.block.norms == _NORMS_OF_OUTPUTS_TOO:
        x = norm(arena, flow, x)
    return arena.add_up(residual, x)


_NORMS_OF_OUTPUTS_TOO = 4


def norm(arena: Arena, flow: Flow, x: Value, vectors: float | None = None) -> Value:
    """Normalise over the hidden width, or over `vectors` vectors per token."""
    rows = flow.tokens * (vectors or 1)
    if flow.block.norm == "layer":
        return arena.apply(x.size, x, saved=(x.buffer, Buffer(arena, 8 * rows)))
    size = x.size * 4 / flow.width  # computed in fp32, whatever flows
    x = cast(arena, x, size)
    # mean of squares: on the way back a power, its double and the product lie side by side
    mean = arena.apply(4 * rows, arena.apply(size, x, saved=(x.buffer,), way_back=Back(beside=2 * size)))
    root = arena.apply(4 * rows, mean, keep_result=True)
    x = arena.apply(size, x, root, saved=(x.buffer, root.buffer), way_back=Back(beside=size))
    x = cast(arena, x, size * flow.width / 4)
    return arena.apply(x.size, x)


def cast(arena: Arena, x: Value, size: float) -> Value:
    """To another dtype, in which it has `size` bytes; nothing happens where it has that already."""
    return x if x.size == size else arena.apply(size, x)


def dropout(arena: Arena, flow: Flow, x: Value, share: float) -> Value:
    """Dropout keeps its mask: in the compute dtype on a processor, as bytes on a GPU."""
    if share == 0:
        return x
    mask = Buffer(arena, x.size if flow.kind == "cpu" else x.size / flow.width)
    return arena.apply(x.size, x, saved=(mask,))


def linear(arena: Arena, flow: Flow, weight: Adapted | None, x: Value, columns: tuple[int, int]) -> Value:
    """A frozen weight with its adapters; `columns` are its inputs and outputs where it is no candidate."""
    d_in, d_out = columns if weight is None else (weight.d_in, weight.d_out)
    rows = x.size / (d_in * flow.width)
    size = rows * d_out * flow.width
    if weight is None:
        return arena.apply(size, x, way_back=Back(view=True))
    y = _frozen(arena, flow, weight, x, size)
    for present, rank, trained in (
        (weight.is_trained, weight.trained_rank, True),
        (weight.has_side, weight.side_rank, False),
    ):
        if present:
            down = _factor(arena, flow, x, rows * rank * flow.width, rank * d_in, trained=trained)
            up = _factor(arena, flow, down, size, rank * d_out, trained=trained)
            del down
            y = arena.add_up(y, _scaled(arena, up))
            del up
    return y


def _scaled(arena: Arena, x: Value) -> Value:
    return arena.apply(x.size, x)


def _frozen(arena: Arena, flow: Flow, weight: Adapted, x: Value, size: float) -> Value:
    """The product with the base's own weight. A quantized one is dequantized for it, on both ways."""
    entries = weight.d_in * weight.d_out
    match flow.bits:
        case 4:
            scratch = entries * flow.width + 2 * entries / 64 * 4
            spare = Buffer(arena, scratch, DEQUANTIZED)
            y = arena.apply(size, x, way_back=Back(beside=scratch, beside_term=DEQUANTIZED))
            del spare
            return arena.apply(size, y)  # peft clones what bitsandbytes returns
        case 8:
            spare = Buffer(arena, entries * flow.width, DEQUANTIZED)
            back = Back(beside=entries * flow.width, beside_term=DEQUANTIZED)
            y = arena.apply(size, x, way_back=back)
            del spare
            return y
        case _:
            return arena.apply(size, x, way_back=Back(view=True))


def _factor(arena: Arena, flow: Flow, x: Value, size: float, parameters: float, *, trained: bool) -> Value:
    """A product with one fp32 factor of an adapter, cast to the compute dtype where that is another."""
    saved: list[Buffer] = []
    beside = 0.0
    if trained:
        saved.append(x.buffer)
    if flow.width != _FP32:
        copy = Buffer(arena, parameters * flow.width)
        if x.edge is not None:
            saved.append(copy)
        beside = parameters * flow.width if trained else 0.0
    back = Back(beside=beside, trained=_FP32 * parameters if trained else None, view=True)
    return arena.apply(size, x, saved=saved, kind=ADAPTERS, way_back=back)


_FP32 = 4


def _attention(arena: Arena, flow: Flow, weights: LayerWeights, x: Value) -> Value:
    block = flow.block
    queries, keys = flow.heads * block.head_size, block.key_value_heads * block.head_size
    if weights.fused is not None:
        both = linear(arena, flow, weights.fused, x, (flow.hidden, queries + 2 * keys))
        mixed = _attend(arena, flow, *_parted(arena, both, queries, keys))
        return linear(arena, flow, weights.out, mixed, (queries, flow.hidden))
    query = linear(arena, flow, weights.query, x, (flow.hidden, queries))
    if block.head_norms:
        query = norm(arena, flow, query, flow.heads)
    key = linear(arena, flow, weights.key, x, (flow.hidden, keys))
    if block.head_norms:
        key = norm(arena, flow, key, block.key_value_heads)
    value = linear(arena, flow, weights.value, x, (flow.hidden, keys))
    if block.rotary_size:
        query, key = _rotated(arena, query), _rotated(arena, key)
    mixed = _attend(arena, flow, query, key, value)
    return linear(arena, flow, weights.out, mixed, (queries, flow.hidden))


def _parted(arena: Arena, both: Value, queries: int, keys: int) -> tuple[Value, Value, Value]:
    """Queries, keys and values that are views of one tensor."""
    query, key, value = arena.split(both, 3)
    whole = queries + 2 * keys
    query.size, key.size, value.size = (both.size * part / whole for part in (queries, keys, keys))
    return query, key, value


def _rotated(arena: Arena, x: Value) -> Value:
    arena.spike(2.5 * x.size)
    return arena.apply(x.size, x, way_back=Back(beside=1.5 * x.size))


def _attend(arena: Arena, flow: Flow, query: Value, key: Value, value: Value) -> Value:
    """Weighted values, (batch, length, heads * head size)."""
    size = flow.bytes(flow.heads * flow.block.head_size)
    repeats = 1 < flow.block.key_value_heads < flow.heads and (flow.padded or flow.kernel != "fused")
    if repeats:
        key, value = arena.apply(size, key), arena.apply(size, value)
    mask = Buffer(arena, flow.bytes(flow.length)) if flow.padded else None
    if flow.kernel == "fused":
        sums = Buffer(arena, 4 * flow.tokens * flow.heads)
        saved = [query.buffer, key.buffer, value.buffer, sums] + ([] if mask is None else [mask])
        return arena.apply(size, query, key, value, saved=saved, kind=ATTENTION, keep_result=True)
    wide = flow.tokens * flow.heads * flow.block.head_size * _FP32 if flow.kernel == "math" else size
    query, key, value = cast(arena, query, wide), cast(arena, key, wide), cast(arena, value, wide)
    shares = _shares(arena, flow, _scores(arena, flow, query, key, wide))
    copy = arena.apply(wide, value)
    mixed = arena.apply(wide, shares, copy, saved=(shares.buffer, copy.buffer), kind=ATTENTION)
    del shares, copy
    return arena.apply(size, cast(arena, mixed, size))


def _scores(arena: Arena, flow: Flow, query: Value, key: Value, wide: float) -> Value:
    """Scores (batch, heads, length, length): in fp32 by the composed kernel, else in the compute dtype."""
    if flow.kernel == "eager":
        found = arena.apply(flow.scores, query, key, saved=(query.buffer, key.buffer), kind=ATTENTION)
        found = arena.apply(flow.scores, found)
        return arena.apply(flow.scores, found) if flow.padded else found
    one, other = arena.apply(wide, query), arena.apply(wide, key)
    one, other = arena.apply(wide, one), arena.apply(wide, other)
    size = flow.scores * _FP32 / flow.width
    return arena.apply(size, one, other, saved=(one.buffer, other.buffer), kind=ATTENTION)


def _shares(arena: Arena, flow: Flow, scores: Value) -> Value:
    """Softmax in fp32, and dropout."""
    entries = flow.scores / flow.width
    shares = arena.apply(_FP32 * entries, scores, kind=ATTENTION, keep_result=True)
    arena.spike(entries)  # which rows have no share at all
    shares = cast(arena, shares, scores.size)
    if flow.block.attention_dropout == 0:
        return shares
    mask = Buffer(arena, shares.size if flow.kind == "cpu" else entries)
    return arena.apply(shares.size, shares, saved=(mask,), kind=ATTENTION)


def _feed_forward(arena: Arena, flow: Flow, weights: LayerWeights, x: Value) -> Value:
    wide, back = (flow.hidden, flow.intermediate), (flow.intermediate, flow.hidden)
    if not flow.block.gated:
        y = activated(arena, flow, linear(arena, flow, weights.up, x, wide))
        return linear(arena, flow, weights.down, y, back)
    if weights.gate_up is not None:
        gate, up = arena.split(linear(arena, flow, weights.gate_up, x, (flow.hidden, 2 * flow.intermediate)), 2)
        gate = activated(arena, flow, gate)
    else:
        gate = activated(arena, flow, linear(arena, flow, weights.gate, x, wide))
        up = linear(arena, flow, weights.up, x, wide)
    y = arena.apply(gate.size, gate, up, saved=(gate.buffer, up.buffer))
    del gate, up
    return linear(arena, flow, weights.down, y, back)


_ONE_KERNEL = frozenset({"gelu", "gelu_pytorch_tanh", "gelu_python_tanh", "silu", "swish", "relu6", "mish", "selu"})
"""Activation functions that are one operation, which keeps its input."""
_KEEPS_RESULT = frozenset({"relu", "tanh", "sigmoid"})


def activated(arena: Arena, flow: Flow, x: Value) -> Value:
    """The activation function; one that is not known keeps as much as the tanh form of GELU that GPT-2 composes."""
    name, size = flow.block.activation, x.size
    if name in _ONE_KERNEL:
        return arena.apply(size, x, saved=(x.buffer,))
    if name in _KEEPS_RESULT:
        return arena.apply(size, x, keep_result=True)
    half = arena.apply(size, x)
    cube = arena.apply(size, arena.apply(size, x, saved=(x.buffer,), way_back=Back(beside=2 * size)))
    inner = arena.add_up(x, cube)
    del cube
    inner = arena.apply(size, inner)
    curve = arena.apply(size, inner, keep_result=True)
    del inner
    shifted = arena.apply(size, curve)
    del curve
    return arena.apply(size, half, shifted, saved=(half.buffer, shifted.buffer))
