"""What a step holds beside the model and the trained state, phase by phase: forward, loss, backward.

A layer is walked once for each kind of layer that a model has (see `layer.py`); the phases of the whole step are sums
over layers, so that eighty layers cost no more than one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from fedpipe_profiles.costs.attention import LayerWeights
from fedpipe_profiles.costs.ends import Ending, run_end
from fedpipe_profiles.costs.layer import ends_scaled, run_layer
from fedpipe_profiles.costs.operations import Flow
from fedpipe_profiles.costs.walk import CHECKPOINTS, LAYERS, PASSING, TERMS, Arena, Buffer, Edge, Value

Phase = Literal["forward", "loss", "backward", "optimizer"]
Terms = tuple[float, ...]
"""Bytes by the terms of `walk.py`."""

_NOTHING: Terms = (0.0,) * TERMS


@dataclass(frozen=True, slots=True)
class PartCost:
    """A part of the model, on the way there and back; the peaks are above what lived when each way began.

    `saved` is what it leaves for the way back, `gradients` the bytes of its trained parameters' gradients.
    """

    forward: Terms
    saved: Terms
    backward: Terms
    gradients: float


@dataclass(frozen=True, slots=True)
class Moment:
    """The bytes that are live when one phase, in one layer, holds the most."""

    phase: Phase
    layer: int
    terms: Terms

    @property
    def total(self) -> float:
        """All bytes."""
        return sum(self.terms)


@lru_cache(maxsize=16384)
def layer_cost(flow: Flow, weights: LayerWeights, *, is_first: bool, checkpointed: bool) -> PartCost:
    """One layer; the first one's input needs no gradient."""
    arena = Arena(record=not checkpointed)
    x = Value(Buffer(arena, flow.bytes(flow.hidden)), None if is_first else Edge())
    y = run_layer(arena, flow, weights, x)
    forward, size, edge = arena.at_peak, y.size, y.edge
    # the buffer that the next part begins with is that part's
    del y
    if edge is None:
        return PartCost(forward, _NOTHING, _NOTHING, 0.0)
    if checkpointed:
        kept = (*(flow.bytes(flow.hidden) if term == CHECKPOINTS else 0.0 for term in range(TERMS)),)
        return _again(flow, weights, forward, kept, is_first=is_first)
    end = x.edge
    del x
    saved = tuple(arena.live)
    arena.restart_peak()
    arena.go_back(edge, size)
    del end
    return PartCost(forward, saved, arena.at_peak, sum(b.size for b in arena.gradients))


def _again(flow: Flow, weights: LayerWeights, forward: Terms, kept: Terms, *, is_first: bool) -> PartCost:
    """A checkpointed layer: its way back computes it again when something saved is first asked for.

    Then there is the gradient of its output. Where the last operation is the product with a scaled adapter, which needs
    nothing saved to take the scale off, there is that one's gradient too.
    """
    arena = Arena()
    outer = [Buffer(arena, flow.bytes(flow.hidden)) for _ in range(2 if ends_scaled(flow, weights) else 1)]
    x = Value(Buffer(arena, flow.bytes(flow.hidden), CHECKPOINTS), None if is_first else Edge())
    y = run_layer(arena, flow, weights, x)
    edge, size = y.edge, y.size
    assert edge is not None
    del y, outer
    arena.go_back(edge, size)
    return PartCost(forward, kept, arena.at_peak, sum(b.size for b in arena.gradients))


@lru_cache(maxsize=1024)
def end_cost(flow: Flow, ending: Ending, *, is_trained: bool) -> PartCost:
    """Norm, head and loss; `is_trained`: something before it is, so that the way back goes on."""
    arena = Arena()
    x = Value(Buffer(arena, flow.bytes(flow.hidden)), Edge() if is_trained else None)
    y = run_end(arena, flow, ending, x)
    edge, size = y.edge, y.size
    end = x.edge
    del x, y
    forward, saved = arena.at_peak, tuple(arena.live)
    arena.restart_peak()
    if edge is not None:
        arena.go_back(edge, size)
    del end
    return PartCost(forward, saved, arena.at_peak, sum(b.size for b in arena.gradients))


def moments(layers: Sequence[PartCost], end: PartCost, always: float) -> list[Moment]:
    """The peak of every phase in every layer, with `always` bytes that live from the first layer to the last."""
    found: list[Moment] = []
    held = _NOTHING
    begin = (*(always if term == PASSING else 0.0 for term in range(TERMS)),)
    held = begin
    for number, layer in enumerate(layers):
        found.append(Moment("forward", number, _sum(held, layer.forward)))
        held = _sum(held, layer.saved)
    found.append(Moment("loss", len(layers), _sum(held, end.forward)))
    found.append(Moment("loss", len(layers), _sum(held, end.backward)))
    gradients = end.gradients
    for number in reversed(range(len(layers))):
        layer = layers[number]
        held = _less(held, layer.saved)
        terms = _sum(held, layer.backward)
        found.append(Moment("backward", number, (*terms[:-1], terms[-1] + gradients)))
        gradients += layer.gradients
    found.append(Moment("optimizer", 0, (*_NOTHING[:-1], gradients)))
    return found


def _sum(one: Terms, other: Terms) -> Terms:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _less(one: Terms, other: Terms) -> Terms:
    return tuple(a - b for a, b in zip(one, other, strict=True))


__all__ = ["LAYERS", "Moment", "PartCost", "Phase", "Terms", "end_cost", "layer_cost", "moments"]
