"""Which base model a run works on, and what of it follows the run's labels.

Pure. Silos must hold the same base; what may differ is how many labels a silo has, and with it its head's last layer.
"""

from collections.abc import Sequence

from fedpipe_profiles.contribution import Contribution, ContributionMethod
from fedpipe_profiles.model import ModelShape
from fedpipe_wire.agent_messages import Survey


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
    """What is alike in all silos that hold one base: all but the number of labels and the attention's kernel."""
    return with_labels(shape, labels, 1).model_copy(update={"fused_attention": True}).model_dump_json()


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
        return f"the curve of {falling[0]!r} falls, and a larger rank never contributes less" if falling else None
    name = differing[0]
    return (
        f"{len(differing)} curves do not fit the model, the first is {name!r}: "
        f"expected {expected.get(name, 0)} ranks, got {got.get(name, 0)}"
    )


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]
