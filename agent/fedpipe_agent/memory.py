"""What an agent must still know after it was killed: one frozen value, and the stages that its task goes through.

Owns the value's form and the table of legal transitions. Deciding is `machine.py`'s work, keeping it `journal.py`'s.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from fedpipe_agent.trainer_protocol import TrainedReply
from fedpipe_profiles.values import Count, Value
from fedpipe_wire.agent_messages import Evaluated, Failed, Scored, Survey, Trained
from fedpipe_wire.coordinator_messages import Task
from fedpipe_wire.moments import Moment, rebased

Stage = Literal[
    "idle",  # no task in hand
    "fetching",  # the global adapter is on its way
    "working",  # the trainer has the task
    "shelving",  # trained; the update is on its way into the outbox
    "offered",  # the update is in the outbox, and the coordinator was told
    "finished",  # the task has its result, and nothing of it is awaited any more
]
TRANSITIONS: frozenset[tuple[Stage, Stage]] = frozenset(
    {
        ("idle", "fetching"),
        ("idle", "working"),  # surveys and scores need no adapter
        ("fetching", "working"),
        ("fetching", "finished"),  # it did not come, or too late
        ("fetching", "idle"),
        ("working", "shelving"),
        ("working", "finished"),
        ("working", "idle"),
        ("shelving", "offered"),
        ("shelving", "finished"),  # the disk does not take it
        ("shelving", "idle"),
        ("offered", "finished"),  # acknowledged
        ("offered", "idle"),  # declined, or overtaken by a newer task
        ("finished", "idle"),
    }
)
"""A task that ends early, for whatever reason, goes through idle."""

Result = Survey | Scored | Evaluated | Trained | Failed


class IllegalTransitionError(RuntimeError):
    """A stage was to follow one that it may not follow: a defect in the machine."""


class Memory(Value):
    """What survives; in a new state folder, nothing has happened yet."""

    stage: Stage = "idle"
    task: Annotated[Task, Field(discriminator="type")] | None = Field(
        default=None, description="the newest task that was taken on; its results, once known, are in `done`"
    )
    began: float = Field(default=0.0, description="when the task came; monotonic seconds")
    deaths: NonNegativeInt = Field(default=0, description="how many trainers died with this task in their hands")
    trained: TrainedReply | None = None
    download_s: NonNegativeFloat | None = None
    newest: tuple[str, int, int, int] | None = Field(
        default=None, description="run, stage, round and attempt of the newest task that came, refused ones too"
    )
    epoch: Count = Field(default=0, description="the newest start of the coordinator that gave a task")
    ended: tuple[str, ...] = Field(default=(), description="the runs that ended last; their late tasks are not begun")
    done: dict[str, tuple[Annotated[Result, Field(discriminator="type")], ...]] = Field(
        default_factory=dict, description="the results of tasks already worked on, by task key"
    )
    outbox: tuple[Trained, ...] = Field(default=(), description="updates that the coordinator has not acknowledged")

    def to(self, stage: Stage) -> Self:
        """The same memory in another stage.

        Raises:
            IllegalTransitionError: if `TRANSITIONS` has no such step.
        """
        if (self.stage, stage) not in TRANSITIONS:
            raise IllegalTransitionError(f"{stage!r} may not follow {self.stage!r} (task {self.task!r})"[:500])
        return self.model_copy(update={"stage": stage})

    def rebased(self, then: Moment, now: Moment) -> Self:
        """The same memory, written down at `then`, in the monotonic seconds of `now`."""
        return self.model_copy(update={"began": rebased(self.began, then, now)})
