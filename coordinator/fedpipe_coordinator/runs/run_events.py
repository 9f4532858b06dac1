"""What can happen to a run (events) and what the machine may ask for (actions).

Owns the words between the pure machine and the service that acts. Every event names what happened, never what to do.
"""

from dataclasses import dataclass, field
from typing import Any

from fedpipe_coordinator.runs.replanning import Recalled
from fedpipe_coordinator.runs.run_state import RoundResult
from fedpipe_profiles.plan import NoPlan, Plan
from fedpipe_wire.agent_messages import Ahead, Evaluated, Failed, Refused, Scored, Survey, Trained
from fedpipe_wire.coordinator_messages import Ack, Task
from fedpipe_wire.message_values import BlobRef, Metrics

Report = Survey | Scored | Evaluated | Trained | Refused | Failed | Ahead
"""What an agent says of a run."""

# --- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class AgentOnline:
    """An agent that has the job's dataset is there, for the first time or again (`session` differs then)."""

    agent: str
    session: str


@dataclass(frozen=True, slots=True)
class AgentOffline:
    """The broker says that an agent's session is dead."""

    agent: str


@dataclass(frozen=True, slots=True)
class Heard:
    """An agent reported; `message_id` is what the envelope names its message by."""

    agent: str
    message: Report
    message_id: str = ""


@dataclass(frozen=True, slots=True)
class Unfit:
    """What an agent said made this program fail: the run must go on without it."""

    agent: str
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateStored:
    """An agent's update is complete, checked and durable."""

    agent: str
    round: int
    sha256: str


@dataclass(frozen=True, slots=True)
class UpdateRejected:
    """An agent's update will never be taken: it failed a check."""

    agent: str
    round: int
    sha256: str
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateDelayed:
    """An agent's update did not arrive this time, by no fault of what is in it; it may be fetched again."""

    agent: str
    round: int
    sha256: str
    reason: str


@dataclass(frozen=True, slots=True)
class Planned:
    """The plans of a round are made and the global adapter is ready to be sent.

    `recalled` is what the next planning must know of this one.
    """

    round: int
    deadline_s: float
    plans: dict[str, Plan]
    none: dict[str, NoPlan]
    adapter: BlobRef
    recalled: dict[str, Recalled] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The updates of a round have become the next global adapter.

    `said` is what there is to say of how, for people; `treatment` the same for the audit record.
    """

    round: int
    adapter: BlobRef
    truncation_tail: float
    said: str = ""
    treatment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UpdatesRefused:
    """Updates of a round that were accepted moved a weight too far, as (agent, blob name, reason)."""

    round: int
    updates: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Damaged:
    """Updates of a round that were accepted are not here any more, as (agent, blob name).

    `useless` are late ones that are of no use, for the adapter that they were trained from is not here.
    """

    round: int
    updates: tuple[tuple[str, str], ...]
    useless: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterChecked:
    """A global adapter of an earlier process is whole, and may be sent to all."""

    ref: BlobRef
    round: int


@dataclass(frozen=True, slots=True)
class Exported:
    """The final adapter lies where people can use it; `files` are the hashes of what was written, by name."""

    paths: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkFailed:
    """Planning, aggregating or exporting could not be done."""

    work: str
    reason: str


@dataclass(frozen=True, slots=True)
class WorkDelayed:
    """Planning, aggregating or exporting cannot be done now, for want of disk space; later it may."""

    work: str
    reason: str


@dataclass(frozen=True, slots=True)
class StopAsked:
    """A person asked for the run to end."""


RunEvent = (
    Ticked
    | AgentOnline
    | AgentOffline
    | Heard
    | Unfit
    | UpdateStored
    | UpdateRejected
    | UpdateDelayed
    | Planned
    | Aggregated
    | UpdatesRefused
    | Damaged
    | AdapterChecked
    | Exported
    | WorkFailed
    | WorkDelayed
    | StopAsked
)

# --- actions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to one agent."""

    agent: str
    message: Task | Ack


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch an agent's update."""

    agent: str
    round: int
    ref: BlobRef


@dataclass(frozen=True, slots=True)
class StopFetch:
    """Fetch this update no more: another one took its place, or its round is over."""

    agent: str
    sha256: str


@dataclass(frozen=True, slots=True)
class BroadcastAdapter:
    """Publish the global adapter once for all agents."""

    ref: BlobRef
    round: int


@dataclass(frozen=True, slots=True)
class MakePlans:
    """Plan a round for these agents; make the initial adapter if there is none."""

    round: int
    agents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Aggregate the accepted updates of a round, and those of the round before that came late: agent to blob name."""

    round: int
    updates: dict[str, str]
    late: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Export:
    """Write the final adapter out, and the merged model if the job asks for it."""


@dataclass(frozen=True, slots=True)
class SaveRound:
    """A round is complete with its metric: write its record."""

    result: RoundResult
    metric: Metrics | None


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person or an auditor wants to know. `kind` is stable, `text` is for people."""

    kind: str
    text: str
    agent: str | None = None
    round: int = 0
    data: dict[str, Any] = field(default_factory=dict)


RunAction = Send | Fetch | StopFetch | BroadcastAdapter | MakePlans | Aggregate | Export | SaveRound | Note
