"""What can happen in a simulated federation, by name: on the wire, to a silo, to all.

Nothing happens where there is nothing to happen to.
"""

from collections.abc import Callable
from typing import Any

from simulated_federation import NAMES, Silo, World

from fedpipe_agent.admission import Down
from fedpipe_agent.agent_events import TrainerEnded, TrainerReplied
from fedpipe_agent.trainer_protocol import ErrorReply
from fedpipe_coordinator.runs.run_events import (
    AgentOffline,
    Aggregate,
    Export,
    Fetch,
    Heard,
    MakePlans,
    StopAsked,
    Ticked,
    UpdateDelayed,
    WorkDelayed,
)
from fedpipe_wire.agent_messages import Trained


def happen(world: World, kind: str, which: int) -> None:
    """Let one thing happen; `which` chooses on what. Nothing happens where there is nothing to happen to."""
    if kind in ON_THE_WIRE and world.wire:
        ON_THE_WIRE[kind](world, which % len(world.wire))
    elif kind in TO_A_SILO:
        TO_A_SILO[kind](world, world.silos[NAMES[which % len(NAMES)]])
    elif kind in TO_ALL:
        TO_ALL[kind](world)


def _deliver(world: World, at: int) -> None:
    world.arrive(*world.wire.pop(at))


def _travels(to: str, item: Any) -> bool:
    """Whether this goes over the network; the rest is the coordinator's own work."""
    return isinstance(item, Heard) or to != "coordinator"


def _double(world: World, at: int) -> None:
    if _travels(*world.wire[at]):
        world.wire.append(world.wire[at])


def _drop(world: World, at: int) -> None:
    to, item = world.wire[at]
    if _travels(to, item):
        del world.wire[at]
        world.connects(world.silos[item.agent if isinstance(item, Heard) else to])


def _fail(world: World, silo: Silo) -> None:
    if silo.hands:
        silo.hands.clear()
        world.act(silo, silo.drive(TrainerReplied(ErrorReply(kind="out-of-memory", message="too large"))))


def _offline(world: World, silo: Silo) -> None:
    silo.online = False
    world.admit(silo, Down())
    world.coordinator(AgentOffline(silo.name))


def _leave(world: World, silo: Silo) -> None:
    silo.restart()
    _offline(world, silo)


def _restart(world: World, silo: Silo) -> None:
    silo.restart()
    world.connects(silo)


def _new_disk(world: World, silo: Silo) -> None:
    silo.restart(new_disk=True)
    world.connects(silo)


def _kill(world: World, silo: Silo) -> None:
    """It dies at one of its next steps: what the step changed is in the journal, what it wanted is not done."""
    silo.doom = len(world.wire) % 3


def _trainer_dies(world: World, silo: Silo) -> None:
    """A second death in one task would be taken for a lack of memory, and change what is planned."""
    if silo.drive.state.in_hand and silo.drive.state.memory.deaths == 0:
        silo.hands = []
        world.act(silo, silo.drive(TrainerEnded(-9)))


def _die(world: World) -> None:
    world.dying = True


def _deadline(world: World) -> None:
    """The deadline passes while word of an update is on its way, and another's update is here."""
    coming = any(isinstance(item, Heard) and isinstance(item.message, Trained) for _, item in world.wire)
    here = any(member.standing == "accepted" for member in world.state.members.values())
    if coming and here and world.state.phase == "training":
        world.coordinator(Ticked(), 150.0)


def _stop(world: World) -> None:
    """A person stops the run."""
    world.coordinator(StopAsked())


def _delay(world: World, at: int) -> None:
    """A transfer dies on its way, or work finds the disk full: neither is anybody's fault, and both are tried again."""
    match world.wire[at][1]:
        case Fetch(agent, round_, blob):
            world.wire[at] = ("coordinator", UpdateDelayed(agent, round_, blob.sha256, "the transfer died"))
        case MakePlans() | Aggregate() | Export() as work:
            del world.wire[at]
            world.coordinator(WorkDelayed(PHASE_OF[type(work)], "no space left"))
        case _:
            pass


PHASE_OF: dict[type, str] = {MakePlans: "planning", Aggregate: "aggregating", Export: "exporting"}
ON_THE_WIRE: dict[str, Callable[[World, int], None]] = {
    "deliver": _deliver,
    "double": _double,
    "drop": _drop,
    "delay": _delay,
}
TO_A_SILO: dict[str, Callable[[World, Silo], Any]] = {
    "work": World.work,
    "fail": _fail,
    "offline": _offline,
    "leave": _leave,
    "restart": _restart,
    "kill": _kill,
    "trainer": _trainer_dies,
    "new disk": _new_disk,
}
TO_ALL: dict[str, Callable[[World], None]] = {
    "tick": lambda world: world.tick(0.5),
    "wait": lambda world: world.tick(60.0),
    "deadline": _deadline,
    "coordinator": World.restarts,
    "coordinator dies": _die,
    "stop": _stop,
}
