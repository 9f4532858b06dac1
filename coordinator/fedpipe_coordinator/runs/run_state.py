"""What the coordinator knows of a run: phases, agents, and which phase may follow which.

Owns the state's types and its legal transitions. Deciding is `run_machine.py`'s work; nothing here acts.
The state is one frozen value that can be stored as JSON and taken up again after a restart.
"""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt

from fedpipe_coordinator.config import Job
from fedpipe_coordinator.runs.backoff import Backoff
from fedpipe_coordinator.runs.retrying import Retry
from fedpipe_coordinator.runs.steadying import Steady
from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import NoPlan, Plan, StepMeasurement, TransferMeasurement
from fedpipe_profiles.values import Value
from fedpipe_wire.agent_messages import Survey, Trained
from fedpipe_wire.message_values import BlobRef, Metrics

Phase = Literal[
    "surveying",
    "scoring",
    "planning",
    "training",
    "aggregating",
    "evaluating",
    "exporting",
    "done",
    "failed",
    "stopped",
]

OPEN_PHASES: tuple[Phase, ...] = (
    "surveying",
    "scoring",
    "planning",
    "training",
    "aggregating",
    "evaluating",
    "exporting",
)

_ENDS: tuple[Phase, ...] = ("failed", "stopped")
_STEPS: tuple[tuple[Phase, Phase], ...] = (
    ("surveying", "scoring"),
    ("scoring", "planning"),
    ("planning", "training"),
    ("training", "aggregating"),
    ("training", "planning"),  # too few updates came: the round is planned again
    ("aggregating", "planning"),
    ("aggregating", "evaluating"),
    ("evaluating", "exporting"),
    ("exporting", "done"),
)
TRANSITIONS: frozenset[tuple[Phase, Phase]] = frozenset(
    (*_STEPS, *((phase, end) for phase in OPEN_PHASES for end in _ENDS))
)

Standing = Literal[
    "asked",  # has a task and has not answered it
    "answered",  # surveyed, scored or evaluated, as the phase asks
    "offered",  # trained, and its update is being fetched
    "accepted",  # its update is stored
    "idle",  # no plan fits it in this round, or it was not drawn
    "refused",
    "failed",
    "gone",  # offline for longer than the grace
    "late",  # in records only: its update came after the round was closed
]
SETTLED: frozenset[Standing] = frozenset(("answered", "accepted", "idle", "refused", "failed", "gone"))

_MAY_FOLLOW: dict[Standing | None, tuple[Standing, ...]] = {
    None: ("asked", "idle"),
    "asked": ("answered", "offered", "idle", "refused", "failed", "gone"),
    "answered": ("asked", "idle", "refused", "failed"),
    "offered": ("accepted", "refused", "failed", "gone"),
    "accepted": ("asked", "idle", "failed", "gone"),
    "idle": ("asked", "answered", "refused", "failed", "gone"),
    "refused": ("asked", "answered", "idle", "gone"),
    "failed": ("asked", "answered", "idle", "refused", "gone"),
    "gone": ("asked", "answered", "offered", "accepted", "idle", "refused", "failed"),
}
STANDINGS: frozenset[tuple[Standing | None, Standing]] = frozenset(
    (before, after) for before, all_after in _MAY_FOLLOW.items() for after in all_after
)
"""Which standing of an agent may follow which; None is before it is known. Each may also stay."""


class IllegalTransitionError(RuntimeError):
    """A phase or standing was to follow one that it may not follow: a defect in the machine."""


class LateUpdate(Value):
    """An update of a round that was closed without it: it counts in the next aggregation, if it is stored by then.

    `base` is the global adapter that it was trained from.
    """

    round: PositiveInt
    plan: Plan
    base: BlobRef
    trained: Trained
    stored: bool = False


class LateShare(Value):
    """A late update that a round's aggregation used; `weight` multiplied its examples."""

    agent: str
    round: PositiveInt
    examples: PositiveInt
    weight: float
    sha256: str


