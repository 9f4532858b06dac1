"""Whatever is done to a chained record shows, at the right place."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_wire.hash_chain import START, chained, check

VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 60), 1 << 60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
LINES = st.lists(
    st.dictionaries(st.text().filter(lambda name: name not in ("prev", "hash")), VALUES, max_size=4),
    min_size=1,
    max_size=12,
)


def record(lines: list[dict[str, Any]]) -> list[Any]:
    """As it is read back from its file."""
    made, previous = [], START
    for line in lines:
        made.append(chained(line, previous))
        previous = made[-1]["hash"]
    return [json.loads(json.dumps(line)) for line in made]


@given(LINES)
def test_a_record_that_nobody_touched_holds_in_whole_and_in_parts(lines: list[dict[str, Any]]) -> None:
    made = record(lines)
    assert check(made) is None
    for cut in range(1, len(made)):
        assert check(made[cut:], made[cut - 1]["hash"]) is None
        assert check(made[:cut]) is None, "a cut at the end is for its keeper to see"


@given(LINES, st.data())
def test_a_changed_line_shows_at_its_place(lines: list[dict[str, Any]], data: st.DataObject) -> None:
    made = record(lines)
    place = data.draw(st.integers(0, len(made) - 1))
    harmed = dict(made[place])
    how = data.draw(st.sampled_from(["add", "prev", "hash", "drop", "text"]))
    match how:
        case "add":
            harmed["more"] = "x" if harmed.get("more") != "x" else "y"
        case "prev" | "hash":
            harmed[how] = "0" * 64
        case "drop":
            del harmed["hash"]
        case _:
            pass
    made[place] = "no object" if how == "text" else harmed
    assert check(made) == place + 1


@given(LINES, st.data())
def test_a_line_that_was_taken_out_moved_or_doubled_shows(lines: list[dict[str, Any]], data: st.DataObject) -> None:
    made = record(lines)
    place = data.draw(st.integers(0, len(made) - 1))
    without = made[:place] + made[place + 1 :]
    assert check(without) == (place + 1 if place < len(made) - 1 else None)
    assert check([*made[: place + 1], made[place], *made[place + 1 :]]) == place + 2
    if place:
        swapped = [*made[: place - 1], made[place], made[place - 1], *made[place + 1 :]]
        assert check(swapped) == place


@pytest.mark.parametrize("text", ['{"loss": NaN, "prev": "", "hash": "0"}', "[" * 900 + "]" * 900, "7", "null"])
def test_what_nobody_wrote_so_breaks_the_chain(text: str) -> None:
    assert check([json.loads(text)]) == 1


def test_a_hash_is_that_of_the_line_written_small_and_in_order() -> None:
    line = chained({"b": 1, "a": "ü"}, "")
    assert line["hash"] == hashlib.sha256(b'{"a":"\\u00fc","b":1,"prev":""}').hexdigest()


def test_a_line_cannot_bring_its_own_chain_or_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="hash"):
        chained({"hash": "0" * 64}, "")
    with pytest.raises(ValueError, match="JSON"):
        chained({"loss": float("nan")}, "")
