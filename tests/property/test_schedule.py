"""Every schedule of a whole federation: the coordinator's machine and agents' machines on a network that misbehaves.

Messages are delayed, reordered, doubled and dropped; where one is dropped its agent connects anew and is asked again, as
the registry does it. Heavy work is stood in for by names that are functions of what they are made of.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from agent_support import DriveAgent, replies, setup
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from run_support import RUN, Drive, aggregated, begin, device, name_of, planned, ref

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
from fedpipe_wire.messages import Ack, BlobRef, EndTask, Progress, Task

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
                    self.wire.append(("coordinator", Heard(silo.name, message)))
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


def _world(**rounds: Any) -> World:
    silos = {name: Silo(name, drive=DriveAgent(AgentState(setup=setup(name, profile=device(name))))) for name in NAMES}
    world = World(Drive(begin(number=ROUNDS, **rounds)), silos)
    for silo in silos.values():
        world.connects(silo)
    return world


def _aggregates(world: World) -> list[Aggregate]:
    """What was aggregated, without what a restarted coordinator asked again."""
    found: list[Aggregate] = []
    for action in world.run.all(Aggregate):
        if action not in found:
            found.append(action)
    return found


def _calm() -> World:
    world = _world()
    world.settle()
    return world


CALM = _calm()


def test_a_calm_schedule_ends_with_every_agent_in_every_round() -> None:
    assert CALM.state.phase == "done"
    assert [(a.round, sorted(a.updates)) for a in _aggregates(CALM)] == [(n, list(NAMES)) for n in (1, 2, 3)]


BEFORE = st.integers(0, 14)
# Which thing happens, and on which of those under way. A seed gives schedules that differ more than drawn lists do.
MILD = (*("deliver",) * 4, *("work",) * 3, *("double",) * 2, *("drop",) * 2, "tick", "coordinator")
WILD = (
    *("deliver",) * 6,
    *("work",) * 4,
    *("double", "drop", "tick", "wait", "offline", "restart", "leave", "fail", "coordinator"),
)


def _schedules(kinds: tuple[str, ...]) -> st.SearchStrategy[list[tuple[str, int]]]:
    def schedule(seed: int, length: int) -> list[tuple[str, int]]:
        random = Random(seed)
        return [(random.choice(kinds), random.randrange(100)) for _ in range(length)]

    return st.builds(schedule, st.integers(0, 1 << 32), st.integers(120, 250))


def _happen(world: World, kind: str, which: int) -> None:
    silo = world.silos[NAMES[which % len(NAMES)]]
    match kind:
        case "deliver" if world.wire:
            world.arrive(*world.wire.pop(which % len(world.wire)))
        case "double" if world.wire:
            to, item = world.wire[which % len(world.wire)]
            if isinstance(item, Heard) or to != "coordinator":
                world.wire.append((to, item))
        case "drop" if world.wire:
            to, item = world.wire[which % len(world.wire)]
            if isinstance(item, Heard) or to != "coordinator":
                world.wire.remove((to, item))
                world.connects(world.silos[item.agent if isinstance(item, Heard) else to])
        case "work":
            world.work(silo)
        case "fail" if silo.hands:
            silo.hands.clear()
            world.act(silo, silo.drive(TrainerReplied(ErrorReply(kind="out-of-memory", message="too large"))))
        case "tick":
            world.tick(0.5)
        case "wait":
            world.tick(60.0)
        case "offline":
            silo.online = False
            world.coordinator(AgentOffline(silo.name))
        case "leave":
            silo.restart()
            silo.online = False
            world.coordinator(AgentOffline(silo.name))
        case "restart":
            silo.restart()
            world.connects(silo)
        case "coordinator":
            state = RunState.model_validate_json(world.state.model_dump_json())
            lost = (MakePlans, Aggregate, Export, Fetch)
            world.wire = [(to, item) for to, item in world.wire if not isinstance(item, lost)]
            world.run.state, actions = resume(state, world.run.now)
            world.run.actions.extend(actions)
            world.take(actions)
            for each in world.silos.values():
                if each.online:  # their presence is retained at the broker, and is heard some time later
                    world.wire.append(("coordinator", AgentOnline(each.name, f"{each.name}-{each.session}")))
        case _:
            pass


def _run(schedule: list[tuple[str, int]], calm: int, **rounds: Any) -> World:
    world = _world(**rounds)
    for _ in range(calm):
        world.calm()
    for kind, which in schedule:
        if not world.state.open:
            break
        _happen(world, kind, which)
    world.settle()
    return world


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedule=_schedules(MILD), calm=BEFORE)
def test_delays_doubles_drops_and_disorder_change_nothing_that_is_aggregated(
    schedule: list[tuple[str, int]], calm: int
) -> None:
    world = _run(schedule, calm)
    assert world.state.phase == "done", world.state.note
    assert _aggregates(world) == _aggregates(CALM)
    assert world.state.adapter == CALM.state.adapter
    assert world.state.final_metric == CALM.state.final_metric
    for silo in world.silos.values():
        trained = [ask.request.plan.round for ask in silo.drive.all(Ask) if isinstance(ask.request, TrainRequest)]
        assert trained == [1, 2, 3], "an agent trained a round twice, or not at all"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedule=_schedules(WILD), calm=BEFORE, min_agents=st.integers(1, 3))
def test_whatever_happens_a_run_ends_with_each_update_once_or_for_want_of_agents(
    schedule: list[tuple[str, int]], calm: int, min_agents: int
) -> None:
    world = _run(schedule, calm, min_agents=min_agents)
    event(world.state.phase)
    aggregates = _aggregates(world)
    assert [aggregate.round for aggregate in aggregates] == list(range(1, len(aggregates) + 1))
    taken = [(agent, a.round, sha256) for a in aggregates for agent, sha256 in a.updates.items()]
    assert len(taken) == len(set(taken))
    assert all(world.stored[each] for each in taken)
    assert all(len(aggregate.updates) >= min_agents for aggregate in aggregates)
    if world.state.phase == "done":
        assert len(aggregates) == ROUNDS
    else:
        assert world.state.phase == "failed"
        assert f"rounds.min_agents is {min_agents}" in world.state.note


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedule=_schedules(WILD), calm=BEFORE)
def test_after_the_end_no_agent_holds_on_to_the_run(schedule: list[tuple[str, int]], calm: int) -> None:
    world = _run(schedule, calm)
    world.calm()
    for silo in world.silos.values():
        world.connects(silo)
    world.calm()
    for silo in world.silos.values():
        assert silo.drive.state.opened_for != RUN
        assert silo.drive.state.task is None
        assert not silo.hands
    assert isinstance(world.run.asked("a", EndTask)[-1], EndTask)
