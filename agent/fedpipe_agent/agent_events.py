"""What can happen to an agent (events) and what its machine may ask for (actions).

Owns the words between the pure machine and the daemon that acts.
"""

from dataclasses import dataclass
from pathlib import Path

from fedpipe_agent.trainer_protocol import Reply, Request
from fedpipe_wire.messages import Ack, AgentMessage, BlobRef, Task

# --- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskCame:
    """The coordinator wants something done."""

    task: Task


@dataclass(frozen=True, slots=True)
class AdapterReady:
    """The global adapter is complete on disk."""

    ref: BlobRef
    path: Path


@dataclass(frozen=True, slots=True)
class TransferFailed:
    """A blob could not be fetched, or the update could not be sent."""

    sha256: str
    reason: str


@dataclass(frozen=True, slots=True)
class TrainerReplied:
    """The trainer process answered."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class TrainerEnded:
    """The trainer process is gone without being asked to go. `returncode` is negative for a signal."""

    returncode: int


@dataclass(frozen=True, slots=True)
class UpdateShelved:
    """The update lies in the outbox under its content's name."""

    ref: BlobRef


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The coordinator has taken the update, or never will."""

    ack: Ack


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


AgentEvent = (
    TaskCame | AdapterReady | TransferFailed | TrainerReplied | TrainerEnded | UpdateShelved | Acknowledged | Ticked
)

# --- actions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Say:
    """Publish a message to the coordinator."""

    message: AgentMessage


@dataclass(frozen=True, slots=True)
class FetchAdapter:
    """Fetch the global adapter, unless it is here already."""

    ref: BlobRef


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request to the trainer; the first request of a run starts its process."""

    request: Request


@dataclass(frozen=True, slots=True)
class ShelveUpdate:
    """Put the written update into the outbox."""

    path: Path


@dataclass(frozen=True, slots=True)
class DropUpdate:
    """The update is settled: take it out of the outbox."""

    sha256: str


@dataclass(frozen=True, slots=True)
class StopTrainer:
    """End the trainer process."""

    reason: str


@dataclass(frozen=True, slots=True)
class Log:
    """One line for the owner of this machine."""

    text: str


AgentAction = Say | FetchAdapter | Ask | ShelveUpdate | DropUpdate | StopTrainer | Log
