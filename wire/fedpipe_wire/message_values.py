"""What messages are made of: names, bounded texts, references to blobs, and values that several messages carry."""

from typing import Annotated, Literal

from pydantic import Field

from fedpipe_profiles.contribution import ContributionMethod
from fedpipe_profiles.values import (
    MAX_COUNT,
    BatchSize,
    Count,
    Loss,
    PositiveBytes,
    PositiveCount,
    PositiveSize,
    Share,
    Value,
)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RunId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")]
Text = Annotated[str, Field(max_length=4000)]
Epoch = Annotated[
    int,
    Field(ge=0, le=MAX_COUNT, description="which start of the coordinator; in a newer one, rounds may go back"),
]


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
    batch_sizes: tuple[BatchSize, ...] = Field(min_length=1, max_length=64)
    contribution: ContributionMethod = Field(
        default="gradient-sketch", description="how the contribution of the weights is measured"
    )
    model_sha256: Sha256 | None = Field(default=None, description="fingerprint that the base model must have")


class Metrics(Value):
    """Means over one agent's held-out part."""

    loss: Loss = Field(description="nats per target token (causal-lm) or per example (classification)")
    accuracy: Share | None = None
    examples: PositiveCount
