"""Every schedule of a whole federation, on a network that misbehaves, ends well or says which agents it lacks."""

from random import Random
from typing import Any

from agent_support import DriveAgent, setup
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from run_support import RUN, Drive, begin, device
from simulated_federation import NAMES, ROUNDS, Silo, World, happen

from fedpipe_agent.agent_events import Ask
from fedpipe_agent.state import AgentState
from fedpipe_agent.trainer_protocol import TrainRequest
from fedpipe_coordinator.run_events import Aggregate
from fedpipe_wire.messages import EndTask


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
KILLS = (*MILD, "kill", "restart", "trainer", "coordinator")
WILD = (
    *("deliver",) * 6,
    *("work",) * 4,
    *("double", "drop", "tick", "wait", "offline", "restart", "leave", "fail", "coordinator"),
    *("kill", "trainer", "new disk"),
)


def _schedules(kinds: tuple[str, ...]) -> st.SearchStrategy[list[tuple[str, int]]]:
    def schedule(seed: int, length: int) -> list[tuple[str, int]]:
        random = Random(seed)
        return [(random.choice(kinds), random.randrange(100)) for _ in range(length)]

    return st.builds(schedule, st.integers(0, 1 << 32), st.integers(120, 250))


def _run(schedule: list[tuple[str, int]], calm: int, **rounds: Any) -> World:
    world = _world(**rounds)
    for _ in range(calm):
        world.calm()
    for kind, which in schedule:
        if not world.state.open:
            break
        happen(world, kind, which)
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
@given(schedule=_schedules(KILLS), calm=BEFORE)
def test_kills_of_agents_trainers_and_the_coordinator_change_nothing_that_is_aggregated(
    schedule: list[tuple[str, int]], calm: int
) -> None:
    world = _run(schedule, calm)
    event(f"{sum(silo.session - 1 for silo in world.silos.values()) // 5 * 5} restarts or more")
    assert world.state.phase == "done", world.state.note
    assert _aggregates(world) == _aggregates(CALM)
    assert world.state.adapter == CALM.state.adapter
    assert world.state.final_metric == CALM.state.final_metric
    assert not [silo.repeated for silo in world.silos.values() if silo.repeated], "a round that was done is done again"


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
        assert not silo.drive.state.memory.outbox
        assert not silo.outbox
    assert isinstance(world.run.asked("a", EndTask)[-1], EndTask)
