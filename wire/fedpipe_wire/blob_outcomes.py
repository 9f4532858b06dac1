"""What the blob pumps tell their owner.

Owns the words only; `blob_sender.py` and `blob_receiver.py` say them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Clock = Callable[[], float]
"""Monotonic seconds."""


@dataclass(frozen=True, slots=True)
class BlobWanted:
    """Send this to the source: `BlobRequest` to an agent, `BlobMissing` to the coordinator (source None)."""

    source: str | None
    sha256: str
    bitmap: str


@dataclass(frozen=True, slots=True)
class BlobArrived:
    """The blob is whole, verified and durable."""

    source: str | None
    sha256: str
    path: Path


@dataclass(frozen=True, slots=True)
class BlobFailed:
    """The blob will not come, or not go, without being asked for again; what has come stays on disk.

    `hopeless`: asking again would not help, for the source says of it what cannot be. `disk`: it is this machine's
    disk that does not take it. `spoilt`: what came were other bytes than the name says, each time.
    """

    source: str | None
    sha256: str
    reason: str
    hopeless: bool = False
    disk: bool = False
    spoilt: bool = False
