"""Seals: what is signed is told apart, what is changed is refused, and nothing is let in twice."""

import base64
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe_wire import envelope
from fedpipe_wire.envelope import MAX_COUNTER, MAX_SCHEMA, Envelope
from fedpipe_wire.replay import WINDOW, Heard, heard_from_json
from fedpipe_wire.sealing import RETAINED_BY_AGENTS, Inspector, Keys, Sealer, SealError, key_id, signed_bytes
from fedpipe_wire.transport import Received

KEYS = {name: Ed25519PrivateKey.from_private_bytes(bytes((at,)) * 32) for at, name in enumerate(("a", "b"), 1)}
FOREIGN = Ed25519PrivateKey.from_private_bytes(b"x" * 32)
TOPIC = "fedpipe/tests/agents/{}/up/{}"
NAMES = st.text("ab/\0é", max_size=4)
ENVELOPES = st.builds(
    Envelope,
    st.integers(1, MAX_SCHEMA) | st.sampled_from((1, 11)),
    st.from_regex(r"[A-Za-z0-9_-]{1,5}", fullmatch=True),
    st.integers(0, MAX_COUNTER) | st.integers(0, 20),
)
PARTS = st.tuples(NAMES, NAMES, ENVELOPES, st.binary(max_size=6), st.booleans())


def public(name: str) -> Keys | None:
    key = KEYS.get(name)
    return None if key is None else {key_id(key.public_key()): key.public_key()}


def inspector(heard: Mapping[str, Heard] | None = None) -> Inspector:
    return Inspector(public, heard or {}, RETAINED_BY_AGENTS)


def packet(name: str = "a", channel: str = "report", payload: bytes = b"{}", **more: Any) -> Received:
    """A sealed packet as the broker delivers it."""
    topic, counter = TOPIC.format(name, channel), more.pop("counter", 5)
    sealer = Sealer(name, lambda: counter, more.pop("key", KEYS[name]))
    outside = sealer.seal(topic, payload, retain=channel in RETAINED_BY_AGENTS, message_id=more.pop("message_id", None))
    return Received(topic, payload, more.pop("retained", False), outside.properties())


def fault(judge: Inspector, sender: str, event: Received) -> str:
    """How a packet was judged; empty where it was let in."""
    try:
        judge.inspect(sender, event)
    except SealError as error:
        return error.fault
    return ""


# --- what is signed ---------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(one=PARTS, other=PARTS)
def test_no_two_messages_have_the_same_signed_bytes(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    def signed(parts: tuple[Any, ...]) -> bytes:
        return signed_bytes(*parts[:4], retain=parts[4])

    assert (signed(one) == signed(other)) == (one == other)


@given(sender=NAMES, topic=NAMES, outside=ENVELOPES, payload=st.binary(max_size=8), data=st.data())
def test_moving_bytes_from_one_part_to_its_neighbour_changes_what_is_signed(
    sender: str, topic: str, outside: Envelope, payload: bytes, data: st.DataObject
) -> None:
    """Sender and topic stand beside each other; of what both say together, each cut is another message."""
    text = sender + topic
    cut = data.draw(st.integers(0, len(text)))
    moved = signed_bytes(text[:cut], text[cut:], outside, payload, retain=False)
    assert (moved == signed_bytes(sender, topic, outside, payload, retain=False)) == (text[:cut] == sender)


def test_an_honest_packet_is_let_in() -> None:
    outside = inspector().inspect("a", packet(message_id="m1"))
    assert (outside.message_id, outside.counter) == ("m1", 5)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), channel=st.sampled_from(("report", "presence")))
def test_any_change_of_a_signed_part_is_refused(data: st.DataObject, channel: str) -> None:
    honest = packet("a", channel, b'{"loss": 1.25}')
    part = data.draw(st.sampled_from(("payload", "topic", "sender", "v", "id", "n", "k", "s")))
    changed, sender = honest, "a"
    match part:
        case "payload":
            other = data.draw(st.binary(max_size=20).filter(lambda value: value != honest.payload))
            changed = replace(honest, payload=other)
        case "topic":
            others = [TOPIC.format(name, way) for name in "ab" for way in ("report", "presence", "profile")]
            changed = replace(
                honest, topic=data.draw(st.sampled_from([each for each in others if each != honest.topic]))
            )
        case "sender":
            sender = "b"
        case _:
            value = honest.properties[part]
            at = data.draw(st.integers(0, len(value) - 1))
            char = data.draw(st.characters(codec="utf-8"))
            text = value[:at] + (char if char != value[at] else "") + value[at + 1 :]
            changed = replace(honest, properties={**honest.properties, part: text})
    judge = inspector()
    assert fault(judge, sender, changed) in ("forged", "malformed", "unknown-key", "unsigned")
    assert judge.dirty() == {}
    assert fault(judge, "a", honest) == "", "a refused packet must not use up the counter of an honest one"


@pytest.mark.parametrize("gone", ["v", "id", "n", "k", "s"])
def test_a_packet_that_lacks_a_part_of_its_seal_is_refused(gone: str) -> None:
    honest = packet()
    left = {name: value for name, value in honest.properties.items() if name != gone}
    assert fault(inspector(), "a", replace(honest, properties=left)) == "malformed"


