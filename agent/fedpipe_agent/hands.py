"""Doing what the agent's machine asks for: speak, receive, train, keep and remove.

Owns no decision: each action is done when it is asked for, and what comes of it at once is handed back as an event.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fedpipe_agent import agent_events as ev
from fedpipe_agent.memory import Memory
from fedpipe_agent.mouth import Mouth
from fedpipe_agent.shelf import Shelf
from fedpipe_agent.trainer_seat import TrainerSeat
from fedpipe_wire.blob_bits import BlobDiskError, BlobError


@dataclass(frozen=True, slots=True)
class Hands:
    """Used by the daemon's thread only. `log` takes one line for the owner of this machine."""

    mouth: Mouth
    shelf: Shelf
    seat: TrainerSeat
    log: Callable[[str], None]

    def act(self, action: ev.AgentAction, memory: Memory) -> ev.AgentEvent | None:
        """Do it; `memory` is what was written to the journal before.

        Raises:
            StateFolderError: if the state folder takes nothing any more.
        """
        match action:
            case ev.Say(message):
                self.mouth.say(message)  # what is lost is said again when the coordinator asks, or lets us in
            case ev.FetchAdapter(ref):
                try:
                    self.shelf.fetch(ref, memory)
                except BlobDiskError as error:
                    return ev.DiskRefused(ref.sha256, str(error))
                except BlobError as error:
                    return ev.TransferFailed(ref.sha256, str(error))
            case ev.Ask(request):
                self.seat.ask(request)
            case ev.NameUpdate() | ev.ShelveUpdate():
                return self.shelf.keep(action)
            case ev.DropUpdate(sha256):
                self.shelf.drop(sha256)
            case ev.Tidy():
                self.tidy(memory)
            case ev.StopTrainer(reason):
                if self.seat.taken:
                    self.log(f"ending the trainer: {reason}")
                    self.seat.end()
            case ev.Log(text):
                self.log(text)
        return None

    def tidy(self, memory: Memory) -> None:
        """Remove the files that nobody needs; no trainer may be at work."""
        self.shelf.tidy(memory)
        self.shelf.tidy_updates(memory)
