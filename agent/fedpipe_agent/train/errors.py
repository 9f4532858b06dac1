"""What can go wrong in the trainer, each with the kind that the daemon acts upon."""

from typing import ClassVar, Literal

Kind = Literal["out-of-memory", "time", "data", "model", "internal"]


class TrainerError(Exception):
    """Base of the trainer's errors; the message says what happened, both values and what to do."""

    kind: ClassVar[Kind] = "internal"


class ModelError(TrainerError):
    """The base model or an adapter cannot be used, or its numbers are not finite."""

    kind = "model"


class DatasetError(TrainerError):
    """The dataset does not suit the job."""

    kind = "data"


class OutOfTimeError(TrainerError):
    """The budget is too small for even one step."""

    kind = "time"


class MemoryExceededError(TrainerError):
    """The work does not fit the memory limit, whatever was tried. `peak_bytes` is what was reached."""

    kind = "out-of-memory"

    def __init__(self, message: str, peak_bytes: int = 0) -> None:
        super().__init__(message)
        self.peak_bytes = peak_bytes
