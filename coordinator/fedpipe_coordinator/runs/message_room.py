"""Whether what a run will have to say fits into messages, found out as soon as an agent says what it holds.

Pure. A message has at most `MAX_MESSAGE_BYTES`. Three things grow with the silo's data and the model: the labels, which
every task names; the curves, which an agent sends once; and the components, which every plan names. Each has a share.
"""

from collections.abc import Sequence

from pydantic_core import to_json

from fedpipe_coordinator.config import Job
from fedpipe_profiles.model import ModelShape
from fedpipe_wire.messages import MAX_MESSAGE_BYTES

MAX_LABELS_BYTES = 200_000
MAX_COMPONENTS_BYTES = 700_000
MAX_CURVES_BYTES = 900_000
_NUMBER_BYTES = 25
"""A float in JSON with its comma, at most: a sign, 17 digits, a point and an exponent of 3 digits with a sign."""
_AROUND_BYTES = 4
"""Colon, brackets and comma."""


def labels_problem(labels: Sequence[str], whose: str) -> str | None:
    """Why labels are too long to be sent in a task, or None."""
    size = len(to_json(list(labels)))
    if size <= MAX_LABELS_BYTES:
        return None
    return (
        f"{whose} {len(labels)} labels, {size} bytes in a message, and at most {MAX_LABELS_BYTES} can be sent: "
        "use fewer or shorter labels"
    )


def model_problem(shape: ModelShape, job: Job) -> str | None:
    """Why curves or plans of a model are too long to be sent, or None."""
    largest, of = job.adapter.rank_ladder[-1], job.adapter.global_rank
    index_bytes = len(str(of - 1)) + 1
    curves = components = 0
    for weight in shape.weights:
        name, rank = len(to_json(weight.name)) + _AROUND_BYTES, min(largest, weight.d_out, weight.d_in)
        curves += name + rank * _NUMBER_BYTES
        components += name + rank * index_bytes
    for what, size, limit in (
        ("contribution curves", curves, MAX_CURVES_BYTES),
        ("plan", components, MAX_COMPONENTS_BYTES),
    ):
        if size > limit:
            return (
                f"its model has {len(shape.weights)} weights: at rank {largest} their {what} may take {size} bytes, "
                f"and at most {limit} of a message of {MAX_MESSAGE_BYTES} are theirs. Lower the largest of "
                "adapter.rank_ladder, or use a model with fewer linear layers"
            )
    return None
