"""A plan: what one agent does in a round, and why.

Owns the types. Making a plan is `planner.py`'s work; checking it against the owner's limits is the agent's.
"""

from typing import Literal

from pydantic import Field

from fedpipe_profiles.device import Bits
from fedpipe_profiles.values import (
    BatchSize,
    Bytes,
    Count,
    Factor,
    MeasuredSeconds,
    PositiveBytes,
    PositiveCount,
    PositiveSeconds,
    PositiveSize,
    Rate,
    Seconds,
    Size,
    Value,
)

EVALUATION_PART = 0.5
"""Share of the time left after loading that a round's evaluation may take; with what is over it trains."""

Bound = Literal["memory", "time", "link", "nothing"]
"""What kept the plan from being larger; "nothing" when the device trains all examples at every weight's full rank."""


class StepMeasurement(Value):
    """Raw figures of steps that a device really took; the memory and time models are fitted to these."""

    bits: Bits
    batch_size: BatchSize
    sequence_length: PositiveSize = Field(description="padded tokens per example, mean over the steps")
    longest_sequence: PositiveSize | None = Field(
        default=None, description="padded tokens per example of the longest batch, where the peak was reached"
    )
    gradient_checkpointing: bool
    trainable_parameters: Count
    side_parameters: Count = Field(description="frozen adapter parameters on the side path")
    adapter_paths: Count | None = Field(
        default=None, description="adapters, up to two on a weight: trained and side path"
    )
    steps: PositiveCount
    step_s: MeasuredSeconds = Field(
        description="seconds of one step, its batch made, forward, backward and optimizer: mean over the steps but the "
        "first, a stall counted as three times a usual step"
    )
    evaluation_example_s: MeasuredSeconds | None = Field(default=None, description="seconds per held-out example")
    load_s: Seconds = Field(default=0.0, description="seconds to load the base at these bits")
    other_s: Seconds | None = Field(
        default=None, description="seconds of a round's compute beside loading, evaluating and its usual steps"
    )
    peak_bytes: PositiveBytes = Field(description="peak of the training memory, runtime context not counted")
    context_bytes: Bytes = Field(description="what the process held before the base was loaded")


class TransferMeasurement(Value):
    """What a round's transfers really took."""

    down_bytes: Bytes
    down_s: Seconds = Field(description="from the task's receipt to the adapter, on the agent's clock")
    up_bytes: Bytes
    up_s: Seconds = Field(description="what is left of the round, on the coordinator's clock: messages and the upload")
    downlink_bps: Rate | None = Field(default=None, description="of the link as its profile said it then, if known")
    uplink_bps: Rate | None = None


class Prediction(Value):
    """What the planner expects of a plan; the measured counterparts come back in the report."""

    peak_bytes: PositiveBytes = Field(description="training memory without the runtime context")
    round_s: PositiveSeconds
    compute_s: Seconds
    step_s: Seconds = Field(default=0.0, description="of one step; 0 where an older planner did not say")
    up_s: Seconds = Field(default=0.0, description="from the end of training to the update's acknowledgement")
    up_bytes: Bytes
    down_bytes: Bytes


class Plan(Value):
    """One agent's work in one round."""

    agent: str = Field(max_length=64)
    round: PositiveSize
    bits: Bits
    batch_size: BatchSize
    gradient_checkpointing: bool
    sequence_length: PositiveSize
    learning_rate: Factor
    seed: Count
    examples: PositiveCount = Field(description="examples to train unless time runs out first")
    deadline_s: PositiveSeconds = Field(description="seconds from receipt of the task to the update's acknowledgement")
    scale: Factor = Field(description="the constant s of s * B @ A, alike for all weights and ranks")
    global_rank: PositiveSize
    components: dict[str, tuple[Size, ...]] = Field(
        description="per weight, which of the global adapter's components this agent trains; sorted, below global_rank"
    )
    predicted: Prediction
    bound: Bound
    reason: str = Field(max_length=500, description="what bound the plan, in words")

    @property
    def ranks(self) -> dict[str, int]:
        """Trained rank of every weight that this plan trains."""
        return {name: len(indices) for name, indices in self.components.items() if indices}


class NoPlan(Value):
    """Told to a device that can carry nothing."""

    agent: str = Field(max_length=64)
    bound: Bound
    reason: str = Field(max_length=500, description="what is missing and the smallest thing that would fit")
