"""What the coordinator knows of a run: phases, agents, and which phase may follow which.

Owns the state's types and its legal transitions. Deciding is `run_machine.py`'s work; nothing here acts.
The state is one frozen value that can be stored as JSON and taken up again after a restart.
"""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt

from fedpipe_coordinator.config import Job
from fedpipe_profiles.contribution import Contribution
from fedpipe_profiles.model import ModelShape
from fedpipe_profiles.plan import NoPlan, Plan, StepMeasurement
from fedpipe_profiles.values import Value
from fedpipe_wire.messages import BlobRef, Metrics, Survey, Trained

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
]
SETTLED: frozenset[Standing] = frozenset(("answered", "accepted", "idle", "refused", "failed", "gone"))


class IllegalTransitionError(RuntimeError):
    """A phase was to follow one that it may not follow: a defect in the machine."""


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
    measurements: tuple[StepMeasurement, ...] = ()
    memory_cap_bytes: int | None = None
    plan: Plan | None = None
    no_plan: NoPlan | None = None
    evaluated: Metrics | None = None
    trained: Trained | None = None
    taken: tuple[str, ...] = ()
    round_s: float | None = None


class RoundResult(Value):
    """A finished round before its metric is known."""

    round: NonNegativeInt
    wall_s: float
    deadline_s: float
    truncation_tail: float
    members: tuple[Member, ...]


class RunState(Value):
    """A run, whole."""

    run: str
    job: Job
    phase: Phase
    round: NonNegativeInt = 0
    members: dict[str, Member]
    labels: tuple[str, ...] = ()
    shape: ModelShape | None = None
    curves: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    adapter: BlobRef | None = None
    deadline_s: float = 0.0
    planning_asked: bool = False
    phase_began: float = 0.0
    round_began: float = 0.0
    began: float = 0.0
    missed: NonNegativeInt = 0
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
