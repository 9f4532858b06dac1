"""A plan: what one agent does in a round, and why.

Owns the types. Making a plan is `planner.py`'s work; checking it against the owner's limits is the agent's.
"""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from fedpipe_profiles.device import Bits
from fedpipe_profiles.values import Value

Bound = Literal["memory", "time", "link", "nothing"]
"""What kept the plan from being larger; "nothing" when the device trains all examples at every weight's full rank."""


class StepMeasurement(Value):
    """Raw figures of steps that a device really took; the memory and time models are fitted to these."""

    bits: Bits
    batch_size: PositiveInt
    sequence_length: PositiveInt = Field(description="padded tokens per example, mean over the steps")
    longest_sequence: PositiveInt | None = Field(
        default=None, description="padded tokens per example of the longest batch, where the peak was reached"
    )
    gradient_checkpointing: bool
    trainable_parameters: NonNegativeInt
    side_parameters: NonNegativeInt = Field(description="frozen adapter parameters on the side path")
    steps: PositiveInt
    step_s: PositiveFloat = Field(description="median seconds of one step, forward, backward and optimizer")
    evaluation_example_s: PositiveFloat | None = Field(default=None, description="seconds per held-out example")
    load_s: NonNegativeFloat = Field(default=0.0, description="seconds to load the base at these bits")
    peak_bytes: PositiveInt = Field(description="peak of the training memory, runtime context not counted")
    context_bytes: NonNegativeInt = Field(description="what the process held before the base was loaded")


class Prediction(Value):
    """What the planner expects of a plan; the measured counterparts come back in the report."""

    peak_bytes: PositiveInt = Field(description="training memory without the runtime context")
    round_s: PositiveFloat
    compute_s: NonNegativeFloat
    up_bytes: NonNegativeInt
    down_bytes: NonNegativeInt


class Plan(Value):
    """One agent's work in one round."""

    agent: str = Field(max_length=64)
    round: PositiveInt
    bits: Bits
    batch_size: PositiveInt
    gradient_checkpointing: bool
    sequence_length: PositiveInt
    learning_rate: PositiveFloat
    seed: NonNegativeInt
    examples: PositiveInt = Field(description="examples to train unless time runs out first")
    deadline_s: PositiveFloat = Field(description="seconds from receipt of the task to the update's acknowledgement")
    scale: PositiveFloat = Field(description="the constant s of s * B @ A, alike for all weights and ranks")
    global_rank: PositiveInt
    components: dict[str, tuple[NonNegativeInt, ...]] = Field(
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
