"""What the daemon and its trainer process say to each other: one JSON object per line on stdin and stdout.

Owns the types only, so that the daemon can speak to the trainer without importing the training stack.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, TypeAdapter

from fedpipe_data.source import DatasetSource
from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import Plan, StepMeasurement
from fedpipe_profiles.values import Value
from fedpipe_wire.message_values import JobTerms, Metrics


class OpenRequest(Value):
    """First of all: what to work on and within which limits. Answered by `Opened`."""

    op: Literal["open"] = "open"
    run: str
    terms: JobTerms
    model: str = Field(description="folder or hub id, after the agent's own mapping")
    dataset: DatasetSource
    device: Literal["cpu", "cuda"]
    supported_bits: tuple[int, ...]
    memory_limit_bytes: PositiveInt = Field(description="for the whole process, runtime context included")
    threads: PositiveInt
    download: bool = Field(default=False, description="whether the owner lets the model come from the hub")
    trust_remote_code: bool = Field(default=False, description="whether the owner lets the model's own code run")


class SurveyRequest(Value):
    """Read shape, labels and counts. Answered by `Surveyed`."""

    op: Literal["survey"] = "survey"


class ScoreRequest(Value):
    """Score every candidate weight. Answered by `ScoredReply`."""

    op: Literal["score"] = "score"
    labels: tuple[str, ...]
    batches: PositiveInt
    budget_s: PositiveFloat


class TrainRequest(Value):
    """Evaluate `adapter`, train the plan, write `update`. Answered by `EvaluatedReply`, then `TrainedReply`."""

    op: Literal["train"] = "train"
    labels: tuple[str, ...]
    plan: Plan
    adapter: Path
    update: Path
    budget_s: PositiveFloat = Field(description="seconds from receipt until the update must be written")
    memory_limit_bytes: PositiveInt | None = Field(default=None, description="from now on; None: as before")
    score_batches: NonNegativeInt = Field(default=0, description="measure the contribution again on so many at most")


class EvaluateRequest(Value):
    """Evaluate `adapter` at the plan's bits. Answered by `EvaluatedReply`."""

    op: Literal["evaluate"] = "evaluate"
    labels: tuple[str, ...]
    plan: Plan
    adapter: Path
    memory_limit_bytes: PositiveInt | None = Field(default=None, description="from now on; None: as before")


class Opened(Value):
    """The trainer is ready; `context_bytes` is what its process holds before any model is loaded."""

    reply: Literal["opened"] = "opened"
    context_bytes: NonNegativeInt
    versions: dict[str, str] = Field(default_factory=dict)


class Surveyed(Value):
    """Answer to `SurveyRequest`."""

    reply: Literal["surveyed"] = "surveyed"
    shape: ModelShape
    labels: tuple[str, ...] = Field(description="sorted; empty for causal-lm")
    train_examples: PositiveInt
    held_out_examples: PositiveInt
    mean_tokens: PositiveFloat


class ScoredReply(Value):
    """Answer to `ScoreRequest`."""

    reply: Literal["scored"] = "scored"
    contribution: Contribution
    measurements: tuple[StepMeasurement, ...]


class EvaluatedReply(Value):
    """Metrics of the adapter that the request named."""

    reply: Literal["evaluated"] = "evaluated"
    metrics: Metrics


class TrainedReply(Value):
    """Answer to `TrainRequest`: the update is written and synced."""

    reply: Literal["trained"] = "trained"
    examples: PositiveInt
    steps: PositiveInt
    train_loss: float
    measurement: StepMeasurement
    compute_s: NonNegativeFloat
    actions: tuple[str, ...] = ()
    out_of_memory: bool = Field(default=False, description="the plan did not fit, and something smaller was done")
    score_s: NonNegativeFloat = 0.0
    contribution: Contribution | None = None


class ProgressReply(Value):
    """Said at most twice a second while a request is being worked on."""

    reply: Literal["progress"] = "progress"
    stage: Literal["loading", "scoring", "evaluating", "training"]
    done: NonNegativeInt = 0
    of: NonNegativeInt = 0
    loss: float | None = None


class ErrorReply(Value):
    """The request failed; the process is still usable unless it ends after this."""

    reply: Literal["error"] = "error"
    kind: Literal["out-of-memory", "time", "data", "model", "internal"]
    message: str
    peak_bytes: NonNegativeInt = 0


Request = OpenRequest | SurveyRequest | ScoreRequest | TrainRequest | EvaluateRequest
Reply = Opened | Surveyed | ScoredReply | EvaluatedReply | TrainedReply | ProgressReply | ErrorReply

REQUESTS: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="op")])
REPLIES: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="reply")])
