"""The two base classes of every typed value, what travels and what a person writes, and the bounds of its numbers.

Never holds a concrete message or setting; those live with their subject. Every number that comes from another machine
has a bound far beyond what any machine or model has, and low enough that sums and products of some thousands of them
stay finite: who sends more is refused where the message is read, before anybody counts with it.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_COUNT = 1 << 53
"""The whole numbers up to here are exact in a float."""
MAX_SIZE = 1 << 31
MAX_BATCH = 1 << 16
"""Examples of one step; some thousands of batches are drawn at a time, and must fit a list."""
MAX_LOSS = 1e9
MAX_SECONDS = 1e9
MIN_RATE = 1.0
MAX_RATE = 1e24
MAX_GAIN = 1e30
MIN_STEP_S = 1e-9

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
"""How many of something there are: examples, steps, parameters."""
PositiveCount = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Bytes = Annotated[int, Field(ge=0, le=MAX_COUNT)]
PositiveBytes = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Size = Annotated[int, Field(ge=0, le=MAX_SIZE)]
"""One dimension, or an index in it: a width, a rank, a length in tokens."""
PositiveSize = Annotated[int, Field(gt=0, le=MAX_SIZE)]
BatchSize = Annotated[int, Field(gt=0, le=MAX_BATCH)]
Seconds = Annotated[float, Field(ge=0.0, le=MAX_SECONDS)]
PositiveSeconds = Annotated[float, Field(gt=0.0, le=MAX_SECONDS)]
MeasuredSeconds = Annotated[float, Field(ge=MIN_STEP_S, le=MAX_SECONDS)]
"""A time that somebody divides by."""
Rate = Annotated[float, Field(ge=MIN_RATE, le=MAX_RATE)]
"""Bits, bytes or operations per second; less than one of them is no machine."""
Loss = Annotated[float, Field(ge=-MAX_LOSS, le=MAX_LOSS)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Gain = Annotated[float, Field(ge=0.0, le=MAX_GAIN)]
"""A point of a contribution curve."""
Factor = Annotated[float, Field(gt=0.0, le=MAX_LOSS)]
"""A constant that something is multiplied by, such as a learning rate."""


class Value(BaseModel):
    """A frozen value that travels between machines.

    Unknown fields are ignored, so that a newer minor version may add some; NaN and infinities are refused, because no
    measured quantity has them and JSON cannot carry them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Settings(BaseModel):
    """A frozen group of settings that a person writes in a file.

    Unknown keys are errors: a misspelt key must never be silently ignored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
