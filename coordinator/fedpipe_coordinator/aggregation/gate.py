"""The gate: what must hold of an update by itself, checked cheap first, before it is stored as accepted.

Owns the order of the checks: claimed size and examples, before a byte is fetched; the file's size; its header's size,
before it is parsed, and its number of tensors; names, shapes and dtypes, exactly those of the plan; every value, read
once, finite and of a size that factors can have. How far an update moved is known only beside the others: that is
`closing_gate.py`'s, when the round closes.
"""

from pathlib import Path

from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import Plan
from fedpipe_wire.agent_messages import Trained
from fedpipe_wire.tensors import TensorFile, check_tensors, update_spec

HEADER_ALLOWANCE_BYTES = 1_000_000
MAX_VALUE = 1e6
"""Farther from zero is no value of a factor or a head, whoever else trained: what is aggregated of such values stays
within what float32 holds, also of one or two agents, of which none can be called an outlier."""


class RefusedUpdateError(Exception):
    """An update is not what its plan asked for; the message goes to its sender."""


def expected_update_bytes(shape: ModelShape, plan: Plan) -> int:
    """Upper bound of the size of an update by its plan."""
    numbers = 0
    for spec in update_spec(shape, plan).values():
        count = 1
        for size in spec.shape:
            count *= size
        numbers += count
    return 4 * numbers + HEADER_ALLOWANCE_BYTES


def check_offer(shape: ModelShape, plan: Plan, trained: Trained) -> None:
    """Check what an agent says of its update before a byte of it is fetched.

    Raises:
        RefusedUpdateError: if it is too large, or claims more examples than were planned.
    """
    limit = expected_update_bytes(shape, plan)
    if trained.update.size > limit:
        raise RefusedUpdateError(f"the update has {trained.update.size} bytes, its plan allows {limit}")
    if trained.examples > plan.examples:
        raise RefusedUpdateError(f"{trained.examples} examples are claimed, {plan.examples} were planned")


def check_update(path: Path, shape: ModelShape, plan: Plan) -> None:
    """Check an update that lies on disk, complete.

    Raises:
        RefusedUpdateError: if it is too large, if names, shapes or dtypes are not exactly those of the plan, or if a
            value is not finite or farther from zero than `MAX_VALUE`.
        OSError: if this machine cannot read it, which is not its sender's fault.
    """
    expected = update_spec(shape, plan)
    try:
        with TensorFile(
            path,
            max_bytes=expected_update_bytes(shape, plan),
            max_header_bytes=HEADER_ALLOWANCE_BYTES,
            max_tensors=len(expected),
        ) as tensors:
            check_tensors(tensors.header, expected)
            tensors.check_finite(MAX_VALUE)
    except ValueError as error:
        raise RefusedUpdateError(str(error)) from error