class Member(Value):
    """One agent, as this run sees it."""

    name: str
    session: str = ""
    online: bool = True
    offline_since: float | None = None
    standing: Standing = "asked"
    note: str = ""
    survey: Survey | None = None
    contribution: Contribution | None = None
    refreshed: NonNegativeInt = Field(default=0, description="the last round whose refreshed contribution was judged")
    refused_refreshes: NonNegativeInt = Field(default=0, description="how many of those could not be used")
    measurements: tuple[StepMeasurement, ...] = ()
    transfers: tuple[TransferMeasurement, ...] = Field(default=(), description="of its last rounds, oldest first")
    memory_cap_bytes: int | None = None
    backoff: Backoff = Backoff()
    steady: Steady = Steady()
    retry: Retry = Retry()
    replanned: str = Field(default="", description="how its plan of this round differs from the one before, and why")
    plan: Plan | None = None
    no_plan: NoPlan | None = None
    evaluated: Metrics | None = None
    trained: Trained | None = None
    taken: tuple[str, ...] = ()
    offers: dict[str, str] = Field(default={}, description="of its last updates, the id of the message with each")
    replaced: tuple[Trained, ...] = Field(
        default=(), description="offered in this round before `trained`, not answered"
    )
    round_s: float | None = None
    delivered: NonNegativeInt = Field(default=0, description="the last round of which an update is stored")
    former_plan: Plan | None = Field(default=None, description="of the round before, while its update is still out")
    late: tuple[LateUpdate, ...] = ()
    fetch_at: float | None = Field(default=None, description="its transfer died, and is tried again then")

    def may_become(self, after: "Member") -> bool:
        """Whether `STANDINGS` lets this entry be replaced by another."""
        return self.standing == after.standing or (self.standing, after.standing) in STANDINGS


class RoundResult(Value):
    """A finished round before its metric is known."""

    round: NonNegativeInt
    wall_s: float
    deadline_s: float
    truncation_tail: float
    members: tuple[Member, ...]
    late: tuple[LateShare, ...] = ()


class RunState(Value):
    """A run, whole."""

    run: str
    job: Job
    epoch: NonNegativeInt = Field(default=0, description="of the coordinator's start that works on it, told with tasks")
    ahead: NonNegativeInt = Field(default=0, description="the latest round beyond its own that an agent spoke of")
    phase: Phase
    round: NonNegativeInt = 0
    members: dict[str, Member]
    labels: tuple[str, ...] = ()
    shape: ModelShape | None = None
    curves: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    curves_moved: bool = Field(default=False, description="contributions were refreshed since the curves were averaged")
    adapter: BlobRef | None = None
    former: BlobRef | None = Field(default=None, description="the adapter that the round before was trained from")
    deadline_s: float = 0.0
    planning_asked: bool = False
    phase_began: float = 0.0
    round_began: float = 0.0
    resumed_at: float | None = Field(default=None, description="when this process took the run up from an earlier one")
    missed: NonNegativeInt = Field(default=0, description="attempts in a row at this round that brought too little")
    missed_since: float | None = Field(default=None, description="when the first of them was given up")
    pause_s: float = Field(default=0.0, description="the next attempt is not planned before this much of the phase")
    work_at: float | None = Field(default=None, description="the phase's work was put off, and is asked again then")
    missing: tuple[tuple[str, str], ...] = Field(
        default=(), description="agent and name of accepted updates that this disk has lost, and that are asked again"
    )
    pending: RoundResult | None = None
    best_loss: float | None = None
    stale_rounds: NonNegativeInt = 0
    initial_metric: Metrics | None = None
    final_metric: Metrics | None = None
    folder: str | None = None
    note: str = ""
    failure: Literal["", "failed", "not-enough-agents"] = ""

    @property
    def open(self) -> bool:
        """Whether the run goes on."""
        return self.phase in OPEN_PHASES

    @property
    def closed_round(self) -> int:
        """The last round that waits for no update any more; 0 before the first is closed."""
        return self.round if self.phase in ("aggregating", "evaluating", "exporting") else max(0, self.round - 1)

    @property
    def is_last_round(self) -> bool:
        """Whether no round follows this one, once it is closed."""
        patience = self.job.rounds.patience
        return self.round >= self.job.rounds.number or (patience is not None and self.stale_rounds >= patience)

    def to(self, phase: Phase, now: float) -> Self:
        """The same run in another phase.

        Raises:
            IllegalTransitionError: if `TRANSITIONS` has no such step.
        """
        if (self.phase, phase) not in TRANSITIONS:
            raise IllegalTransitionError(f"run {self.run}: {phase!r} may not follow {self.phase!r}")
        return self.model_copy(update={"phase": phase, "phase_began": now})

    def with_member(self, member: Member) -> Self:
        """The same run with one agent's entry replaced or added."""
        return self.model_copy(update={"members": {**self.members, member.name: member}})
