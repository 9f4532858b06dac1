"""Bad input, by name: what a stranger may send, and what is said to it."""

import json

import pytest
from planning_fleet import profile

from fedpipe_wire.agent_messages import Presence, Profile
from fedpipe_wire.coordinator_messages import Ack
from fedpipe_wire.envelope import Envelope, EnvelopeError, parse
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.messages import (
    MAX_MESSAGE_BYTES,
    SCHEMA_VERSION,
    MessageError,
    decode_from_agent,
    decode_from_coordinator,
    encode,
)

SHA = "ab" * 32
FAILED = {"type": "failed", "run": "r1", "round": 2, "kind": "data", "message": "no rows"}
PROGRESS = {"type": "progress", "run": "r1", "round": 2, "stage": "training", "loss": 1.5}

BAD = {
    "too large": (b" " * MAX_MESSAGE_BYTES + json.dumps(FAILED).encode(), "at most 1000000 are read"),
    "empty": (b"", "malformed message"),
    "not JSON": (b"{run: r1}", "malformed message"),
    "not UTF-8": (b'{"type": "failed\xff"}', "malformed message"),
    "cut off": (json.dumps(FAILED).encode()[:-5], "malformed message"),
    "a list": (b"[]", "malformed message"),
    "very deep": (b"[" * 100_000, "malformed message"),
    "NaN": (json.dumps(PROGRESS | {"loss": float("nan")}).encode(), "loss"),
    "infinity": (json.dumps(PROGRESS | {"loss": float("inf")}).encode(), "loss"),
    "a number as large as infinity": (json.dumps(PROGRESS).replace("1.5", "1e999").encode(), "loss"),
    "unknown type": (json.dumps(FAILED | {"type": "fail"}).encode(), "type"),
    "no type": (json.dumps({"run": "r1"}).encode(), "type"),
    "the other side's type": (encode(Ack(run="r1", round=1, sha256=SHA, accepted=True)), "ack"),
    "missing field": (json.dumps({k: v for k, v in FAILED.items() if k != "kind"}).encode(), "kind: Field required"),
    "number as text": (json.dumps(FAILED | {"round": "second"}).encode(), "round"),
    "negative round": (json.dumps(FAILED | {"round": -1}).encode(), "round"),
    "a run that is a path": (json.dumps(FAILED | {"run": "../../etc"}).encode(), "run"),
    "a blob name that is a path": (b'{"type":"blob-missing","sha256":"../x","bitmap":""}', "sha256"),
    "text over its limit": (json.dumps(FAILED | {"message": "x" * 4001}).encode(), "4000 characters"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_named(name: str) -> None:
    payload, words = BAD[name]
    with pytest.raises(MessageError) as caught:
        decode_from_agent("report", payload, SCHEMA_VERSION)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("field", "most"),
    [
        ("supported_bits", [4, 8, 16, 32]),
        ("datasets", ["x" * 128] * 1000),
        ("versions", {str(number): "1" * 100 for number in range(64)}),
    ],
)
def test_a_profile_holds_no_more_than_any_machine_has_to_say(field: str, most: list[object] | dict[str, str]) -> None:
    good = json.loads(encode(Profile(profile=profile(1 << 30))))
    good["profile"][field] = most
    decode_from_agent("profile", json.dumps(good).encode(), SCHEMA_VERSION)
    more = [*most, *list(most)[:1]] if isinstance(most, list) else most | {"one": "more"}
    longer = [f"{most[0]}x", *most[1:]] if isinstance(most, list) else most | {"0": "1" * 101}
    for bad in (more, longer):
        good["profile"][field] = bad
        with pytest.raises(MessageError, match=f"profile.profile.{field}"):
            decode_from_agent("profile", json.dumps(good).encode(), SCHEMA_VERSION)


@pytest.mark.parametrize("schema", [0, 2, 99])
def test_another_schema_is_refused_before_the_payload_is_read(schema: int) -> None:
    with pytest.raises(MessageError, match=f"schema {schema}, this version reads schema 1: upgrade the older side"):
        decode_from_agent("report", b"\xff", schema)
    with pytest.raises(MessageError, match=f"schema {schema}"):
        decode_from_coordinator("ack", b"\xff", schema)


def test_a_message_on_a_channel_that_is_not_its_own_is_refused() -> None:
    payload = encode(Presence(state="online", session="s1"))
    with pytest.raises(MessageError, match="presence came on channel 'report', it belongs on 'presence'"):
        decode_from_agent("report", payload, SCHEMA_VERSION)
    acknowledgement = encode(Ack(run="r1", round=1, sha256=SHA, accepted=True))
    with pytest.raises(MessageError, match="ack came on channel 'task'"):
        decode_from_coordinator("task", acknowledgement, SCHEMA_VERSION)


def test_a_message_is_json_that_a_person_can_read() -> None:
    shown = json.loads(encode(Ack(run="r1", round=3, sha256=SHA, accepted=False, reason="norm 9 above 4")))
    assert shown == {
        "type": "ack",
        "run": "r1",
        "round": 3,
        "sha256": SHA,
        "accepted": False,
        "reason": "norm 9 above 4",
    }


@pytest.mark.parametrize("size", [0, -1])
def test_a_blob_of_nothing_cannot_be_named(size: int) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        BlobRef(sha256=SHA, size=size, chunk_bytes=10)


# --- envelope ---------------------------------------------------------------------------------------------------

GOOD = {"v": "1", "id": "m-1", "n": "7"}


def test_an_envelope_is_three_short_texts() -> None:
    assert Envelope(1, "m-1", 7).properties() == GOOD
    assert parse(GOOD) == Envelope(1, "m-1", 7)


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({}, "without user property v, id, n"),
        ({"v": "1", "id": "m"}, "without user property n"),
        (GOOD | {"v": "one"}, "'v' is 'one', not a whole number"),
        (GOOD | {"v": "0"}, "schema version 0 is outside 1 to"),
        (GOOD | {"v": "\u0661"}, "not a whole number"),
        (GOOD | {"n": "-1"}, "'n' is '-1', not a whole number"),
        (GOOD | {"n": "9" * 19}, "counter 9{19} is outside"),
        (GOOD | {"n": "9" * 500}, "not a whole number"),
        (GOOD | {"id": ""}, "message id '' is not 1 to 64"),
        (GOOD | {"id": "a b"}, "message id 'a b'"),
        (GOOD | {"id": "a\n"}, "message id"),
        (GOOD | {"id": "x" * 65}, "message id"),
        (GOOD | {"other": "x" * 513}, "'other' has 513 characters, at most 512"),
        (GOOD | {str(number): "" for number in range(14)}, "17 user properties, at most 16"),
    ],
)
def test_an_envelope_out_of_its_limits_is_refused(properties: dict[str, str], words: str) -> None:
    with pytest.raises(EnvelopeError, match=words):
        parse(properties)
