"""What agents say to the coordinator. How it is encoded, and on which channel it goes, is `messages.py`'s matter."""

from typing import Annotated, Literal

from pydantic import Field

from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.device import DeviceProfile
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import StepMeasurement
from fedpipe_profiles.values import MAX_SIZE, Bytes, Count, Loss, PositiveCount, PositiveSize, Seconds, Size, Value
from fedpipe_wire.message_values import BlobRef, Metrics, RunId, Sha256, Text


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
    actions: tuple[Text, ...] = Field(
        default=(), max_length=64, description="what the trainer changed, such as a halved batch"
    )
    out_of_memory: bool = Field(default=False, description="the plan did not fit, and the trainer went on with less")
    score_s: Seconds = Field(default=0.0, description="of `compute_s`, measuring the contribution again")
    contribution: Contribution | None = Field(
        default=None, description="measured again after training, where the task asked for it and time allowed it"
    )


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
