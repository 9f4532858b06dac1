"""Two machines with the same name and keys count apart: neither makes the other's messages look like replays."""

from itertools import count

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedpipe_wire.envelope import Envelope, EnvelopeError, parse
from fedpipe_wire.sealing import MAX_INSTANCES, Inspector, Sealer, SealError, key_id
from fedpipe_wire.transport import Received

KEY = Ed25519PrivateKey.generate()
TOPIC = "fedpipe/f/agents/a/up/presence"
PUBLIC = {key_id(KEY.public_key()): KEY.public_key()}


def inspector() -> Inspector:
    return Inspector(lambda _: PUBLIC, {}, frozenset({"presence"}))


def sealed(sealer: Sealer, payload: bytes = b"{}", **changed: str) -> Received:
    properties = sealer.seal(TOPIC, payload, retain=True).properties()
    return Received(TOPIC, payload, False, properties | changed)


def test_the_older_of_two_clones_is_still_heard_and_neithers_words_are_heard_twice() -> None:
    older = Sealer("a", count(1).__next__, KEY, "0a")
    newer = Sealer("a", count(10**15).__next__, KEY, "0b")
    hears = inspector()
    first, second = sealed(older), sealed(newer)
    for event in (first, second, sealed(older), sealed(newer), sealed(older)):
        hears.inspect("a", event)
    for event in (first, second):
        with pytest.raises(SealError, match="heard before"):
            hears.inspect("a", event)
    assert set(hears.dirty()) == {f"a/{key_id(KEY.public_key())}/{instance}" for instance in ("0a", "0b")}


def test_nobody_else_can_say_that_a_message_is_of_another_instance() -> None:
    with pytest.raises(SealError, match="signature") as caught:
        inspector().inspect("a", sealed(Sealer("a", count(1).__next__, KEY, "0a"), i="0b"))
    assert caught.value.fault == "forged"


def test_what_a_sender_can_have_remembered_of_it_is_bounded() -> None:
    hears = inspector()
    for number in range(MAX_INSTANCES):
        hears.inspect("a", sealed(Sealer("a", lambda: 1, KEY, f"{number:04x}")))
    with pytest.raises(SealError, match="enrol its agent anew"):
        hears.inspect("a", sealed(Sealer("a", lambda: 1, KEY, "ffff")))
    hears.inspect("a", sealed(Sealer("a", lambda: 2, KEY, "0000")))


@pytest.mark.parametrize("instance", ["G", "0" * 33, "0\n", "Ä"])
def test_an_instance_is_at_most_32_hexadecimal_digits(instance: str) -> None:
    with pytest.raises(EnvelopeError, match="32 hexadecimal"):
        parse({"v": "1", "id": "m", "n": "1", "i": instance})
    assert parse(Envelope(1, "m", 1, instance="0a").properties()).instance == "0a"
