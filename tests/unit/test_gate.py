"""The gate: what is refused before and after an update was fetched."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_support import plan, ref, shape, trained

from fedpipe_coordinator.aggregation.gate import (
    HEADER_ALLOWANCE_BYTES,
    RefusedUpdateError,
    check_offer,
    check_update,
    expected_update_bytes,
)
from fedpipe_wire.tensors import write_tensors

PLAN, SHAPE = plan("a", 1), shape()
# up is (32, 8) at rank 2, out is (8, 8) at rank 1, the head (3, 8) and (3,)
NUMBERS = 2 * (32 + 8) + (8 + 8) + 27


def _tensors() -> dict[str, Any]:
    sizes = {
        "up.lora_A": (2, 8),
        "up.lora_B": (32, 2),
        "out.lora_A": (1, 8),
        "out.lora_B": (8, 1),
        "head:head.weight": (3, 8),
        "head:head.bias": (3,),
    }
    return {name: np.full(size, 0.25, dtype=np.float32) for name, size in sizes.items()}


def _write(folder: Path, tensors: dict[str, Any]) -> Path:
    write_tensors(folder / "update", tensors)
    return folder / "update"


def test_an_update_as_planned_passes(tmp_path: Path) -> None:
    path = _write(tmp_path, _tensors())
    check_update(path, SHAPE, PLAN)
    assert path.stat().st_size <= expected_update_bytes(SHAPE, PLAN) == 4 * NUMBERS + HEADER_ALLOWANCE_BYTES


def test_an_offer_is_checked_before_a_byte_is_fetched() -> None:
    limit = expected_update_bytes(SHAPE, PLAN)
    offer = trained("a", 1)
    check_offer(SHAPE, PLAN, offer.model_copy(update={"update": ref("0" * 64).model_copy(update={"size": limit})}))
    too_large = offer.model_copy(update={"update": ref("0" * 64).model_copy(update={"size": limit + 1})})
    with pytest.raises(RefusedUpdateError, match=f"{limit + 1} bytes, its plan allows {limit}"):
        check_offer(SHAPE, PLAN, too_large)


def test_more_examples_than_planned_would_weigh_too_much() -> None:
    with pytest.raises(RefusedUpdateError, match="13 examples are claimed, 12 were planned"):
        check_offer(SHAPE, PLAN, trained("a", 1).model_copy(update={"examples": 13}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"up.lora_A": None}, "missing up.lora_A"),
        ({"down.lora_A": np.zeros((2, 32), np.float32)}, "7 tensors, at most 6 are read"),
        ({"up.lora_A": None, "down.lora_A": np.zeros((2, 32), np.float32)}, "unexpected down.lora_A"),
        ({"up.lora_A": None, "\x1b[2J" + 900 * "x": np.zeros(1, np.float32)}, "malformed entry '\\x1b[2Jxxx"),
        ({"up.lora_A": None, "\x1b[2J": np.zeros(1, np.float32)}, "unexpected '\\x1b[2J'"),
        ({"up.lora_A": np.zeros((3, 8), np.float32)}, "expected F32 [2, 8], got F32 [3, 8]"),
        ({"up.lora_A": np.zeros((2, 8), np.float16)}, "got F16 [2, 8]"),
        ({"out.lora_B": np.full((8, 1), np.nan, np.float32)}, "8 of 8 values are not finite"),
        ({"head:head.bias": np.array([0, np.inf, 0], np.float32)}, "1 of 3 values are not finite"),
        ({"head:head.bias": np.array([0, -np.inf, 0], np.float32)}, "1 of 3 values are not finite"),
        ({"head:head.bias": np.array([0, 1e38, -3e38], np.float32)}, "2 of 3 values are beyond 1e+06, the largest is"),
    ],
)
def test_an_update_that_differs_from_its_plan_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    tensors = {name: values for name, values in (_tensors() | change).items() if values is not None}
    with pytest.raises(RefusedUpdateError) as refused:
        check_update(_write(tmp_path, tensors), SHAPE, PLAN)
    assert said in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


def test_what_is_cheap_is_looked_at_first(tmp_path: Path) -> None:
    """Too large a file is refused unread; too many tensors, though none of them has a number in it that is finite."""
    path = tmp_path / "update"
    with path.open("wb") as file:
        file.truncate(expected_update_bytes(SHAPE, PLAN) + 1)
    with pytest.raises(RefusedUpdateError, match=r"bytes, at most \d+ are read"):
        check_update(path, SHAPE, PLAN)
    path.write_bytes((HEADER_ALLOWANCE_BYTES + 1).to_bytes(8, "little") + b" " * (HEADER_ALLOWANCE_BYTES + 1))
    with pytest.raises(RefusedUpdateError, match="header of 1000001 bytes, at most 1000000 are read"):
        check_update(path, SHAPE, PLAN)
    nans = {f"t{number}": np.full(2, np.nan, np.float32) for number in range(7)}
    with pytest.raises(RefusedUpdateError, match="7 tensors, at most 6 are read"):
        check_update(_write(tmp_path, nans), SHAPE, PLAN)


def test_a_file_that_cannot_be_read_is_not_its_senders_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check_update(tmp_path / "nothing", SHAPE, PLAN)


def test_a_header_of_deeply_nested_lists_is_refused(tmp_path: Path) -> None:
    header = (b'{"up.lora_A":' + b"[" * 40_000 + b"]" * 40_000 + b"}").ljust(80_024)
    (tmp_path / "update").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(RefusedUpdateError):
        check_update(tmp_path / "update", SHAPE, PLAN)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_refused_or_changes_only_numbers(tmp_path: Path, data: st.DataObject) -> None:
    """A cut, a changed byte or foreign bytes: never anything but a refusal, or an update of the planned form."""
    path = _write(tmp_path, _tensors())
    whole = path.read_bytes()
    kind = data.draw(st.sampled_from(("cut", "flip", "append", "noise")))
    at = data.draw(st.integers(0, len(whole) - 1))
    if kind == "cut":
        damaged = whole[:at]
    elif kind == "flip":
        damaged = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    elif kind == "append":
        damaged = whole + data.draw(st.binary(min_size=1, max_size=20))
    else:
        damaged = data.draw(st.binary(max_size=200))
    path.write_bytes(damaged)
    header = 8 + int.from_bytes(whole[:8], "little")
    with suppress(RefusedUpdateError):
        check_update(path, SHAPE, PLAN)
        assert kind == "flip"
        if at < header:  # spaces, or the order of what has the same form
            assert json.loads(damaged[8:header])
