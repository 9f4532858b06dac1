"""What the coordinator says to agents. How it is encoded, and on which channel it goes, is `messages.py`'s matter."""

from typing import Literal

from pydantic import Field

from fedpipe_profiles.plan import NoPlan, Plan
from fedpipe_profiles.values import Count, PositiveCount, PositiveSize, Seconds, Size, Value
from fedpipe_wire.message_values import BlobRef, Epoch, JobTerms, RunId, Sha256, Text


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
    score_batches: Count = Field(
        default=0, description="after training, measure the contribution again on so many batches at most; 0: do not"
    )


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
    """The coordinator has taken the agent's update, durably; or will never take it, and says why.

    An update that was taken may still be refused, by a second message, when its round closes.
    """

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
Task = SurveyTask | ScoreTask | TrainTask | EvaluateTask | IdleTask | EndTask