def test_each_other_fault_is_named() -> None:
    bare = {name: value for name, value in packet().properties.items() if name not in ("k", "s")}
    assert fault(inspector(), "a", replace(packet(), properties=bare)) == "unsigned"
    assert fault(inspector(), "a", packet(key=FOREIGN)) == "unknown-key"
    assert fault(inspector(), "c", replace(packet(), topic=TOPIC.format("c", "report"))) == "unknown-sender"
    assert fault(inspector(), "a", packet(retained=True)) == "retained"
    stolen = {**packet(key=FOREIGN).properties, "k": key_id(KEYS["a"].public_key())}
    assert fault(inspector(), "a", replace(packet(), properties=stolen)) == "forged"


def test_a_key_that_does_not_count_any_more_is_refused_at_once() -> None:
    counting = {"a"}
    judge = Inspector(lambda name: public(name) if name in counting else None, {})
    assert fault(judge, "a", packet(counter=1)) == ""
    counting.clear()
    assert fault(judge, "a", packet(counter=2)) == "unknown-sender"


@given(st.binary(min_size=64, max_size=64), st.characters(codec="ascii"))
def test_a_signature_has_one_text_only(signature: bytes, digit: str) -> None:
    text = base64.b64encode(signature).decode()
    other = text[:85] + digit + "=="
    try:
        Envelope(1, "m", 0, "0" * 16, other)
    except envelope.EnvelopeError:
        return
    assert other == text or base64.b64decode(other) != signature


# --- counters ---------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 40) | st.integers(0, 3 * WINDOW) | st.integers(0, MAX_COUNTER), max_size=60),
    st.integers(0, 60),
)
def test_a_counter_is_let_in_once_in_every_order_and_none_near_the_highest_is_lost(
    counters: list[int], stored_at: int
) -> None:
    """Against a set of all that was let in; what is stored and read back in between goes on as it was."""
    judge, let_in = inspector(), set[int]()
    stored: dict[str, Heard] = {}
    for at, counter in enumerate(counters):
        if at == stored_at:
            judge = inspector({name: heard_from_json(heard.to_json()) for name, heard in stored.items()})
        new = fault(judge, "a", packet(counter=counter)) == ""
        stored |= judge.dirty()
        if counter in let_in:
            assert not new
        elif counter > max(let_in, default=-1) - WINDOW:
            assert new
        if new:
            let_in.add(counter)


def test_too_old_to_tell_is_refused_and_the_oldest_of_the_window_is_not() -> None:
    judge = inspector()
    assert fault(judge, "a", packet(counter=5000)) == ""
    assert fault(judge, "a", packet(counter=5000 - WINDOW + 1)) == ""
    assert fault(judge, "a", packet(counter=5000 - WINDOW)) == "replayed"


def test_senders_and_keys_are_counted_apart() -> None:
    other = Ed25519PrivateKey.from_private_bytes(b"n" * 32)
    both = {**(public("a") or {}), key_id(other.public_key()): other.public_key()}
    judge = Inspector(lambda name: both if name == "a" else public(name), {})
    assert [fault(judge, name, packet(name, key=key)) for name, key in (("a", KEYS["a"]), ("b", KEYS["b"]))] == ["", ""]
    assert fault(judge, "a", packet(key=other)) == "", "a new key begins with counters of its own"
    assert fault(judge, "a", packet(key=other)) == "replayed"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(RETAINED_BY_AGENTS)), st.integers(0, 12)), max_size=30))
def test_of_a_state_that_is_kept_the_newest_counts_as_often_as_it_comes(said: list[tuple[str, int]]) -> None:
    judge, newest = inspector(), dict[str, int]()
    for channel, counter in said:
        new = fault(judge, "a", packet("a", channel, counter=counter, retained=counter % 2 == 0)) == ""
        assert new == (counter >= newest.get(channel, -1))
        newest[channel] = max(counter, newest.get(channel, -1))


def test_a_state_that_was_kept_for_long_is_let_in_however_much_was_said_since() -> None:
    judge = inspector()
    assert fault(judge, "a", packet(counter=9 * WINDOW)) == ""
    assert fault(judge, "a", packet("a", "profile", counter=1, retained=True)) == ""


def test_a_will_may_come_again_and_does_not_make_what_came_before_it_count_again() -> None:
    judge = inspector()
    old, new = (packet("a", "presence", b'{"state": "online"}', counter=at) for at in (7, 9))
    will = packet("a", "presence", b'{"state": "offline"}', counter=8, message_id="will-1")
    assert [fault(judge, "a", each) for each in (old, new, will, will, new)] == [""] * 5
    assert fault(judge, "a", old) == "replayed"
    assert fault(judge, "a", replace(will, payload=b'{"state": "online"}')) == "forged"
    assert fault(judge, "a", packet(message_id="will-1")) == "", "as any other message,"
    assert fault(judge, "a", packet(message_id="will-1")) == "replayed", "where none is kept"


def test_without_keys_counters_are_told_apart_by_sender_alone() -> None:
    judge = Inspector(None, {})
    sealer = Sealer("a", count(1).__next__)
    event = Received("t", b"", False, sealer.seal("t", b"").properties())
    assert fault(judge, "a", event) == ""
    named = {**event.properties, "k": "0" * 16, "s": "A" * 86 + "=="}
    assert fault(judge, "a", replace(event, properties=named)) == "replayed"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"highest": 1, "recent": 5, "kept": {}}', '{"highest":1,"recent":"x","kept":{}}']
)
def test_stored_counters_that_are_something_else_are_named(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # JSON's own errors are among them
        heard_from_json(text)
