"""The operations that transformer layers are made of: norms, dropout, adapted weights, activation functions.

Written after the modules of transformers 5, peft's LoRA layers and the matrix products of bitsandbytes. What is counted
is what torch's autograd saves: an operation with frozen factors saves nothing of what flows through it, so a frozen
layer keeps far less than a trained one.
"""

from dataclasses import dataclass
from typing import Literal

from fedpipe_profiles.costs.step import DeviceKind
from fedpipe_profiles.costs.walk import ADAPTERS, DEQUANTIZED, Arena, Back, Buffer, Value
from fedpipe_profiles.device import Bits
from fedpipe_profiles.model import BlockShape

FP32 = 4
"""Bytes of a number in single precision."""

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
    joins_heads: bool = False
    flat_feed_forward: bool = False

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


def capped(arena: Arena, x: Value, kind: int) -> Value:
    """Bounded by a tanh, which keeps its result; scaled before and after it."""
    x = arena.apply(x.size, x)
    x = arena.apply(x.size, x, kind=kind, keep_result=True)
    return arena.apply(x.size, x)


def dropout(arena: Arena, flow: Flow, x: Value, share: float) -> Value:
    """Dropout keeps its mask: in the compute dtype on a processor, as bytes on a GPU."""
    if share == 0:
        return x
    mask = Buffer(arena, x.size if flow.kind == "cpu" else x.size / flow.width)
    return arena.apply(x.size, x, saved=(mask,))


def linear(
    arena: Arena, flow: Flow, weight: Adapted | None, x: Value, columns: tuple[int, int], *, flat: bool = False
) -> Value:
    """A frozen weight with its adapters; `columns` are its inputs and outputs where it is no candidate.

    `flat`: x is a matrix of tokens, whose gradient needs no view of another shape.
    """
    d_in, d_out = columns if weight is None else (weight.d_in, weight.d_out)
    rows = x.size / (d_in * flow.width)
    size = rows * d_out * flow.width
    if weight is None:
        return arena.apply(size, x, way_back=Back(view=not flat))
    y = _frozen(arena, flow, weight, x, size, flat=flat)
    for present, rank, trained in (
        (weight.is_trained, weight.trained_rank, True),
        (weight.has_side, weight.side_rank, False),
    ):
        if present:
            down = _factor(arena, flow, x, rows * rank * flow.width, rank * d_in, trained=trained, flat=flat)
            up = _factor(arena, flow, down, size, rank * d_out, trained=trained, flat=flat)
            del down
            scaled = _scaled(arena, up)
            del up
            y = arena.add_up(y, scaled)
            if flow.bits not in (4, 8):  # peft's quantized layers have a name for it, until the next one has that name
                del scaled
    return y


def _scaled(arena: Arena, x: Value) -> Value:
    return arena.apply(x.size, x)


def _frozen(arena: Arena, flow: Flow, weight: Adapted, x: Value, size: float, *, flat: bool) -> Value:
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
            return arena.apply(size, x, way_back=Back(view=not flat))


def _factor(arena: Arena, flow: Flow, x: Value, size: float, parameters: float, *, trained: bool, flat: bool) -> Value:
    """A product with one fp32 factor of an adapter, cast to the compute dtype where that is another."""
    saved: list[Buffer] = []
    beside = 0.0
    if trained:
        saved.append(x.buffer)
    if flow.width != FP32:
        copy = Buffer(arena, parameters * flow.width)
        if x.edge is not None:
            saved.append(copy)
        beside = parameters * flow.width if trained else 0.0
    back = Back(beside=beside, trained=FP32 * parameters if trained else None, view=not flat)
    return arena.apply(size, x, saved=saved, kind=ADAPTERS, way_back=back)


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
