"""The messages: each a frozen typed value with a `type` that names it, JSON on the wire.

Owns their form and their encoding. What a message means is decided by the state machines that receive it.
The envelope (schema version, message id, sender's counter) travels in MQTT 5 user properties, so that the payload stays
plain JSON that a person can read with `mosquitto_sub`.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.device import DeviceProfile
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import NoPlan, Plan, StepMeasurement
from fedpipe_profiles.values import (
    MAX_COUNT,
    MAX_SIZE,
    Bytes,
    Count,
    Loss,
    PositiveBytes,
    PositiveCount,
    PositiveSize,
    Seconds,
    Share,
    Size,
    Value,
)

SCHEMA_VERSION = 1
MAX_MESSAGE_BYTES = 1_000_000
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RunId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")]
Text = Annotated[str, Field(max_length=4000)]
Epoch = Annotated[
    int,
    Field(ge=0, le=MAX_COUNT, description="which start of the coordinator; in a newer one, rounds may go back"),
]


class MessageError(ValueError):
    """A message that cannot be accepted: too large, of another schema, not JSON, or of the wrong form."""


class BlobRef(Value):
    """Names a blob by its content."""

    sha256: Sha256
    size: PositiveBytes
    chunk_bytes: PositiveBytes


class JobTerms(Value):
    """What every agent must know of a job to work for it."""

    name: str = Field(max_length=128)
    model: str = Field(max_length=1000, description="hub id or folder; an agent may map it to its own copy")
    task: Literal["causal-lm", "sequence-classification"]
    dataset: str = Field(max_length=128)
    seed: Count
    sequence_length: PositiveSize
    evaluation_examples: PositiveCount
    max_rank: PositiveSize
    balance_labels: bool = Field(default=False, description="keep each silo's own mix of labels out of the loss")
    batch_sizes: tuple[PositiveSize, ...] = Field(min_length=1)


class Metrics(Value):
    """Means over one agent's held-out part."""

    loss: Loss = Field(description="nats per target token (causal-lm) or per example (classification)")
    accuracy: Share | None = None
    examples: PositiveCount


# --- agent to coordinator ---------------------------------------------------------------------------------------


class Presence(Value):
    """Retained, and the last will: is this agent there?"""

    type: Literal["presence"] = "presence"
    state: Literal["online", "offline"]
    session: str = Field(max_length=64, description="differs at every start of the agent")
    instance: str = Field(
        default="",
        max_length=64,
        description="names the state folder on its machine; one process at a time works in it",
    )


class Profile(Value):
    """Retained: the device as last measured."""

    type: Literal["profile"] = "profile"
    profile: DeviceProfile


class Survey(Value):
    """What the agent holds for a run: the base model's shape, labels and counts; no example."""

    type: Literal["survey"] = "survey"
    run: RunId
    shape: ModelShape
    labels: tuple[Annotated[str, Field(max_length=200)], ...] = Field(default=(), max_length=10_000)
    train_examples: PositiveCount
    held_out_examples: PositiveCount
    mean_tokens: float = Field(
        ge=0.001, le=MAX_SIZE, description="padded tokens per example at the job's sequence length, mean"
    )


class Scored(Value):
    """Contribution of every candidate weight, and the steps measured on the way."""

    type: Literal["scored"] = "scored"
    run: RunId
    contribution: Contribution
    measurements: tuple[StepMeasurement, ...] = Field(min_length=1, max_length=64)


class Progress(Value):
    """Where an agent is within a round. May be lost without harm."""

    type: Literal["progress"] = "progress"
    run: RunId
    round: Size
    stage: Literal["loading", "scoring", "evaluating", "training", "uploading"]
    done: Count = 0
    of: Count = 0
    loss: Loss | None = None


class Evaluated(Value):
    """Held-out metrics of the adapter that `round` began with; rounds count from 1, the last adapter's is last + 1."""

    type: Literal["evaluated"] = "evaluated"
    run: RunId
    round: PositiveSize
    metrics: Metrics


class Trained(Value):
    """A finished round of one agent; its update is the blob."""

    type: Literal["trained"] = "trained"
    run: RunId
    round: PositiveSize
    update: BlobRef
    examples: PositiveCount
    steps: PositiveCount
    train_loss: Loss
    measurement: StepMeasurement
    download_s: Seconds
    compute_s: Seconds
    actions: tuple[Text, ...] = Field(default=(), description="what the trainer changed, such as a halved batch")


class Refused(Value):
    """The agent will not do a task, and says why."""

    type: Literal["refused"] = "refused"
    run: RunId
    round: Size
    reason: Text


