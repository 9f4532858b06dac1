"""The program of one transformer layer: the operations of the model's own code, and what each keeps for the way back.

Written after the modules of transformers 5: `models/llama`, `bert`, `gpt2`, `qwen3`, `gemma`, `gpt_neox`, `phi`.
"""

from fedpipe_profiles.costs.attention import LayerWeights, attention
from fedpipe_profiles.costs.operations import Flow, activated, dropout, linear, norm
from fedpipe_profiles.costs.walk import Arena, Value


def run_layer(arena: Arena, flow: Flow, weights: LayerWeights, x: Value) -> Value:
    """The layer's output for its input `x`."""
    if flow.norm_after:
        x = norm(arena, flow, _joined(arena, flow, attention(arena, flow, weights, x), x, of_attention=True))
        return norm(arena, flow, _joined(arena, flow, _feed_forward(arena, flow, weights, x), x))
    if flow.block.parallel:
        return _side_by_side(arena, flow, weights, x)
    residual = x
    x = norm(arena, flow, x)
    x = _joined(arena, flow, attention(arena, flow, weights, x), residual, of_attention=True)
    residual = x
    x = norm(arena, flow, x)
    return _joined(arena, flow, _feed_forward(arena, flow, weights, x), residual)


def ends_scaled(flow: Flow, weights: LayerWeights) -> bool:
    """Whether nothing but sums follows an adapter's scale at the end of the layer: no norm, no dropout."""
    adapted = weights.down is not None and (weights.down.is_trained or weights.down.has_side)
    normed = flow.norm_after or flow.block.norms == _NORMS_OF_OUTPUTS_TOO
    return adapted and not normed and flow.block.hidden_dropout == 0


def _side_by_side(arena: Arena, flow: Flow, weights: LayerWeights, x: Value) -> Value:
    """Attention and feed-forward part of the same input, by one norm or each by its own."""
    normed = norm(arena, flow, x)
    attended = dropout(arena, flow, attention(arena, flow, weights, normed), flow.block.hidden_dropout)
    if flow.block.norms > 1:
        normed = norm(arena, flow, x)
    fed = dropout(arena, flow, _feed_forward(arena, flow, weights, normed), flow.block.hidden_dropout)
    del normed
    both = arena.add_up(fed, attended)
    return arena.add_up(both, x)


def _joined(arena: Arena, flow: Flow, x: Value, residual: Value, *, of_attention: bool = False) -> Value:
    """A part's output, added to what went around it; one dropout of a layer is the feed-forward part's."""
    if not (of_attention and flow.block.hidden_dropouts == 1):
        x = dropout(arena, flow, x, flow.block.hidden_dropout)
    if flow.block.norms == _NORMS_OF_OUTPUTS_TOO:
        x = norm(arena, flow, x)
    return arena.add_up(residual, x)


_NORMS_OF_OUTPUTS_TOO = 4


def _feed_forward(arena: Arena, flow: Flow, weights: LayerWeights, x: Value) -> Value:
    wide, back = (flow.hidden, flow.intermediate), (flow.intermediate, flow.hidden)
    if not flow.block.gated:
        flat = flow.flat_feed_forward
        y = activated(arena, flow, linear(arena, flow, weights.up, x, wide, flat=flat))
        return linear(arena, flow, weights.down, y, back, flat=flat)
    if weights.gate_up is not None:
        gate, up = arena.split(linear(arena, flow, weights.gate_up, x, (flow.hidden, 2 * flow.intermediate)), 2)
        gate = activated(arena, flow, gate)
    else:
        gate = activated(arena, flow, linear(arena, flow, weights.gate, x, wide))
        up = linear(arena, flow, weights.up, x, wide)
    y = arena.apply(gate.size, gate, up, saved=(gate.buffer, up.buffer))
    del gate, up
    return linear(arena, flow, weights.down, y, back)
