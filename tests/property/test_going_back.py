"""A coordinator whose store was restored from a backup goes on from there, says so, and every update is answered."""

from random import Random

from agent_support import DriveAgent, setup
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mishaps import happen
from run_support import RUN, Drive, begin, device
from simulated_federation import NAMES, ROUNDS, Silo, World

from fedpipe_agent.agent_events import Log, TaskCame
from fedpipe_agent.state import AgentState
from fedpipe_coordinator.runs.resume import rebase
from fedpipe_coordinator.runs.run_events import Aggregate, Send
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_coordinator.runs.tasks import survey_task
from fedpipe_wire.coordinator_messages import Ack, EndTask, SurveyTask
from fedpipe_wire.moments import Moment

KINDS = (*("deliver",) * 6, *("work",) * 5, "double", "tick", "restart", "kill")


def _world() -> World:
    silos: dict[str, Silo] = {}
    world = World(Drive(begin(number=ROUNDS, min_agents=len(NAMES))), silos)
    for name in NAMES:
        silos[name] = Silo(name, drive=DriveAgent(AgentState(setup=setup(name, profile=device(name)))))
        world.connects(silos[name])
    return world


def _go_on(world: World, random: Random, steps: int) -> None:
    for _ in range(steps):
        if world.state.open:
            happen(world, random.choice(KINDS), random.randrange(100))
            world.calm()


def _restore(world: World, saved: str, stored: dict[tuple[str, int, str], int]) -> None:
    """The coordinator is stopped, gets an older store and its blobs, and is started again."""
    state, now = RunState.model_validate_json(saved), Moment("boot", world.run.now, 0.0)
    world.run.state = rebase(state, now, now, world.state.epoch + 1)
    world.stored.clear()
    world.stored.update(stored)
    world.dying = False
    world.restarts()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 32), before=st.integers(0, 40), lost=st.integers(1, 60))
def test_a_run_whose_store_went_back_ends_well(seed: int, before: int, lost: int) -> None:
    random, world = Random(seed), _world()
    _go_on(world, random, before)
    if not world.state.open:
        return
    saved, stored, kept = world.state.model_dump_json(), dict(world.stored), len(world.run.all(Aggregate))
    _go_on(world, random, lost)
    later, there = world.state.round, len(world.run.actions)
    _restore(world, saved, stored)
    back = world.state.round
    world.settle()
    assert world.state.phase == "done"
    rounds = [a.round for a in world.run.all(Aggregate)[:kept]]
    since = [a for action in world.run.actions[there:] if isinstance(a := action, Aggregate)]
    assert {*rounds, *(a.round for a in since)} == {*range(1, ROUNDS + 1)}
    assert all(world.stored[each] for a in since for each in ((n, a.round, s) for n, s in a.updates.items()))
    assert all(sorted(a.updates) == list(NAMES) for a in since)
    assert [silo.name for silo in world.silos.values() if silo.drive.state.memory.outbox] == []
    if later > back + 1:
        assert world.run.notes("went-back")


def _asked(epoch: int) -> SurveyTask:
    return survey_task(begin().model_copy(update={"epoch": epoch}))


def test_a_run_that_had_ended_is_worked_on_again_where_the_coordinator_has_forgotten_its_end() -> None:
    agent = DriveAgent()
    agent(TaskCame(_asked(5)))
    agent(TaskCame(EndTask(run=RUN, reason="the run is done")))
    assert not agent(TaskCame(_asked(5)))[1:], "a task of the same coordinator came late"
    actions = agent(TaskCame(_asked(6)))
    assert any("gone back in time" in action.text for action in actions if isinstance(action, Log))
    assert agent.state.task == _asked(6)


def test_what_an_earlier_start_of_the_coordinator_asked_is_not_begun_any_more() -> None:
    world = _world()
    for _ in range(6):
        world.calm()
    agent = next(iter(world.silos.values())).drive
    task = agent.state.task
    assert task is not None
    agent(TaskCame(task.model_copy(update={"epoch": 8})))
    before = agent.state.memory
    agent(TaskCame(_asked(7)))
    assert agent.state.memory == before
    assert not [send for send in world.run.all(Send) if isinstance(send.message, Ack) and not send.message.accepted]
