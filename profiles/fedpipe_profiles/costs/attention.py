"""The program of attention: from the normalised input of a layer to what attention adds to it."""

from dataclasses import dataclass

from fedpipe_profiles.costs.operations import FP32, Adapted, Flow, capped, cast, linear, norm
from fedpipe_profiles.costs.walk import ATTENTION, Arena, Back, Buffer, Value


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


def attention(arena: Arena, flow: Flow, weights: LayerWeights, x: Value) -> Value:
    """Queries, keys and values, what they mix, and its projection."""
    block = flow.block
    queries, keys = flow.heads * block.head_size, block.key_value_heads * block.head_size
    if weights.fused is not None:
        both = linear(arena, flow, weights.fused, x, (flow.hidden, queries + 2 * keys))
        query, key, value = _parted(arena, both, queries, keys)
        del both
        if block.rotary_size:
            query, key = _rotated(arena, query), _rotated(arena, key)
        mixed = _attend(arena, flow, query, key, value)
        del query, key, value
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
    has_mask = flow.padded and flow.kernel != "eager"  # there it has been numbers from the beginning
    mask = Buffer(arena, flow.bytes(flow.length)) if has_mask else None
    if flow.kernel == "fused":
        sums = Buffer(arena, 4 * flow.tokens * flow.heads)
        saved = [query.buffer, key.buffer, value.buffer, sums] + ([] if mask is None else [mask])
        mixed = arena.apply(size, query, key, value, saved=saved, kind=ATTENTION, keep_result=True)
        # queries put together anew lie head by head, and so does what comes out: a copy brings it back to rows
        return arena.apply(size, mixed) if flow.joins_heads else mixed
    wide = flow.tokens * flow.heads * flow.block.head_size * FP32 if flow.kernel == "math" else size
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
        if flow.block.score_cap:
            found = capped(arena, found, ATTENTION)
        return arena.apply(flow.scores, found)
    one, other = arena.apply(wide, query), arena.apply(wide, key)
    one, other = arena.apply(wide, one), arena.apply(wide, other)
    size = flow.scores * FP32 / flow.width
    return arena.apply(size, one, other, saved=(one.buffer, other.buffer), kind=ATTENTION)


def _shares(arena: Arena, flow: Flow, scores: Value) -> Value:
    """Softmax in fp32, and dropout."""
    entries = flow.scores / flow.width
    shares = arena.apply(FP32 * entries, scores, kind=ATTENTION, keep_result=True)
    arena.spike(entries)  # which rows have no share at all
    shares = cast(arena, shares, scores.size)
    if flow.block.attention_dropout == 0:
        return shares
    mask = Buffer(arena, shares.size if flow.kind == "cpu" else entries)
    return arena.apply(shares.size, shares, saved=(mask,), kind=ATTENTION)
