"""From a model's shape and a step's setting to the programs of its layers and its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fedpipe_profiles.costs.activations import Moment, PartCost, end_cost, layer_cost, moments
from fedpipe_profiles.costs.attention import LayerWeights
from fedpipe_profiles.costs.ends import End, Ending
from fedpipe_profiles.costs.operations import Adapted, Flow, Kernel
from fedpipe_profiles.costs.roles import Role, sort_weights
from fedpipe_profiles.costs.step import StepSetting, compute_bytes
from fedpipe_profiles.model import ModelShape, WeightShape

_NORM_AFTER = frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"})
"""Encoders that normalise a part's output together with what went around it."""

_JOINING = frozenset({"gpt_neox", "phi", "phi3"})
"""Families that put rotated and plain entries of a head together by a concatenation, even where all are rotated."""

_TWO_MASKS = frozenset({"gemma2", "gemma3_text"})
"""Families of which some layers look back over a window, and others over everything."""

_FLAT = frozenset({"opt"})
"""Families whose feed-forward part takes all tokens of the batch as the rows of one matrix."""


@dataclass(frozen=True, slots=True)
class OnWeight:
    """The ranks of an adapter on a weight: trained and carried along; `stands` where a rank of 0 counts as there."""

    trained: float
    side: float
    stands: bool = False

    def on(self, weight: WeightShape) -> Adapted:
        """The weight with it."""
        there = self.stands
        return Adapted(
            weight.d_in, weight.d_out, self.trained, self.side, there or self.trained > 0, there or self.side > 0
        )


NO_ADAPTER = OnWeight(0, 0)


def kernel_of(shape: ModelShape, setting: StepSetting) -> Kernel:
    """The attention kernel that torch takes: on a processor, dropout leaves only the composed one."""
    if not shape.fused_attention:
        return "eager"
    has_dropout = shape.block is not None and shape.block.attention_dropout > 0
    return "math" if has_dropout and setting.kind == "cpu" else "fused"


@dataclass(frozen=True, slots=True)
class Parts:
    """The programs of a step: one layer after the other, then the end."""

    flow: Flow
    layers: tuple[tuple[tuple[Role, WeightShape], ...], ...]
    kinds: tuple[int, ...]
    """Alike for layers whose weights have the same roles and sizes."""
    outside: tuple[WeightShape, ...]
    end: End
    shape: ModelShape

    def costs(
        self, ranks: Mapping[str, OnWeight], default: OnWeight, setting: StepSetting
    ) -> tuple[list[PartCost], PartCost]:
        """The cost of every layer and of the end with adapters of `ranks`, `default` where a weight is not named."""
        found: list[PartCost] = []
        known: dict[tuple[object, ...], tuple[PartCost, bool]] = {}
        is_first = True
        for layer, kind in zip(self.layers, self.kinds, strict=True):
            on = [ranks.get(weight.name, default) for _, weight in layer]
            key = (kind, is_first, *on)
            if key not in known:
                adapted = {role: each.on(weight) for (role, weight), each in zip(layer, on, strict=True)}
                weights = LayerWeights(**{role: adapted.get(role) for role in _ROLES})
                cost = layer_cost(self.flow, weights, is_first=is_first, checkpointed=setting.gradient_checkpointing)
                known[key] = cost, is_first and not any(a.is_trained for a in adapted.values())
            cost, is_first = known[key]
            found.append(cost)
        outside = tuple(ranks.get(weight.name, default).on(weight) for weight in self.outside)
        ending = Ending(
            end=self.end,
            vocabulary=self.shape.vocabulary_size,
            labels=setting.num_labels,
            predicted=setting.batch_size * max(1, setting.sequence_length - 1),
            head=self.shape.head_parameters,
            outside=outside,
        )
        return found, end_cost(self.flow, ending, is_trained=not is_first)


_ROLES: tuple[Role, ...] = ("query", "key", "value", "fused", "out", "gate", "up", "gate_up", "down")


def parts_of(shape: ModelShape, setting: StepSetting, kernel: Kernel | None = None) -> Parts | None:
    """The programs of a model, None for one that is not known in detail.

    `kernel` None takes the one that torch would.
    """
    block, found = shape.block, _sorted(SameShape(shape))
    if block is None or found is None:
        return None
    layers, kinds, outside = found
    flow = Flow(
        block=block,
        hidden=shape.hidden_size,
        intermediate=shape.intermediate_size,
        heads=shape.heads,
        batch=setting.batch_size,
        length=setting.sequence_length,
        width=compute_bytes(setting.kind, setting.bits),
        bits=setting.bits,
        kind=setting.kind,
        kernel=kernel or kernel_of(shape, setting),
        padded=setting.padded,
        norm_after=shape.model_type in _NORM_AFTER,
        joins_heads=shape.model_type in _JOINING,
        flat_feed_forward=shape.model_type in _FLAT,
    )
    return Parts(flow, layers, kinds, outside, _end(flow, setting), shape)


def _end(flow: Flow, setting: StepSetting) -> End:
    if setting.task == "causal-lm":
        return "tokens"
    return "first-token" if flow.norm_after else "score"


class SameShape:
    """A shape as a key by identity: to compare hundreds of weights would take longer than what is kept."""

    __slots__ = ("shape",)

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameShape) and self.shape is other.shape

    def __hash__(self) -> int:
        return id(self.shape)


@lru_cache(maxsize=64)
def _sorted(
    same: SameShape,
) -> tuple[tuple[tuple[tuple[Role, WeightShape], ...], ...], tuple[int, ...], tuple[WeightShape, ...]] | None:
    found = sort_weights(same.shape)
    if found is None:
        return None
    layers, outside = found
    kinds: dict[tuple[tuple[Role, int, int], ...], int] = {}
    of = [kinds.setdefault(tuple((role, w.d_in, w.d_out) for role, w in layer.items()), len(kinds)) for layer in layers]
    return tuple(tuple(layer.items()) for layer in layers), tuple(of), tuple(outside)


def kept_bytes(costs: tuple[Sequence[PartCost], PartCost], flow: Flow) -> float:
    """What autograd keeps of the whole forward pass, when it is over and the way back has not begun."""
    layers, end = costs
    return sum(sum(part.saved) for part in (*layers, end)) + _angles(flow)


def _angles(flow: Flow) -> float:
    """Cosines and sines of positions: one table for all layers."""
    return 2 * flow.length * flow.block.rotary_size * flow.width


def all_moments(costs: tuple[Sequence[PartCost], PartCost], parts: Parts) -> list[Moment]:
    """Every moment of the step: its mask and its positions live all the way."""
    layers, end = costs
    return moments(layers, end, _masks(parts) + _angles(parts.flow))


def _masks(parts: Parts) -> float:
    """One byte for each pair of tokens, where there is padding; the model's own code takes numbers, and always."""
    flow = parts.flow
    kinds = 2 if parts.shape.model_type in _TWO_MASKS else 1
    if flow.kernel == "eager":
        return kinds * flow.bytes(flow.length)
    return kinds * flow.tokens * flow.length if flow.padded else 0.0
