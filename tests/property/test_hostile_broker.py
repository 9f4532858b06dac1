"""A broker that belongs to somebody else: with seals it can delay and drop, and nothing else."""

from dataclasses import replace
from functools import cache
from random import Random

import pytest
from agent_support import DriveAgent, setup
from hostile_broker import OTHERS, TRICKS, HostileWorld, play
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from run_support import Drive, begin, device
from simulated_federation import NAMES, ROUNDS, Silo

from fedpipe_agent.state import AgentState
from fedpipe_coordinator.runs.run_events import Aggregate
from fedpipe_wire.message_values import BlobRef

MOVES = (*("deliver",) * 8, *("work",) * 5, *OTHERS, *TRICKS)
Result = tuple[BlobRef | None, list[tuple[int, dict[str, str], dict[str, str]]]]


def federation(*, sealed: bool = True) -> HostileWorld:
    silos: dict[str, Silo] = {}
    world = HostileWorld(Drive(begin(number=ROUNDS, min_agents=len(NAMES))), silos, sealed=sealed)
    for name in NAMES:
        silos[name] = Silo(name, drive=DriveAgent(AgentState(setup=setup(name, profile=device(name)))))
        world.connects(silos[name])
    return world


def result(world: HostileWorld) -> Result:
    """What the run has made so far: its adapter, and what each round was made of."""
    made: dict[int, tuple[int, dict[str, str], dict[str, str]]] = {}
    for action in world.run.all(Aggregate):
        what = action.round, action.updates, action.late
        assert made.setdefault(action.round, what) == what, "a round was made twice, of different things"
    return world.state.adapter, list(made.values())


@cache
def undisturbed() -> Result:
    world = federation()
    world.settle()
    assert world.state.phase == "done"
    assert world.refused.keys() <= {"replayed"}
    return result(world)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 32), moves=st.lists(st.sampled_from(MOVES), min_size=20, max_size=250))
def test_a_run_ends_in_the_same_bytes_or_makes_no_progress_whatever_its_broker_does(
    seed: int, moves: list[str]
) -> None:
    random, world = Random(seed), federation()
    for move in moves:
        play(world, move, random)
        if not world.state.open:
            break
    adapter, rounds = undisturbed()
    assert result(world)[1] == rounds[: len(result(world)[1])], "it came as far as it came, on the same way"
    if world.state.open:
        world.settle()
    assert world.state.phase == "done"
    assert result(world) == (adapter, rounds)
    assert [silo.name for silo in world.silos.values() if silo.drive.state.memory.outbox] == []


def _deliver_all(world: HostileWorld) -> None:
    while world.wire:
        world.arrive(*world.wire.pop(0))


@pytest.mark.parametrize("trick", [trick for trick in TRICKS if trick not in ("drop", "will")])
def test_each_trick_is_refused_every_time(trick: str) -> None:
    """All that was sent has arrived before it; but the newest presence may come as often as the broker likes."""
    random, world, tried = Random(5), federation(), 0
    while world.state.open:
        world.calm()
        _deliver_all(world)
        for _ in range(5):
            before, sent, state = sum(world.refused.values()), len(world.history), world.state
            packet = play(world, trick, random)
            if packet is None or replace(packet, retained=False) in world.kept.values():
                _deliver_all(world)
                continue
            assert (sum(world.refused.values()), len(world.history), world.state) == (before + 1, sent, state)
            tried += 1
        world.tick(0.5)
    assert tried > 20
    assert result(world) == undisturbed()


def test_a_broker_that_delivers_nothing_brings_nothing_about() -> None:
    random, world = Random(1), federation()
    world.calm()
    before = world.state.round, len(world.run.all(Aggregate))
    for _ in range(100):
        for trick in TRICKS:
            play(world, trick, random)
        world.wire = [each for each in world.wire if each[0] != "broker"]
        world.tick(0.5)
    assert (world.state.round, len(world.run.all(Aggregate))) == before
    world.settle()
    assert result(world) == undisturbed()


def test_without_seals_the_same_broker_gets_its_way() -> None:
    """What the laws above would say, were it not for the seals."""
    ends = set()
    for seed in range(12):
        random, world = Random(seed), federation(sealed=False)
        try:
            for _ in range(200):
                play(world, random.choice(MOVES), random)
            world.settle()
        except (AssertionError, RuntimeError):
            ends.add("stuck or broken")
        else:
            ends.add("same" if result(world) == undisturbed() else "other")
    assert ends - {"same"}
