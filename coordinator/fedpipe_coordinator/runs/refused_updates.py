"""Updates that were acknowledged, and that the closing gate refuses: they moved a weight too far beside the others.

Part of the pure machine of `run_machine.py`. The agent is told in a second acknowledgement, the audit
record says so, and the round goes on with the others, if they are enough.
"""

from fedpipe_coordinator.runs.lost_updates import trained_of
from fedpipe_coordinator.runs.run_events import UpdatesRefused
from fedpipe_coordinator.runs.run_state import Member
from fedpipe_coordinator.runs.step import Step
from fedpipe_coordinator.runs.telling import decline


def on_refused(work: Step, event: UpdatesRefused) -> None:
    """Take the updates out of the round; one that is not in it any more changes nothing."""
    for name, sha256, reason in event.updates:
        member = work.state.members[name]
        trained = trained_of(member, sha256)
        if trained is None:
            continue
        text = f"{name}'s update {sha256[:12]} of round {trained.round} is refused, though it was stored: {reason}"
        update: dict[str, object] = {"taken": tuple(each for each in member.taken if each != sha256)}
        if member.trained is trained:
            update |= {"standing": "failed", "note": text}
        else:
            update |= {"late": tuple(entry for entry in member.late if entry.trained is not trained)}
        work.put(member.model_copy(update=update))
        work.note("rejected", text, agent=name, data={"sha256": sha256, "round": trained.round, "check": "norm"})
        decline(work, name, trained, text)


def was_refused(member: Member) -> bool:
    """Whether what an agent brought for its last round was stored and is refused."""
    trained = member.trained
    if member.standing != "failed" or trained is None or member.delivered != trained.round:
        return False
    return trained.update.sha256 not in member.taken  # else it was taken, and its agent failed afterwards


def tell_again(work: Step, member: Member) -> None:
    """Say it once more to an agent that comes back: it offers nothing any more to which this would be the answer."""
    if was_refused(member) and member.trained is not None:
        decline(work, member.name, member.trained, member.note)
