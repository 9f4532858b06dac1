"""The gate: nothing is aggregated before its size, names, shapes, dtypes and finiteness were checked, cheap first.

Owns the order of the checks. Runs before any tensor of an update is parsed.
"""

from pathlib import Path

from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import Plan
from fedpipe_wire.agent_messages import Trained
from fedpipe_wire.tensors import TensorFile, check_tensors, inspect_header, update_spec

HEADER_ALLOWANCE_BYTES = 1_000_000
MAX_TENSORS = 100_000


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
        RefusedUpdateError: if names, shapes or dtypes are not exactly those of the plan, or a value is not finite.
        OSError: if this machine cannot read it, which is not its sender's fault.
    """
    try:
        header = inspect_header(
            path,
            max_bytes=expected_update_bytes(shape, plan),
            max_header_bytes=HEADER_ALLOWANCE_BYTES,
            max_tensors=MAX_TENSORS,
        )
        check_tensors(header, update_spec(shape, plan))
        with TensorFile(path) as tensors:
            tensors.check_finite()
    except ValueError as error:
        raise RefusedUpdateError(str(error)) from error
