"""How much each weight helps, where no silo has scored it: assumed, or taken from the record of a run.

Owns the assumption, which every answer that rests on it must name.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedpipe_coordinator.records.line_files import sort_lines
from fedpipe_coordinator.records.run_folder import AUDIT, KEYS
from fedpipe_coordinator.whatif.errors import CurvesError
from fedpipe_coordinator.whatif.small_files import UnreadableError, named, read_json, read_small
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plain_text import plain
from fedpipe_profiles.values import Gain

DECAY = 0.9
"""Of each further rank's gain over the one before. Our choice: ranks 4, 8, 16 and 32 then reach 34, 57, 81 and 97 %."""
MAX_RECORD_BYTES = 1 << 28
Curves = Mapping[str, tuple[float, ...]]
_CURVES = TypeAdapter(dict[str, tuple[Gain, ...]])


def assumed_curves(shape: ModelShape, ranks: int) -> dict[str, tuple[float, ...]]:
    """Every parameter alike: a weight counts by its size, and each further rank helps less by a constant share.

    The curves never fall and are concave, as measured ones are; one has min(ranks, d_in, d_out) points.
    """
    total = shape.weight_parameters
    return {
        weight.name: tuple(
            weight.parameters / total * (1 - DECAY**rank)
            for rank in range(1, min(ranks, weight.d_in, weight.d_out) + 1)
        )
        for weight in shape.weights
    }


def recorded_curves(path: Path, shape: ModelShape) -> dict[str, tuple[float, ...]]:
    """The curves of a run's folder, of its `audit.jsonl`, or of a JSON file that holds them.

    Raises:
        CurvesError: if there are none, or they are of another model.
    """
    try:
        found = _from_record(path / AUDIT if path.is_dir() else path)
    except UnreadableError as error:
        raise CurvesError(f"no contributions can be read: {error}") from None
    try:
        curves = _CURVES.validate_python(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CurvesError(
            f"the contributions of {named(path)} cannot be used: {plain(where, 200)}: {plain(first['msg'], 200)}"
        ) from None
    known = {weight.name for weight in shape.weights}
    differing = sorted(known ^ curves.keys())
    if differing:
        raise CurvesError(
            f"the contributions of {named(path)} are of another model: {len(differing)} of {len(known)} weights "
            f"differ, the first is {plain(differing[0], 100)!r}; leave --contributions out to assume curves"
        )
    return curves


def _from_record(path: Path) -> object:
    if path.suffix != ".jsonl":
        value = read_json(path, MAX_RECORD_BYTES)
        return value.get("curves", value) if isinstance(value, dict) else value
    lines = sort_lines(read_small(path, MAX_RECORD_BYTES), KEYS[AUDIT]).lines
    data = [line.get("data") for line in lines if line["kind"] == "contributions"]
    curves = [each["curves"] for each in data if isinstance(each, dict) and "curves" in each]
    if not curves:
        raise UnreadableError(f"{named(path)} tells of no contributions: the run did not come to score its weights")
    return curves[-1]
