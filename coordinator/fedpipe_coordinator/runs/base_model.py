"""Which base model a run works on, and what of it follows the run's labels.

Pure. Silos must hold the same base; what may differ is how many labels a silo has, and with it its head's last layer.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from fedpipe_profiles.contribution import Contribution, ContributionMethod
from fedpipe_profiles.model import BlockShape, ModelShape
from fedpipe_wire.agent_messages import Survey

_ROUNDING = 1e-5
"""Of a curve's end: a step up the curve may be larger than the one before by this."""


def with_labels(shape: ModelShape, own: int, wanted: int) -> ModelShape:
    """The shape of the same model for another number of labels.

    Args:
        shape: As it was read with `own` labels.
        own: Rows of the head's last layer in `shape`.
        wanted: Rows that it gets.
    """
    if not shape.head:
        return shape
    last = _module(shape.head[-1].name)
    head = tuple(
        part.model_copy(update={"shape": (wanted, *part.shape[1:])})
        if _module(part.name) == last and part.shape[:1] == (own,)
        else part
        for part in shape.head
    )
    return shape.model_copy(update={"head": head})


def base_identity(shape: ModelShape, labels: int) -> str:
    """What is alike in all silos that hold one base: its tensors, and how many there are of which size.

    The number of labels, the attention's kernel and what an agent knows of a layer's work (`block`) may differ.
    """
    alike = with_labels(shape, labels, 1).model_copy(update={"fused_attention": True, "block": None})
    return alike.model_dump_json()


def block_problem(shape: ModelShape) -> str | None:
    """Why what an agent says of a layer's work cannot be true of the weights that it names, or None."""
    block = shape.block
    if block is None:
        return None
    if shape.heads % block.key_value_heads:
        return (
            f"its model's {shape.heads} heads do not divide by the {block.key_value_heads} key-value heads it tells of"
        )
    width = shape.heads * block.head_size
    if all(weight.d_in != width for weight in shape.weights):
        return f"its model has no weight that reads {shape.heads} heads of {block.head_size}, as it tells of a layer"
    if block.rotary_size > block.head_size:
        return f"its model rotates {block.rotary_size} entries of a head of {block.head_size}"
    return None


def commonest_block(shapes: Sequence[ModelShape]) -> BlockShape | None:
    """What most agents say of a layer's work, for the plans of all; None where most say nothing, and of a tie.

    Who says nothing has a vote too: else one agent that alone tells of it would decide for everybody.
    """
    said = Counter("" if shape.block is None else shape.block.model_dump_json() for shape in shapes)
    most = max(said.values(), default=0)
    winners = [each for each, count in said.items() if count == most]
    return BlockShape.model_validate_json(winners[0]) if len(winners) == 1 and winners[0] else None


def commonest_base(surveys: Sequence[Survey]) -> str:
    """The identity of the base that most silos hold; where two are as common, always the same one of them."""
    identities = [base_identity(survey.shape, len(survey.labels)) for survey in surveys]
    return max(sorted(set(identities)), key=identities.count)


def curve_problem(
    contribution: Contribution, shape: ModelShape, max_rank: int, method: ContributionMethod
) -> str | None:
    """Why curves do not fit this run, or None.

    There is one per weight, as long as the largest rank that it may get, and all are of the job's method.
    """
    if contribution.method != method:
        return (
            f"its curves are of the method {contribution.method!r}, the job's adapter.contribution is {method!r}: "
            "update FedPipe on it"
        )
    expected = {weight.name: min(max_rank, weight.d_out, weight.d_in) for weight in shape.weights}
    got = {name: len(curve) for name, curve in contribution.curves.items()}
    differing = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    if not differing:
        falling = sorted(name for name, curve in contribution.curves.items() if list(curve) != sorted(curve))
        if falling:
            return f"the curve of {falling[0]!r} falls, and a larger rank never contributes less"
        convex = sorted(name for name, curve in contribution.curves.items() if not _is_concave(curve))
        return (
            f"the curve of {convex[0]!r} bends upwards, and each rank contributes less than before" if convex else None
        )
    name = differing[0]
    return (
        f"{len(differing)} curves do not fit the model, the first is {name!r}: "
        f"expected {expected.get(name, 0)} ranks, got {got.get(name, 0)}"
    )


def _is_concave(curve: Sequence[float]) -> bool:
    """Whether no rank adds more than the one before, but for rounding in single precision."""
    slack = _ROUNDING * curve[-1] if curve else 0.0
    return all(after <= before + slack for before, after in pairwise(b - a for a, b in pairwise((0.0, *curve))))


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]
