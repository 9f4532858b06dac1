"""What can happen to an agent (events) and what its machine may ask for (actions).

Owns the words between the pure machine and the daemon that acts.
"""

from dataclasses import dataclass
from pathlib import Path

from fedpipe_agent.trainer_protocol import Reply, Request
from fedpipe_wire.agent_messages import AgentMessage
from fedpipe_wire.coordinator_messages import Ack, Task
from fedpipe_wire.message_values import BlobRef

# --- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The coordinator has let this session in: it hears what is said from now on."""


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
    """An adapter cannot be fetched."""

    sha256: str
    reason: str


@dataclass(frozen=True, slots=True)
class DiskRefused:
    """This machine's disk does not take an adapter now, or has not got it any more."""

    sha256: str
    reason: str


@dataclass(frozen=True, slots=True)
class TrainerReplied:
    """The trainer process answered."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class TrainerEnded:
    """The trainer process is gone without being asked to go.

    `returncode` is negative for a signal; `out_of_memory`: the kernel says that it killed for memory meanwhile.
    """

    returncode: int
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class UpdateNamed:
    """The written update's content has been read, and so its name is known."""

    ref: BlobRef


@dataclass(frozen=True, slots=True)
class UpdateShelved:
    """The update lies in the outbox under its content's name, ready to be sent."""

    ref: BlobRef


@dataclass(frozen=True, slots=True)
class NotShelved:
    """An update cannot be named (`sha256` is None), kept or sent."""

    sha256: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The coordinator has taken the update, or never will."""

    ack: Ack


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


AgentEvent = (
    Welcomed
    | TaskCame
    | AdapterReady
    | TransferFailed
    | DiskRefused
    | TrainerReplied
    | TrainerEnded
    | UpdateNamed
    | UpdateShelved
    | NotShelved
    | Acknowledged
    | Ticked
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
class NameUpdate:
    """Name the written update by its content; the answer is `UpdateNamed` or `NotShelved`."""

    path: Path


@dataclass(frozen=True, slots=True)
class ShelveUpdate:
    """Put the written update into the outbox, unless it is there; the answer is `UpdateShelved` or `NotShelved`."""

    path: Path
    ref: BlobRef


@dataclass(frozen=True, slots=True)
class DropUpdate:
    """The update is settled: take it out of the outbox."""

    sha256: str


@dataclass(frozen=True, slots=True)
class Tidy:
    """Remove the files that neither the task in hand nor the outbox needs."""


@dataclass(frozen=True, slots=True)
class StopTrainer:
    """End the trainer process."""

    reason: str


@dataclass(frozen=True, slots=True)
class Log:
    """One line for the owner of this machine."""

    text: str


AgentAction = Say | FetchAdapter | Ask | NameUpdate | ShelveUpdate | DropUpdate | Tidy | StopTrainer | Log
