"""A whole federation without clock, disk or network: the coordinator's machine and the agents' machines, joined.

Owns the network that delays, reorders, doubles and drops messages, the silos' disks, and what a registry, a blob
transfer and a trainer would do. Heavy work is stood in for by names that are functions of what they are made of.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from agent_support import DriveAgent, replies, setup
from run_support import Drive, aggregated, device, name_of, planned, ref

from fedpipe_agent import admission
from fedpipe_agent.admission import Admission, AdmissionEvent, Down, LetIn, SayOnline, Up, Woke
from fedpipe_agent.agent_events import (
    Acknowledged,
    AdapterReady,
    AgentAction,
    Ask,
    DropUpdate,
    FetchAdapter,
    NameUpdate,
    Say,
    ShelveUpdate,
    StopTrainer,
    TaskCame,
    TrainerEnded,
    TrainerReplied,
    UpdateNamed,
    UpdateShelved,
    Welcomed,
)
from fedpipe_agent.agent_events import Ticked as AgentTicked
from fedpipe_agent.state import AgentState
from fedpipe_agent.trainer_protocol import ErrorReply, OpenRequest, Request, TrainedReply, TrainRequest
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
from fedpipe_wire.messages import Ack, BlobRef, Progress, Task, Welcome

NAMES = ("a", "b", "c")
ROUNDS = 3


@dataclass
class Silo:
    """An agent with its trainer and its disk.

    Attributes:
        doom: After so many more steps its process dies, before it does what the step asks for.
        kept: The rounds whose training is done and written down.
        repeated: Those of them that were trained again.
    """

    name: str
    session: int = 1
    drive: DriveAgent = field(default_factory=DriveAgent)
    admission: Admission = field(default_factory=lambda: Admission(""))
    held: list[Task | Ack] = field(default_factory=list)
    written: BlobRef | None = None
    outbox: set[str] = field(default_factory=set)
    hands: list[Request] = field(default_factory=list)
    awaited: list[BlobRef] = field(default_factory=list)
    online: bool = True
    doom: int | None = None
    kept: set[int] = field(default_factory=set)
    repeated: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.admission = Admission(self.session_name)

    @property
    def session_name(self) -> str:
        return f"{self.name}-{self.session}"

    def restart(self, *, new_disk: bool = False) -> None:
        """A new process on the same disk: it removes what its journal does not need. A new disk knows nothing."""
        said, now = self.drive.actions, self.drive.now
        empty = AgentState(setup=setup(self.name, profile=device(self.name)))
        self.drive = DriveAgent(empty, now) if new_disk else self.drive.restarted()
        self.drive.actions = said
        memory = self.drive.state.memory
        self.outbox &= {trained.update.sha256 for trained in memory.outbox}
        self.session += 1
        self.admission = Admission(self.session_name)
        self.hands, self.awaited, self.held, self.doom = [], [], [], None


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
            case AgentOnline():
                self.presence(item)
            case Heard():
                self.coordinator(item)
            case _:
                self.at_agent(self.silos[to], item)

    def presence(self, online: AgentOnline) -> None:
        """Every presence is answered, before the tasks that it causes are sent."""
        self.wire.append((online.agent, Welcome(session=online.session)))
        self.coordinator(online)

    # --- an agent -----------------------------------------------------------------------------------------------

    def at_agent(self, silo: Silo, message: Task | Ack | Welcome) -> None:
        if not silo.online:
            return  # a broker without its session; it is asked again when it is back
        if isinstance(message, Welcome):
            self.admit(silo, message)
            return
        silo.held.append(message)
        self.hear(silo)

    def hear(self, silo: Silo) -> None:
        while silo.held and silo.admission.standing == "welcome":
            message = silo.held.pop(0)
            what = Acknowledged(message) if isinstance(message, Ack) else TaskCame(message)
            self.act(silo, silo.drive(what))

    def admit(self, silo: Silo, event: AdmissionEvent) -> None:
        silo.admission, actions = admission.step(silo.admission, event, silo.drive.now)
        for action in actions:
            match action:
                case SayOnline():
                    self.presence(AgentOnline(silo.name, silo.session_name))
                case LetIn():
                    self.act(silo, silo.drive(Welcomed()))
                    self.hear(silo)
                case _:
                    raise AssertionError(f"{silo.name} is turned away")

    def act(self, silo: Silo, actions: tuple[AgentAction, ...]) -> None:
        """Do what a step asks for, unless its process dies between its journal and that."""
        if silo.doom is not None and actions:
            silo.doom -= 1
            if silo.doom < 0:
                silo.restart()
                self.connects(silo)
                return
        session = silo.session
        for action in actions:
            self.do(silo, action)
            if silo.session != session:
                return

    def do(self, silo: Silo, action: AgentAction) -> None:
        match action:
            case Say(message) if not isinstance(message, Progress) and silo.admission.standing == "welcome":
                self.wire.append(("coordinator", Heard(silo.name, cast("Any", message))))
            case FetchAdapter(blob):
                silo.awaited.append(blob)
            case Ask(OpenRequest() as request):
                silo.hands = [request]
            case Ask(request):
                assert not [each for each in silo.hands if not isinstance(each, OpenRequest)]
                silo.hands.append(request)
                if isinstance(request, TrainRequest) and request.plan.round in silo.kept:
                    silo.repeated.append(request.plan.round)
            case NameUpdate():
                assert silo.written is not None
                self.act(silo, silo.drive(UpdateNamed(silo.written)))
            case ShelveUpdate(_, blob):
                assert blob.sha256 in silo.outbox or blob == silo.written, "the update is gone"
                silo.outbox.add(blob.sha256)
                self.act(silo, silo.drive(UpdateShelved(blob)))
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
        request, session = silo.hands.pop(0), silo.session
        for reply in replies(request):
            if isinstance(reply, TrainedReply) and isinstance(request, TrainRequest):
                plan = request.plan
                silo.written = ref(name_of("update", silo.name, plan.round, request.adapter, plan.model_dump_json()))
            actions = silo.drive(TrainerReplied(reply))
            if isinstance(reply, TrainedReply) and isinstance(request, TrainRequest) and actions:
                silo.kept.add(request.plan.round)  # the journal has it
            self.act(silo, actions)
            if silo.session != session:
                return True
        return True

    def connects(self, silo: Silo) -> None:
        silo.online = True
        self.admit(silo, Down())
        self.admit(silo, Up())

    # --- time ---------------------------------------------------------------------------------------------------

    def tick(self, seconds: float) -> None:
        self.coordinator(Ticked(), seconds)
        for silo in self.silos.values():
            self.act(silo, silo.drive(AgentTicked(), seconds))
            self.admit(silo, Woke())

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
            world.wire.append(("coordinator", AgentOnline(silo.name, silo.session_name)))


ON_THE_WIRE: dict[str, Callable[[World, int], None]] = {"deliver": _deliver, "double": _double, "drop": _drop}
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
    "coordinator": _coordinator,
}
