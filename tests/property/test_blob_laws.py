"""Laws of the blob state machines, for any order of events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_wire.blob_bits import (
    BlobError,
    all_bits,
    chunk_count,
    chunk_span,
    decode_bitmap,
    encode_bitmap,
    lowest_bits,
)
from fedpipe_wire.blobs import (
    Acknowledged,
    Ask,
    Asked,
    BlobSettings,
    Came,
    Complete,
    GiveUp,
    NotTaken,
    SenderEvent,
    Sending,
    SlotFree,
    StateLost,
    Woke,
    begin_receiving,
    step_receiver,
    step_sender,
)
from fedpipe_wire.messages import BlobRef

SETTINGS = BlobSettings(ask_chunks=4)
CHUNKS = 12
BITS = st.integers(0, all_bits(CHUNKS))
INDEX = st.integers(0, CHUNKS - 1)
STEPS = st.floats(0.0, 40.0)


def members(bits: int) -> set[int]:
    return {index for index in range(bits.bit_length()) if bits >> index & 1}


@given(count=st.integers(1, 3000), data=st.data())
def test_a_bitmap_comes_back_and_fits_no_other_number_of_bytes(count: int, data: st.DataObject) -> None:
    bits = data.draw(st.integers(0, all_bits(count)))
    text = encode_bitmap(bits, count)
    assert decode_bitmap(text, count) == bits
    for other in (count - 8, count + 8):
        if other > 0:
            with pytest.raises(BlobError, match="it must have exactly"):
                decode_bitmap(text, other)


@given(text=st.text(max_size=60), count=st.integers(1, 300))
def test_any_text_is_a_bitmap_or_an_error(text: str, count: int) -> None:
    try:
        bits = decode_bitmap(text, count)
    except BlobError:
        return  # any other exception fails the test
    assert bits.bit_length() <= count


@given(bits=st.integers(0, 1 << 200), most=st.integers(0, 220))
def test_the_lowest_are_the_lowest(bits: int, most: int) -> None:
    assert members(lowest_bits(bits, most)) == set(sorted(members(bits))[:most])


@given(size=st.integers(1, 10**9), chunk_bytes=st.integers(1000, 1_900_000))
def test_chunks_cover_a_blob_without_gap_or_overlap(size: int, chunk_bytes: int) -> None:
    ref = BlobRef(sha256="0" * 64, size=size, chunk_bytes=chunk_bytes)
    count = chunk_count(ref)
    for index in {0, count // 2, count - 1}:
        offset, length = chunk_span(ref, index)
        following = chunk_span(ref, index + 1)[0] if index + 1 < count else size
        assert offset + length == following
        assert 0 < length <= chunk_bytes


SENDER_EVENTS = st.one_of(
    BITS.map(Asked),
    st.just(SlotFree()),
    st.just(StateLost()),
    st.sampled_from(["acknowledge", "refuse"]),
)


@given(events=st.lists(st.tuples(SENDER_EVENTS, st.floats(0.0, 3.0)), max_size=60))
def test_a_sender_sends_what_is_asked_and_nothing_else(
    events: list[tuple[Asked | SlotFree | StateLost | str, float]],
) -> None:
    state, now, asked, out = Sending(CHUNKS), 0.0, 0, set[int]()
    acknowledged: dict[int, float] = {}
    for drawn, step_s in events:
        now += step_s
        event: SenderEvent
        if isinstance(drawn, str):
            if not out:
                continue
            index = min(out)
            out.remove(index)
            event = NotTaken(index) if drawn == "refuse" else Acknowledged(index)
            if drawn == "acknowledge":
                acknowledged[index] = now
        else:
            event = drawn
        if isinstance(event, Asked):
            asked |= event.bits
        if isinstance(event, StateLost):
            acknowledged.clear()
        state, sends = step_sender(state, event, now, SETTINGS)
        for send in sends:
            assert asked >> send.index & 1
            assert send.index not in out  # never twice at once
            assert now - acknowledged.get(send.index, -100.0) >= SETTINGS.settle_s - 1e-9  # nor again too soon
            out.add(send.index)
        assert members(state.in_flight) == out
        assert not state.todo & state.in_flight
    while state.todo:
        state, sends = step_sender(state, SlotFree(), now, SETTINGS)
        assert len(sends) == 1


RECEIVER_EVENTS = st.one_of(INDEX.map(Came), st.just(Woke()), st.just(StateLost()))


@given(
    have=BITS,
    pushed=st.booleans(),
    events=st.lists(st.tuples(RECEIVER_EVENTS, STEPS), max_size=80),
)
def test_a_receiver_asks_only_for_what_is_missing_and_little_at_a_time(
    have: int,
    pushed: bool,  # noqa: FBT001 -- drawn
    events: list[tuple[Came | Woke | StateLost, float]],
) -> None:
    now, moved_at, here = 0.0, 0.0, members(have)
    state, actions = begin_receiving(CHUNKS, have, now, SETTINGS, pushed=pushed)
    complete = Complete() in actions
    for event, step_s in events:
        assert complete == (len(here) == CHUNKS)
        if complete:
            return
        now += step_s
        if isinstance(event, Came) and event.index not in here:
            here.add(event.index)
            moved_at = now
        state, actions = step_receiver(state, event, now, SETTINGS)
        complete = Complete() in actions
        for action in actions:
            if isinstance(action, Ask):
                assert action.bits
                assert not members(action.bits) & here
                assert action.bits.bit_count() <= SETTINGS.ask_chunks
        assert (GiveUp() in actions) == (isinstance(event, Woke) and now - moved_at >= SETTINGS.silence_s)
        assert members(state.missing) == set(range(CHUNKS)) - here
        assert not state.awaited & ~state.missing
        assert complete or state.wake_at(SETTINGS) <= max(now, moved_at) + SETTINGS.silence_s


@given(order=st.permutations(range(CHUNKS)))
def test_a_receiver_that_gets_what_it_asks_for_completes_without_waiting(order: list[int]) -> None:
    state, actions = begin_receiving(CHUNKS, 0, 0.0, SETTINGS)
    requested: set[int] = set()
    rank = {index: place for place, index in enumerate(order)}
    while Complete() not in actions:
        requested |= {index for action in actions if isinstance(action, Ask) for index in members(action.bits)}
        index = min(requested, key=lambda each: rank[each])
        requested.remove(index)
        state, actions = step_receiver(state, Came(index), 0.0, SETTINGS)
    assert not state.missing
