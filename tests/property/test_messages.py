"""Laws of the message codec, for every type of message."""

import json

import pytest
from any_message import AGENT_MESSAGES, COORDINATOR_MESSAGES, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpipe_profiles.values import Value
from fedpipe_wire.envelope import MAX_COUNTER, Envelope, EnvelopeError, parse
from fedpipe_wire.messages import (
    AGENT_CHANNELS,
    COORDINATOR_CHANNELS,
    SCHEMA_VERSION,
    MessageError,
    decode_from_agent,
    decode_from_coordinator,
    encode,
)

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_every_message_has_its_channel() -> None:
    assert set(AGENT_MESSAGES) == set(AGENT_CHANNELS)
    assert set(COORDINATOR_MESSAGES) == set(COORDINATOR_CHANNELS)


@pytest.mark.parametrize("kind", AGENT_MESSAGES)
@QUICK
@given(data=st.data())
def test_an_agents_message_comes_back_as_it_was(kind: type[Value], data: st.DataObject) -> None:
    message = data.draw(values(kind))
    assert decode_from_agent(AGENT_CHANNELS[kind], encode(message), SCHEMA_VERSION) == message


@pytest.mark.parametrize("kind", COORDINATOR_MESSAGES)
@QUICK
@given(data=st.data())
def test_a_coordinators_message_comes_back_as_it_was(kind: type[Value], data: st.DataObject) -> None:
    message = data.draw(values(kind))
    assert decode_from_coordinator(COORDINATOR_CHANNELS[kind], encode(message), SCHEMA_VERSION) == message


@pytest.mark.parametrize("kind", AGENT_MESSAGES)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_fields_of_a_newer_version_are_ignored(kind: type[Value], data: st.DataObject) -> None:
    message = data.draw(values(kind))
    more = json.loads(encode(message)) | {"a_field_of_tomorrow": {"deep": [1, 2]}}
    assert decode_from_agent(AGENT_CHANNELS[kind], json.dumps(more).encode(), SCHEMA_VERSION) == message


@given(payload=st.binary(max_size=300), channel=st.sampled_from(sorted(set(AGENT_CHANNELS.values()))))
def test_any_bytes_are_a_message_or_a_message_error(payload: bytes, channel: str) -> None:
    with pytest.raises(MessageError):
        decode_from_agent(channel, payload, SCHEMA_VERSION)


@given(
    schema=st.integers(1, 1_000_000),
    message_id=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    counter=st.integers(0, MAX_COUNTER),
)
def test_an_envelope_comes_back_as_it_was(schema: int, message_id: str, counter: int) -> None:
    envelope = Envelope(schema, message_id, counter)
    assert parse(envelope.properties() | {"later": "x"}) == envelope


@given(properties=st.dictionaries(st.sampled_from(["v", "id", "n", "other"]), st.text(max_size=80)))
def test_any_properties_are_an_envelope_or_an_envelope_error(properties: dict[str, str]) -> None:
    try:
        envelope = parse(properties)
    except EnvelopeError:
        return  # any other exception fails the test
    assert (str(envelope.schema), envelope.message_id) == (properties["v"].lstrip("0"), properties["id"])
