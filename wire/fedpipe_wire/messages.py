"""The messages of both sides: each a frozen typed value with a `type` that names it, JSON on the wire.

Owns their encoding and channels; their fields stand in `agent_messages.py` and `coordinator_messages.py`. What
a message means is decided by the state machines that receive it.
The envelope (schema version, message id, sender's counter) travels in MQTT 5 user properties, so that the payload stays
plain JSON that a person can read with `mosquitto_sub`.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from fedpipe_profiles.values import Value
from fedpipe_wire.agent_messages import (
    AgentMessage,
    Ahead,
    BlobMissing,
    Evaluated,
    Failed,
    Presence,
    Profile,
    Progress,
    Refused,
    Scored,
    Survey,
    Trained,
)
from fedpipe_wire.coordinator_messages import (
    Ack,
    BlobRequest,
    CoordinatorMessage,
    EndTask,
    EvaluateTask,
    IdleTask,
    RunState,
    ScoreTask,
    SurveyTask,
    TrainTask,
    TurnedAway,
    Welcome,
)

SCHEMA_VERSION = 1
MAX_MESSAGE_BYTES = 1_000_000


class MessageError(ValueError):
    """A message that cannot be accepted: too large, of another schema, not JSON, or of the wrong form."""


Message = AgentMessage | CoordinatorMessage

_FROM_AGENT: TypeAdapter[AgentMessage] = TypeAdapter(Annotated[AgentMessage, Field(discriminator="type")])
_FROM_COORDINATOR: TypeAdapter[CoordinatorMessage] = TypeAdapter(
    Annotated[CoordinatorMessage, Field(discriminator="type")]
)

AGENT_CHANNELS: Mapping[type[Value], str] = {
    Presence: "presence",
    Profile: "profile",
    Survey: "report",
    Scored: "contribution",
    Progress: "report",
    Evaluated: "report",
    Trained: "report",
    Refused: "report",
    Failed: "report",
    Ahead: "report",
    BlobMissing: "report",
}
COORDINATOR_CHANNELS: Mapping[type[Value], str] = {
    SurveyTask: "task",
    ScoreTask: "task",
    TrainTask: "task",
    EvaluateTask: "task",
    IdleTask: "task",
    EndTask: "task",
    Welcome: "presence",
    TurnedAway: "presence",
    BlobRequest: "blob",
    Ack: "ack",
    RunState: "run",
}


def encode(message: Message) -> bytes:
    """JSON bytes of a message; of more than `MAX_MESSAGE_BYTES`, nobody reads it."""
    return message.model_dump_json(exclude_none=True).encode()


def decode_from_agent(channel: str, payload: bytes, schema: int) -> AgentMessage:
    """Read a message that an agent wrote on `channel`.

    Raises:
        MessageError: if it is too large, of another schema version, malformed, or on a channel of other messages.
    """
    _check(payload, schema)
    try:
        message = _FROM_AGENT.validate_json(payload)
    except ValidationError as error:
        raise MessageError(f"malformed message: {problem_of(error)}") from None
    _check_channel(AGENT_CHANNELS[type(message)], channel, message.type)
    return message


def decode_from_coordinator(channel: str, payload: bytes, schema: int) -> CoordinatorMessage:
    """Read a message that the coordinator wrote on `channel`.

    Raises:
        MessageError: as `decode_from_agent`.
    """
    _check(payload, schema)
    try:
        message = _FROM_COORDINATOR.validate_json(payload)
    except ValidationError as error:
        raise MessageError(f"malformed message: {problem_of(error)}") from None
    _check_channel(COORDINATOR_CHANNELS[type(message)], channel, message.type)
    return message


def _check(payload: bytes, schema: int) -> None:
    if schema != SCHEMA_VERSION:
        raise MessageError(
            f"message of schema {schema}, this version reads schema {SCHEMA_VERSION}: upgrade the older side"
        )
    if len(payload) > MAX_MESSAGE_BYTES:
        raise MessageError(f"message of {len(payload)} bytes, at most {MAX_MESSAGE_BYTES} are read")


def _check_channel(expected: str, channel: str, kind: str) -> None:
    if expected != channel:
        raise MessageError(f"{kind} came on channel {channel!r}, it belongs on {expected!r}")


def problem_of(error: ValidationError) -> str:
    """The first thing that is wrong with what was to become a value, and how many there are; nothing of its content."""
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"]) or "message"
    return f"{place}: {problem['msg']} ({error.error_count()} problems)"
