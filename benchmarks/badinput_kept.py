"""Packets that the broker was asked to keep, and hands out again to a coordinator or an agent that starts anew.

Owns the restarts. What is said once and kept by a broker is nobody's word any more, however good its seal is.
"""

from functools import partial

from benchmarks.badinput_cases import AcceptedError, Case
from benchmarks.badinput_tyrant import AGENT, TERMS, WAIT_S, Court
from benchmarks.badinput_yard import Yard
from fedpipe_wire.agent_messages import Refused
from fedpipe_wire.coordinator_messages import SurveyTask
from fedpipe_wire.messages import encode

KEPT = r"broker kept a (message|chunk)"


def _reports(yard: Yard) -> str:
    """A report that was kept, heard by a coordinator that starts anew; it has had the broker forget the chunk."""
    mallory, fleet = yard.mallory, yard.fleet
    run = "kept-by-the-broker"
    mallory.send("report", encode(Refused(run=run, round=0, reason="kept")), retain=True)
    mallory.publish(mallory.topics.up(mallory.name, "blob") + f"/{'e' * 64}/0", b"x", retain=True)
    mallory.fence()
    yard.log.news()
    fleet.kill("coordinator")
    fleet.revive()
    fleet.wait("the coordinator's return", lambda: yard.refused().get("retained", 0) == 1, 60.0)
    said = yard.log.news()
    mallory.greet()
    yard.check_sane(said)
    if f"of run {run}" in said:
        raise AcceptedError(said)
    return said


def _task(court: Court) -> str:
    """A task that was kept, heard by an agent that starts anew."""
    tyrant, fleet = court.tyrant, court.fleet
    run = tyrant.new_run()
    fleet.kill(AGENT)
    tyrant.send("task", encode(SurveyTask(run=run, terms=TERMS)), retain=True)
    tyrant.publish(tyrant.topics.broadcast_chunk("e" * 64, 0), b"x", retain=True)
    tyrant.profile = None
    court.log.news()
    fleet.start_one(AGENT)
    tyrant.until("the agent's return", lambda: tyrant.profile is not None, 3 * WAIT_S)
    tyrant.fence()
    said = court.log.news()
    if any(getattr(message, "run", "") == run for message in tyrant.heard):
        raise AcceptedError(f"it worked on {run}")
    return said


def coordinator_cases(yard: Yard) -> list[Case]:
    """Restarts the coordinator."""
    return [Case("packet", "a report and a chunk that the broker kept", partial(_reports, yard), KEPT)]


def agent_cases(court: Court) -> list[Case]:
    """Restarts the agent."""
    return [Case("order", "a task and a chunk that the broker kept", partial(_task, court), KEPT)]
