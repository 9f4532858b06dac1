"""Upper bounds of a step's peak for ranks that are not chosen yet, linear in what is trained, as a plan needs them."""

from dataclasses import dataclass, fields
from functools import lru_cache

from fedpipe_profiles.costs.account import OnWeight, SameShape, all_moments, parts_of
from fedpipe_profiles.costs.activations import Moment
from fedpipe_profiles.costs.memory_generic import generic_moments, rank_bytes
from fedpipe_profiles.costs.memory_terms import (
    GRADIENT_BYTES,
    SIDE_BYTES,
    STATE_BYTES,
    TRAINABLE_BYTES,
    MemoryCoefficients,
    most,
)
from fedpipe_profiles.costs.operations import FP32
from fedpipe_profiles.costs.step import AdapterSize, StepSetting
from fedpipe_profiles.costs.walk import GRADIENTS
from fedpipe_profiles.model import ModelShape


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
        frozen = most(shape, setting, size, coefficients, generic_moments(shape, setting, size))
        per_rank = scale * rank_bytes(shape, setting)
        return (MemoryRow(frozen.total_bytes + 1, TRAINABLE_BYTES - SIDE_BYTES, per_rank),)
    static = most(shape, setting, size, coefficients, [Moment("optimizer", 0, (0.0,) * 8)]).total_bytes
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
    casts = 0.0 if width == FP32 else width * (widest if setting.gradient_checkpointing else adapter_parameters)
    casts += 0.0 if width == FP32 else 2 * width * widest
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
