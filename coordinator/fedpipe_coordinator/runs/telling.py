"""What an agent is told of its update, and how it is remembered what was told.

Part of the pure machine of `run_machine.py`.
"""

from fedpipe_coordinator.runs.run_events import Send
from fedpipe_coordinator.runs.run_state import Member
from fedpipe_coordinator.runs.step import Step
from fedpipe_wire.agent_messages import Trained
from fedpipe_wire.coordinator_messages import Ack
from fedpipe_wire.message_values import BlobRef

REMEMBERED_UPDATES = 4
"""An update that is offered again after its round must not be called not taken."""
REPLACED = "another update of this round took its place"
"""Why an update is not taken of an agent that offered two."""


def acknowledge(work: Step, agent: str, round_: int, sha256: str) -> None:
    """Tell an agent that its update is kept durably."""
    work.do(Send(agent, Ack(run=work.state.run, round=round_, sha256=sha256, accepted=True)))


def decline(work: Step, agent: str, trained: Trained, reason: str) -> None:
    """Tell an agent that its update will never be taken."""
    ack = Ack(
        run=work.state.run, round=trained.round, sha256=trained.update.sha256, accepted=False, reason=reason[:1000]
    )
    work.do(Send(agent, ack))


def offered(work: Step, member: Member, trained: Trained) -> dict[str, object]:
    """What changes in an agent's entry by the message that is being acted on: it offers this update."""
    if work.heard is None:
        return {}
    offers = {key: value for key, value in member.offers.items() if key != trained.update.sha256}
    offers[trained.update.sha256] = work.heard[1]
    return {"offers": dict(list(offers.items())[-REMEMBERED_UPDATES:])}


def described(member: Member, update: BlobRef) -> dict[str, object]:
    """An update for the audit record: its name, its size, and the message that it was offered with."""
    named = {"message_id": member.offers[update.sha256]} if update.sha256 in member.offers else {}
    return {"sha256": update.sha256, "bytes": update.size, **named}


def remember(member: Member, sha256: str) -> Member:
    """The same entry, with an update among those that were taken."""
    if sha256 in member.taken:
        return member
    return member.model_copy(update={"taken": (*member.taken, sha256)[-REMEMBERED_UPDATES:]})
