"""A whole federation without clock, disk or network: the coordinator's machine and the agents' machines, joined.

Owns the network that delays, reorders, doubles and drops messages, and what a registry, a blob transfer and a trainer
would do. Heavy work is stood in for by names that are functions of what they are made of.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from agent_support import DriveAgent, replies, setup
from run_support import Drive, aggregated, device, name_of, planned, ref

from fedpipe_agent.agent_events import (
    Acknowledged,
    AdapterReady,
    AgentAction,
    Ask,
    DropUpdate,
    FetchAdapter,
    Say,
    ShelveUpdate,
    StopTrainer,
    TaskCame,
    TrainerReplied,
    UpdateShelved,
)
from fedpipe_agent.agent_events import Ticked as AgentTicked
from fedpipe_agent.state import AgentState
from fedpipe_agent.trainer_protocol import ErrorReply, OpenRequest, Request, TrainRequest
from fedpipe_coordinator.resume import resume
from fedpipe_coordinator.run_events import (
    AgentOffline,
    AgentOnline,
    Aggregate,
    Export,
    Exported,
    Fetch,
    Heard,
    MakePlans,
    RunAction,
    RunEvent,
    Send,
    Ticked,
    UpdateRejected,
    UpdateStored,
)
from fedpipe_coordinator.run_state import RunState
from fedpipe_wire.messages import Ack, BlobRef, Progress, Task

NAMES = ("a", "b", "c")
ROUNDS = 3


@dataclass
class Silo:
    """An agent with its trainer and outbox; restarting it loses everything but its name."""

    name: str
    session: int = 1
    drive: DriveAgent = field(default_factory=DriveAgent)
    outbox: set[str] = field(default_factory=set)
    hands: list[Request] = field(default_factory=list)
    awaited: list[BlobRef] = field(default_factory=list)
    online: bool = True

    def restart(self) -> None:
        self.session += 1
        self.drive = DriveAgent(AgentState(setup=setup(self.name, profile=device(self.name))), self.drive.now)
        self.outbox, self.hands, self.awaited = set(), [], []


@dataclass
class World:
    """Everything that is under way. `step` lets one thing happen, chosen by its argument."""

    run: Drive
    silos: dict[str, Silo]
    wire: list[tuple[str, Any]] = field(default_factory=list)
    stored: Counter[tuple[str, int, str]] = field(default_factory=Counter)

    @property
    def state(self) -> RunState:
        return self.run.state

    # --- the coordinator ----------------------------------------------------------------------------------------

    def coordinator(self, what: RunEvent, after_s: float = 0.0) -> None:
        self.take(self.run(what, after_s))

    def take(self, actions: tuple[RunAction, ...]) -> None:
        for action in actions:
            match action:
                case Send(agent, message):
                    self.wire.append((agent, message))
                case Fetch() | MakePlans() | Aggregate() | Export():
                    self.wire.append(("coordinator", action))
                case _:
                    pass

    def arrive(self, to: str, item: Any) -> None:
        match item:
            case Fetch(agent, round_, blob):
                there = blob.sha256 in self.silos[agent].outbox or self.stored[agent, round_, blob.sha256]
                self.stored[agent, round_, blob.sha256] += bool(there)
                outcome = (
                    UpdateStored(agent, round_, blob.sha256)
                    if there
                    else UpdateRejected(agent, round_, blob.sha256, "it is not there")
                )
                self.coordinator(outcome)
            case MakePlans():
                self.coordinator(planned(self.state, item))
            case Aggregate():
                if self.state.phase == "aggregating":
                    self.coordinator(aggregated(self.state, item))
            case Export():
                self.coordinator(Exported({}))
            case Heard() | AgentOnline():
                self.coordinator(item)
            case _:
                self.at_agent(self.silos[to], item)

    # --- an agent -----------------------------------------------------------------------------------------------

    def at_agent(self, silo: Silo, message: Task | Ack) -> None:
        if not silo.online:
            return  # a broker without its session; it is asked again when it is back
        what = Acknowledged(message) if isinstance(message, Ack) else TaskCame(message)
        self.act(silo, silo.drive(what))

    def act(self, silo: Silo, actions: tuple[AgentAction, ...]) -> None:
        for action in actions:
            match action:
                case Say(message) if not isinstance(message, Progress):
                    self.wire.append(("coordinator", Heard(silo.name, cast("Any", message))))
                case FetchAdapter(blob):
                    silo.awaited.append(blob)
                case Ask(OpenRequest() as request):
                    silo.hands = [request]
                case Ask(request):
                    assert not [each for each in silo.hands if not isinstance(each, OpenRequest)]
                    silo.hands.append(request)
                case StopTrainer():
                    silo.hands = []
                case DropUpdate(sha256):
                    silo.outbox.discard(sha256)
                case _:
                    pass

    def work(self, silo: Silo) -> bool:
        """Let one thing happen at an agent: its adapter comes, or its trainer answers."""
        if silo.awaited:
            blob = silo.awaited.pop(0)
            self.act(silo, silo.drive(AdapterReady(blob, Path(blob.sha256))))
            return True
        if not silo.hands:
            return False
        request = silo.hands.pop(0)
        for reply in replies(request):
            actions = silo.drive(TrainerReplied(reply))
            self.act(silo, actions)
            if any(isinstance(action, ShelveUpdate) for action in actions):
                assert isinstance(request, TrainRequest)
                made = ref(
                    name_of("update", silo.name, request.plan.round, request.adapter, request.plan.model_dump_json())
                )
                silo.outbox.add(made.sha256)
                self.act(silo, silo.drive(UpdateShelved(made)))
        return True

    def connects(self, silo: Silo) -> None:
        silo.online = True
        self.coordinator(AgentOnline(silo.name, f"{silo.name}-{silo.session}"))

    # --- time ---------------------------------------------------------------------------------------------------

    def tick(self, seconds: float) -> None:
        self.coordinator(Ticked(), seconds)
        for silo in self.silos.values():
            self.act(silo, silo.drive(AgentTicked(), seconds))

    def calm(self) -> bool:
        """Deliver everything in order, and let every agent do one thing; whether anything happened."""
        moved, delivered = bool(self.wire), 0
        while self.wire:
            delivered += 1
            assert delivered < 2000, f"messages without end: {self.wire[0]}"
            self.arrive(*self.wire.pop(0))
        for silo in self.silos.values():
            moved = self.work(silo) or moved
        return moved

    def settle(self) -> None:
        """From now on all goes well: everybody connects, everything is delivered in order, time passes."""
        for silo in self.silos.values():
            self.connects(silo)
        for _ in range(2000):
            if not self.state.open:
                return
            self.tick(0.5 if self.calm() else 30.0)
        raise AssertionError(f"the run stays in {self.state.phase}")


# --- what can happen --------------------------------------------------------------------------------------------


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
    world.coordinator(AgentOffline(silo.name))


def _leave(world: World, silo: Silo) -> None:
    silo.restart()
    _offline(world, silo)


def _restart(world: World, silo: Silo) -> None:
    silo.restart()
    world.connects(silo)


def _coordinator(world: World) -> None:
    """The coordinator is killed and comes back: it has its state, and none of its work."""
    state = RunState.model_validate_json(world.state.model_dump_json())
    lost = (MakePlans, Aggregate, Export, Fetch)
    world.wire = [(to, item) for to, item in world.wire if not isinstance(item, lost)]
    world.run.state, actions = resume(state, world.run.now)
    world.run.actions.extend(actions)
    world.take(actions)
    for silo in world.silos.values():
        if silo.online:  # its presence is retained at the broker, and is heard some time later
            world.wire.append(("coordinator", AgentOnline(silo.name, f"{silo.name}-{silo.session}")))


ON_THE_WIRE: dict[str, Callable[[World, int], None]] = {"deliver": _deliver, "double": _double, "drop": _drop}
TO_A_SILO: dict[str, Callable[[World, Silo], Any]] = {
    "work": World.work,
    "fail": _fail,
    "offline": _offline,
    "leave": _leave,
    "restart": _restart,
}
TO_ALL: dict[str, Callable[[World], None]] = {
    "tick": lambda world: world.tick(0.5),
    "wait": lambda world: world.tick(60.0),
    "coordinator": _coordinator,
}
