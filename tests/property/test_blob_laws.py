"""Laws of the blob state machines, for any order of events, and of whole transfers, whatever breaks on the way."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from blob_simulation import AGENT, Faults, Simulation
from hypothesis import example, given, settings
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
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_pumps import BlobArrived, BlobFailed, BlobReceiver, BlobWanted
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
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.topics import Address

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


# --- whole transfers --------------------------------------------------------------------------------------------

SMALL = BlobSettings(chunk_bytes=100, ask_chunks=8, window=3)
HARM = st.sampled_from(["sender dies", "receiver dies", "broker empty", "cut"])
HARMS = st.lists(st.tuples(HARM, st.integers(0, 25)), max_size=6)
SIZES = st.integers(1, 4000)


@contextmanager
def simulation(**more: Any) -> Iterator[Simulation]:
    with tempfile.TemporaryDirectory() as folder, closing(Simulation(Path(folder), SMALL, **more)) as made:
        yield made


def harm(crossing: Simulation, ref: BlobRef, what: str, name: str) -> None:
    """Something breaks, and its owner does what it does at every start."""
    match what:
        case "sender dies":
            crossing.start_sender()
            crossing.sender.offer(ref)
        case "receiver dies":
            crossing.start_receiver(name)
            crossing.receivers[name].expect(ref, crossing.agent)
        case "broker empty":
            crossing.lose_broker()
        case _:
            crossing.cut(30.0)
    crossing.run(lambda: crossing.transport.connected)


def ends(crossing: Simulation, name: str) -> list[BlobArrived | BlobFailed]:
    return [outcome for told, outcome in crossing.outcomes if told == name]


@settings(max_examples=60, deadline=None)
@given(size=SIZES, harms=HARMS)
@example(size=301, harms=[("cut", 1), ("cut", 1)])  # a request that met the second cut on its way
def test_what_is_sent_twice_is_explained_by_what_broke(size: int, harms: list[tuple[str, int]]) -> None:
    with simulation() as crossing:
        ref, data = crossing.blob(size)
        crossing.sender.offer(ref)
        crossing.receivers["coordinator"].expect(ref, AGENT)
        for what, chunks in harms:
            until = len(crossing.sent) + chunks
            crossing.run(lambda until=until: len(crossing.sent) >= until)  # type: ignore[misc]  # mypy cannot type a default
            harm(crossing, ref, what, "coordinator")
        crossing.run()
        assert {type(outcome) for outcome in ends(crossing, "coordinator")} == {BlobArrived}
        assert crossing.received("coordinator", ref) == data
        # A cut costs nothing here: what was on the line is the session's to send again, at most a window. Whoever
        # forgets, forgets at most what was asked for; a receiver's old request may meet its new one after a cut.
        forgotten = sum(what != "cut" for what, _ in harms)
        assert len(crossing.sent) <= chunk_count(ref) + forgotten * SMALL.ask_chunks


@settings(max_examples=60, deadline=None)
@given(
    size=SIZES,
    harms=HARMS,
    seed=st.integers(0, 1000),
    lost=st.sampled_from([0.0, 0.1, 0.4]),
    corrupted=st.sampled_from([0.0, 0.01, 0.3]),
)
def test_every_receiver_ends_with_the_bytes_or_with_a_reason(
    size: int, harms: list[tuple[str, int]], seed: int, lost: float, corrupted: float
) -> None:
    names = ("one", "two", "three")
    faults = Faults(lost=lost, repeated=0.1, corrupted=corrupted, jitter_s=0.3)
    with simulation(faults=faults, agent=None, receivers=names, seed=seed) as crossing:
        ref, data = crossing.blob(size)
        for name in names:
            crossing.receivers[name].expect(ref, None, pushed=True)
        crossing.sender.push(ref)
        for number, (what, chunks) in enumerate(harms):
            until = len(crossing.sent) + chunks
            crossing.run(lambda until=until: len(crossing.sent) >= until)  # type: ignore[misc]  # as above
            harm(crossing, ref, what, names[number % 3])
        crossing.run()
        for name in names:
            assert ends(crossing, name)
            assert not crossing.receivers[name].expecting(ref.sha256)
            match ends(crossing, name)[-1]:
                case BlobArrived():
                    assert crossing.received(name, ref) == data
                case BlobFailed(_, _, reason):
                    # Chunks that are lost are asked for again until they come; only changed bytes end a transfer.
                    assert corrupted or "nothing came for 120 s" in reason
                    assert "attempts" in reason or "nothing came for" in reason
            for path in crossing.folder.joinpath(name).glob("?" * 64):
                assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        most = SMALL.repeats * len(names) + 1 + len(harms)
        assert len(crossing.sent) <= most * chunk_count(ref)


@settings(max_examples=60, deadline=None)
@given(
    order=st.lists(st.tuples(st.sampled_from(["one", "two", "liar"]), st.integers(0, 7)), max_size=80),
    ticks=st.lists(st.floats(0.0, 15.0), min_size=80, max_size=80),
)
def test_of_several_sources_one_is_believed_at_a_time_and_no_lie_is_kept(
    order: list[tuple[str, int]], ticks: list[float]
) -> None:
    data = bytes(range(250)) * 3
    ref = BlobRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data), chunk_bytes=100)
    now = 0.0
    with tempfile.TemporaryDirectory() as folder:
        store = BlobStore(Path(folder), chunk_bytes=100, reserve_bytes=0)
        receiver = BlobReceiver(store, lambda: now, settings=SMALL)
        for source in ("one", "two", "liar"):
            receiver.expect(ref, source)
        told: list[BlobArrived | BlobFailed | BlobWanted] = []
        with closing(receiver):
            for (source, index), step_s in zip(order, ticks, strict=False):
                now += step_s
                chunk = data[100 * index : 100 * index + 100]
                payload = bytes(len(chunk)) if source == "liar" else chunk
                receiver.on_chunk(Address(source, "up", "blob", ref.sha256, index), payload)
                receiver.tick(now)
                told += receiver.take()
        ended = [outcome for outcome in told if not isinstance(outcome, BlobWanted)]
        assert len(ended) in {0, 3}  # everybody is told the same, once
        assert {outcome.source for outcome in ended} in (set(), {"one", "two", "liar"})
        if store.has(ref.sha256):
            assert store.path(ref.sha256).read_bytes() == data
            assert all(isinstance(outcome, BlobArrived) for outcome in ended)
