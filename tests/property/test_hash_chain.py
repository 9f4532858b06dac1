"""A chain of lines: whatever is done to some of them shows, with the place."""

import json
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedpipe_wire.hash_chain import FIRST, Break, chained, read_chain, written

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
LINES = st.dictionaries(st.text(max_size=6), VALUES, max_size=4)


def texts(lines: list[dict[str, Any]]) -> list[bytes]:
    newest, found = FIRST, []
    for line in lines:
        made = chained(line, newest)
        newest = made["hash"]
        found.append(written(made).encode())
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(LINES, max_size=6))
def test_what_was_chained_holds_and_says_what_it_said(lines: list[dict[str, Any]]) -> None:
    chain = read_chain(texts(lines))
    assert chain.breaks == ()
    assert chain.unchained == 0
    said = [{key: value for key, value in line.items() if key not in ("prev", "hash")} for _, line in chain.lines]
    assert said == [{key: value for key, value in line.items() if key not in ("prev", "hash")} for line in lines]


@settings(max_examples=40, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=6), st.data())
def test_any_changed_byte_shows_at_its_line(lines: list[dict[str, Any]], data: st.DataObject) -> None:
    whole = texts(lines)
    at = data.draw(st.integers(0, len(whole) - 1))
    place = data.draw(st.integers(0, len(whole[at]) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value not in (whole[at][place], 10)))
    whole[at] = whole[at][:place] + bytes((byte,)) + whole[at][place + 1 :]
    # A line whose own hash is the only thing changed breaks there and after it.
    assert read_chain(whole).breaks[0].line == at + 1


@settings(max_examples=40, deadline=None)
@given(st.lists(LINES, min_size=2, max_size=6), st.data())
def test_any_other_order_or_choice_of_lines_shows_but_for_the_end(
    lines: list[dict[str, Any]], data: st.DataObject
) -> None:
    """What is cut off the end does not show in the lines: for that the newest hash is kept elsewhere."""
    whole = texts(lines)
    other = data.draw(st.lists(st.sampled_from(range(len(whole))), max_size=len(whole) + 1))
    chain = read_chain([whole[at] for at in other])
    if other == list(range(len(other))):
        assert chain.breaks == ()
        assert (chain.newest == read_chain(whole).newest) == (len(other) == len(whole))
    else:
        first = next(at for at, number in enumerate(other) if number != at)
        assert chain.breaks[0] == Break(first + 1, "out-of-place")


@settings(max_examples=40, deadline=None)
@given(st.lists(LINES, min_size=2, max_size=6), st.data())
def test_a_line_made_anew_shows_at_the_next_one(lines: list[dict[str, Any]], data: st.DataObject) -> None:
    whole = texts(lines)
    at = data.draw(st.integers(0, len(whole) - 2))
    before = json.loads(whole[at])
    whole[at] = written(chained({"text": "all was well", "more": 1}, before["prev"])).encode()
    assume(json.loads(whole[at])["hash"] != before["hash"])
    assert read_chain(whole).breaks == (Break(at + 2, "out-of-place"),)


@settings(max_examples=40, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=3), st.lists(LINES, min_size=1, max_size=3))
def test_lines_of_before_are_unchained_and_none_can_be_made_so_afterwards(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> None:
    assume(not any({"prev", "hash"} & line.keys() for line in (*before, *after)))
    old = [written(line).encode() for line in before]
    chain = read_chain([*old, *texts(after)])
    assert (chain.breaks, chain.unchained) == ((), len(old))
    bare = [written(after[0]).encode(), *texts(after)[1:]]
    assert len(bare) == 1 or read_chain(bare).breaks == (Break(2, "out-of-place"),)


def test_numbers_as_keys_are_as_texts_are() -> None:
    made = chained({"data": {10: "a", 9: "b"}})
    assert read_chain([written(made).encode()]).breaks == ()


def test_a_line_with_half_a_character_was_edited() -> None:
    made = chained({"text": "\ud800"})
    assert read_chain([json.dumps(made).encode()]).breaks == (Break(1, "edited"),)
