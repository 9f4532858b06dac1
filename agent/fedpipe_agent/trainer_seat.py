"""The place of the one trainer process: a new one sits down for every run, and after one that died.

Owns which process is meant by what is heard: what an ended one said before its end may still lie in the queue.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fedpipe_agent.agent_events import TrainerEnded, TrainerReplied
from fedpipe_agent.errors import StateFolderError
from fedpipe_agent.trainer_process import TrainerProcess
from fedpipe_agent.trainer_protocol import ErrorReply, OpenRequest, Request, ScoredReply, Surveyed, TrainedReply


@dataclass(frozen=True, slots=True)
class FromTrainer:
    """What one of the trainer processes, counted from 1, says."""

    number: int
    event: TrainerReplied | TrainerEnded


class TrainerSeat:
    """Used by the daemon's thread only.

    Args:
        log: where trainers write to stderr.
        post: takes what a trainer says, from another thread.
        oom_kills: how many processes the kernel has killed for memory so far.
    """

    def __init__(self, log: Path, post: Callable[[FromTrainer], None], oom_kills: Callable[[], int]) -> None:
        self._log, self._post, self._oom_kills = log, post, oom_kills
        self._trainer: TrainerProcess | None = None
        self._number = 0
        self._kills = 0

    @property
    def taken(self) -> bool:
        """Whether a trainer sits here."""
        return self._trainer is not None

    @property
    def pid(self) -> int | None:
        """The trainer's process, if one sits here."""
        return None if self._trainer is None else self._trainer.pid

    def ask(self, request: Request) -> None:
        """Send a request; the first one of a run starts a process. Nothing happens where there is none.

        Raises:
            StateFolderError: if none can be started.
        """
        if isinstance(request, OpenRequest):
            self.end()
            self._number += 1
            self._kills = self._oom_kills()
            post = partial(self._heard, self._number)
            try:
                self._trainer = TrainerProcess(self._log, request.threads, request.memory_limit_bytes, post)
            except OSError as error:
                raise StateFolderError(
                    f"no trainer can be started with its log in {self._log.parent}: {error.strerror}. "
                    "Free space or memory, or make the folder writable"
                ) from error
        if self._trainer is not None:
            self._trainer.ask(request)

    def heard(self, item: FromTrainer) -> TrainerReplied | TrainerEnded | None:
        """What was posted, if the process is still meant; for a killed one, whether the kernel did it for memory."""
        if item.number != self._number or self._trainer is None:
            return None
        if not isinstance(item.event, TrainerEnded):
            return item.event
        killed = item.event.returncode == -signal.SIGKILL
        return replace(item.event, out_of_memory=killed and self._oom_kills() > self._kills)

    def end(self) -> None:
        """End the process, if there is one."""
        if self._trainer is not None:
            self._trainer.end()
            self._trainer = None

    def _heard(self, number: int, event: TrainerReplied | TrainerEnded) -> None:
        self._post(FromTrainer(number, event))


def ends_work(event: TrainerReplied | TrainerEnded) -> bool:
    """Whether a trainer has nothing in its hands after this."""
    return isinstance(event, TrainerEnded) or isinstance(
        event.reply, Surveyed | ScoredReply | TrainedReply | ErrorReply
    )
