"""The two base classes of every typed value: what travels, and what a person writes.

Never holds a concrete message or setting; those live with their subject.
"""

from pydantic import BaseModel, ConfigDict


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