class Failed(Value):
    """The agent tried and failed. `kind` decides what the coordinator does; `message` is for people."""

    type: Literal["failed"] = "failed"
    run: RunId
    round: Size
    kind: Literal["out-of-memory", "time", "data", "model", "transfer", "internal"]
    message: Text
    peak_bytes: Bytes = 0


class Ahead(Value):
    """The agent was given a task that lies before those it had: the coordinator has gone back in time, and must say so.

    The agent works on the task all the same.
    """

    type: Literal["ahead"] = "ahead"
    run: RunId
    round: Size = Field(description="the latest that this agent was given a task of")


class BlobMissing(Value):
    """Asks for the chunks of a broadcast blob whose bit is set (base64; bit i of byte i // 8, lowest first)."""

    type: Literal["blob-missing"] = "blob-missing"
    sha256: Sha256
    bitmap: str = Field(max_length=200_000)


AgentMessage = (
    Presence | Profile | Survey | Scored | Progress | Evaluated | Trained | Refused | Failed | Ahead | BlobMissing
)


# --- coordinator to agent ---------------------------------------------------------------------------------------


class SurveyTask(Value):
    """Look at model and data, train nothing."""

    type: Literal["survey-task"] = "survey-task"
    run: RunId
    epoch: Epoch = 0
    terms: JobTerms


class ScoreTask(Value):
    """Score every candidate weight on a few private batches."""

    type: Literal["score-task"] = "score-task"
    run: RunId
    epoch: Epoch = 0
    terms: JobTerms
    labels: tuple[str, ...] = Field(default=(), max_length=10_000)
    batches: PositiveCount
    deadline_s: Seconds


class TrainTask(Value):
    """Evaluate the global adapter, train the plan's components, send the update."""

    type: Literal["train-task"] = "train-task"
    run: RunId
    epoch: Epoch = 0
    round: PositiveSize
    attempt: Size = Field(default=0, description="how often this round was begun before")
    terms: JobTerms
    labels: tuple[str, ...] = Field(default=(), max_length=10_000)
    adapter: BlobRef
    plan: Plan


class EvaluateTask(Value):
    """Evaluate the global adapter on the held-out part, at the bits last planned."""

    type: Literal["evaluate-task"] = "evaluate-task"
    run: RunId
    epoch: Epoch = 0
    round: PositiveSize
    terms: JobTerms
    labels: tuple[str, ...] = Field(default=(), max_length=10_000)
    adapter: BlobRef
    plan: Plan


class IdleTask(Value):
    """Nothing to do for this agent in this round: it can carry no plan."""

    type: Literal["idle-task"] = "idle-task"
    run: RunId
    epoch: Epoch = 0
    round: PositiveSize
    attempt: Size = Field(default=0, description="as in `TrainTask`")
    no_plan: NoPlan


class EndTask(Value):
    """The run is over for this agent: let the trainer go."""

    type: Literal["end-task"] = "end-task"
    run: RunId
    reason: Text


class Welcome(Value):
    """This session is the agent of its name: it is given tasks from now on."""

    type: Literal["welcome"] = "welcome"
    session: str = Field(max_length=64)


class TurnedAway(Value):
    """This session is not let in: an older one of the same name, of another instance, lives. It may ask again."""

    type: Literal["turned-away"] = "turned-away"
    session: str = Field(max_length=64)
    reason: Text


class BlobRequest(Value):
    """Asks an agent for the chunks of its blob whose bit is set (base64, as in `BlobMissing`)."""

    type: Literal["blob-request"] = "blob-request"
    sha256: Sha256
    bitmap: str = Field(max_length=200_000)


class Ack(Value):
    """The coordinator has taken the agent's update, durably; or will never take it, and says why."""

    type: Literal["ack"] = "ack"
    run: RunId
    round: PositiveSize
    sha256: Sha256
    accepted: bool
    reason: Text = ""


class RunState(Value):
    """Broadcast, retained: which runs are open and at which round."""

    type: Literal["run-state"] = "run-state"
    run: RunId
    state: Text
    round: Size
    adapter: BlobRef | None = None


CoordinatorMessage = (
    SurveyTask
    | ScoreTask
    | TrainTask
    | EvaluateTask
    | IdleTask
    | EndTask
    | Welcome
    | TurnedAway
    | BlobRequest
    | Ack
    | RunState
)
Message = AgentMessage | CoordinatorMessage
Task = SurveyTask | ScoreTask | TrainTask | EvaluateTask | IdleTask | EndTask

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
        raise MessageError(_first_problem(error)) from None
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
        raise MessageError(_first_problem(error)) from None
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


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"]) or "message"
    return f"malformed message: {place}: {problem['msg']} ({error.error_count()} problems)"
