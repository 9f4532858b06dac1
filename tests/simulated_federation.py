"""A whole federation without clock, disk or network: the coordinator's machine and the agents' machines, joined.

Owns the network that delays, reorders, doubles and drops messages, the silos' disks, and what a registry, a blob
transfer and a trainer would do. Heavy work is stood in for by names that are functions of what they are made of.
"""

from collections import Counter
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
    TrainerReplied,
    UpdateNamed,
    UpdateShelved,
    Welcomed,
)
from fedpipe_agent.agent_events import Ticked as AgentTicked
from fedpipe_agent.state import AgentState
from fedpipe_agent.trainer_protocol import OpenRequest, Request, TrainedReply, TrainRequest
from fedpipe_coordinator.runs.resume import resume
from fedpipe_coordinator.runs.run_events import (
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
    UpdateDelayed,
    UpdateStored,
)
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_wire.agent_messages import Progress, Trained
from fedpipe_wire.coordinator_messages import Ack, Task, Welcome
from fedpipe_wire.message_values import BlobRef

NAMES = ("a", "b", "c")
ROUNDS = 3
OF_ONE_PROCESS = (MakePlans, Aggregate, Export, Fetch, UpdateStored, UpdateDelayed)
"""What ends with the coordinator's process."""


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
    """Everything that is under way. `happen` lets one thing happen, chosen by its arguments.

    Attributes:
        wire: What is on its way, to whom; the coordinator's own work and the transfers that it asked for are among it.
        stored: How often an update came whole.
        offered: The updates of which the coordinator has heard, by agent, round and name.
        dying: The coordinator is killed in its next step: what it decided is stored, and not done.
    """

    run: Drive
    silos: dict[str, Silo]
    wire: list[tuple[str, Any]] = field(default_factory=list)
    stored: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    offered: set[tuple[str, int, str]] = field(default_factory=set)
    dying: bool = False

    @property
    def state(self) -> RunState:
        return self.run.state

    # --- the coordinator ----------------------------------------------------------------------------------------

    def coordinator(self, what: RunEvent, after_s: float = 0.0) -> None:
        if isinstance(what, Heard) and isinstance(what.message, Trained) and what.agent in self.state.members:
            self.offered.add((what.agent, what.message.round, what.message.update.sha256))
        actions = self.run(what, after_s)
        if self.dying and actions and self.state.open:
            self.dying = False
            self.restarts()
        else:
            self.take(actions)

    def restarts(self) -> None:
        """The coordinator is killed and comes back: it has its state, and none of its work."""
        state = RunState.model_validate_json(self.state.model_dump_json())
        self.wire = [(to, item) for to, item in self.wire if not isinstance(item, OF_ONE_PROCESS)]
        self.run.state, actions = resume(state, self.run.now)
        self.run.actions.extend(actions)
        self.take(actions)
        for silo in self.silos.values():
            if silo.online:  # its presence is retained at the broker, and is heard some time later
                self.wire.append(("coordinator", AgentOnline(silo.name, silo.session_name)))

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
                # Its outcome is on its way for a while, and meanwhile rounds end.
                there = blob.sha256 in self.silos[agent].outbox or self.stored[agent, round_, blob.sha256]
                self.stored[agent, round_, blob.sha256] += bool(there)
                stored = UpdateStored(agent, round_, blob.sha256)
                self.wire.append((to, stored if there else UpdateDelayed(agent, round_, blob.sha256, "nothing came")))
            case UpdateStored() | UpdateDelayed():
                self.coordinator(item)
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
            assert delivered < 20_000, f"messages without end: {self.wire[0]}"
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
