"""Every schedule of a whole federation, on a network that misbehaves, ends well or says which agents it lacks."""

from collections import Counter
from random import Random
from typing import Any

from agent_support import DriveAgent, setup
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from mishaps import happen
from run_support import RUN, Drive, begin, device
from simulated_federation import NAMES, ROUNDS, Silo, World

from fedpipe_agent.agent_events import Ask
from fedpipe_agent.state import AgentState
from fedpipe_agent.trainer_protocol import TrainRequest
from fedpipe_coordinator.runs.run_events import Aggregate, SaveRound, Send
from fedpipe_wire.coordinator_messages import Ack, EndTask


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
STOPPED = 0.2
# Which thing happens, and on which of those under way. A seed gives schedules that differ more than drawn lists do.
MILD = (*("deliver",) * 4, *("work",) * 3, *("double",) * 2, *("drop",) * 2, "delay", "tick", "coordinator")
KILLS = (*MILD, "kill", "restart", "trainer", "coordinator", "coordinator dies")
WILD = (
    *("deliver",) * 12,
    *("work",) * 8,
    *("double", "drop", "tick", "wait", "offline", "restart", "leave", "fail", "coordinator") * 2,
    *("kill", "trainer", "new disk", "delay", "deadline", "coordinator dies") * 2,
)
LATE = (*("deliver",) * 12, *("work",) * 12, *("deadline",) * 8, "delay", "drop", "offline", "new disk", "coordinator")


def _schedules(kinds: tuple[str, ...], *, stops: bool = False) -> st.SearchStrategy[list[tuple[str, int]]]:
    """Things that happen, with what each of them chooses; with `stops`, a person ends some of the runs at last."""

    def schedule(seed: int, length: int) -> list[tuple[str, int]]:
        random = Random(seed)
        things = [(random.choice(kinds), random.randrange(100)) for _ in range(length)]
        return [*things, ("stop", 0)] if stops and random.random() < STOPPED else things

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


Update = tuple[str, int, str]
"""Agent, round and name."""


def _answers(world: World) -> dict[Update, list[bool]]:
    """What agents were told of each update, in order; whether it was accepted."""
    found: dict[Update, list[bool]] = {}
    for send in world.run.all(Send):
        if isinstance(ack := send.message, Ack):
            found.setdefault((send.agent, ack.round, ack.sha256), []).append(ack.accepted)
    return found


def _used(world: World) -> Counter[Update]:
    """How many aggregations each update is in, in time or late."""
    aggregates = _aggregates(world)
    in_time = [(agent, a.round, sha256) for a in aggregates for agent, sha256 in a.updates.items()]
    late = [(agent, a.round - 1, sha256) for a in aggregates for agent, sha256 in a.late.items()]
    return Counter([*in_time, *late])


def _cut_off(world: World) -> int:
    """The first round whose updates a run that ended early may not have used."""
    return ROUNDS + 1 if world.state.phase == "done" else len(_aggregates(world))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedule=_schedules(WILD, stops=True), calm=BEFORE, min_agents=st.integers(1, 3))
def test_whatever_happens_a_run_ends_or_says_which_agents_it_lacks(
    schedule: list[tuple[str, int]], calm: int, min_agents: int
) -> None:
    world = _run(schedule, calm, min_agents=min_agents)
    event(world.state.phase)
    aggregates = _aggregates(world)
    assert [aggregate.round for aggregate in aggregates] == list(range(1, len(aggregates) + 1))
    assert all(len(aggregate.updates) >= min_agents for aggregate in aggregates)
    if world.state.phase == "done":
        assert len(aggregates) == ROUNDS
    elif world.state.phase == "failed":
        assert f"rounds.min_agents is {min_agents}" in world.state.note
    else:
        assert world.run.notes("run-stopped")


RULES = st.fixed_dictionaries(
    {"min_agents": st.sampled_from((1, 1, 2, 3)), "late_weight": st.sampled_from((0.5, 1.0, 0.0))}
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedule=st.one_of(_schedules(WILD, stops=True), _schedules(LATE, stops=True)), calm=BEFORE, rules=RULES)
def test_an_update_that_was_acknowledged_is_in_exactly_one_aggregation(
    schedule: list[tuple[str, int]], calm: int, rules: dict[str, Any]
) -> None:
    """But for those that an early end of the run left without one."""
    world = _run(schedule, calm, **rules)
    used, accepted = _used(world), {update for update, answers in _answers(world).items() if True in answers}
    event(f"{world.state.phase}, {sum(len(a.late) for a in _aggregates(world))} late")
    assert set(used.values()) <= {1}
    assert set(used) <= accepted
    assert all(world.stored[each] for each in used)
    for update in accepted - set(used):
        assert update[1] >= _cut_off(world), f"{update} was acknowledged and is in no aggregation"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedule=st.one_of(_schedules(WILD, stops=True), _schedules(LATE, stops=True)), calm=BEFORE, rules=RULES)
def test_every_offered_update_is_answered_once_and_for_all(
    schedule: list[tuple[str, int]], calm: int, rules: dict[str, Any]
) -> None:
    """It is taken or not; only one that was declined may be taken later, when the same is made again."""
    world = _run(schedule, calm, **rules)
    answers = _answers(world)
    for update in world.offered:
        if update in answers:
            assert answers[update] == sorted(answers[update]), f"{update} was taken, and then declined"
        else:
            assert update[1] >= _cut_off(world), f"{update} was never answered"
            assert world.run.asked(update[0], EndTask)
    assert set(answers) <= world.offered


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schedule=_schedules(LATE), calm=BEFORE, rules=RULES)
def test_a_late_update_counts_with_its_weight_in_the_next_round_or_not_at_all(
    schedule: list[tuple[str, int]], calm: int, rules: dict[str, Any]
) -> None:
    world = _run(schedule, calm, **rules)
    aggregates = {each.round: each for each in _aggregates(world)}
    if rules["late_weight"] == 0.0:
        assert not any(each.late for each in aggregates.values())
    for save in world.run.all(SaveRound):
        shares, round_ = save.result.late, save.result.round
        assert {share.agent: share.sha256 for share in shares} == aggregates[round_].late
        assert all((share.weight, share.round) == (rules["late_weight"], round_ - 1) for share in shares)


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
