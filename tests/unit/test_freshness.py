"""What an agent measures again, and that a steady machine, or its own warm trainer, is no news."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agent_desk import AGENT
from agent_in_process import LIMIT, new_machine
from run_support import device

from fedpipe_agent.freshness import IDLE_S, LEAST_BYTES, SAMPLES, Freshness
from fedpipe_agent.probe import measure_again
from fedpipe_agent.trainer_protocol import TrainRequest
from fedpipe_profiles.device import MIB, DeviceProfile, Limits
from fedpipe_wire.agent_messages import Profile

GIB = 1 << 30


def lending(free_mib: float) -> DeviceProfile:
    found = device(AGENT)
    host = found.host.model_copy(update={"free_bytes": int(free_mib * MIB)})
    return found.model_copy(update={"host": host, "limits": Limits()})


def on(tmp_path: Path, available: int, rss_anon_kib: int) -> Any:
    (tmp_path / "77").mkdir(exist_ok=True)
    (tmp_path / "77" / "status").write_text(f"VmRSS:\t 9999999 kB\nRssAnon:\t {rss_anon_kib} kB\nRssFile:\t 1000 kB\n")
    return {
        "proc": tmp_path,
        "cgroup": tmp_path / "none",
        "memory": lambda: SimpleNamespace(total=8 * GIB, available=available),
    }


def test_a_warm_trainer_is_no_loss_of_free_memory(tmp_path: Path) -> None:
    before = measure_again(lending(1), None, **on(tmp_path, 4 * GIB, 0))
    assert before.memory_limit_bytes() == 4 * GIB
    warm = on(tmp_path, 3 * GIB, GIB // 1024)
    assert measure_again(before, 77, **warm).memory_limit_bytes() == 4 * GIB
    assert measure_again(before, None, **warm).memory_limit_bytes() == 3 * GIB
    assert measure_again(before, 78, **warm).memory_limit_bytes() == 3 * GIB  # it has ended meanwhile
    neighbour = on(tmp_path, 2 * GIB, GIB // 1024)
    assert measure_again(before, 77, **neighbour).memory_limit_bytes() == 3 * GIB


def test_a_machine_is_looked_at_when_it_was_idle_for_a_while() -> None:
    looks: list[int | None] = []

    def measure(profile: DeviceProfile, trainer: int | None) -> DeviceProfile:
        looks.append(trainer)
        return profile

    fresh = Freshness(measure)
    assert not fresh.is_due(0.0)
    assert not fresh.is_due(IDLE_S - 1)
    assert fresh.is_due(IDLE_S)
    fresh.look(lending(100), 7, IDLE_S)
    assert not fresh.is_due(2 * IDLE_S - 1)
    assert looks == [7]
    assert not Freshness(None).is_due(10 * IDLE_S)


def test_small_changes_are_no_news_but_add_up() -> None:
    fresh = Freshness(None)
    assert not fresh.is_news(lending(500))  # nothing was said that this would be news beside
    fresh.said(lending(1000))
    assert not any(fresh.is_news(lending(free)) for free in (1000, 960, 1040))
    assert fresh.is_news(lending(940))
    assert fresh.is_news(lending(1060))
    lent = lending(1000).model_copy(update={"limits": Limits(memory_bytes=300 * MIB)})
    fresh.said(lent)
    elsewhere = lending(400).model_copy(update={"limits": Limits(memory_bytes=300 * MIB)})
    assert not fresh.is_news(elsewhere)  # what is lent is the same


def test_the_uplink_is_what_real_updates_took() -> None:
    fresh, sent = Freshness(lambda profile, _: profile), 0
    first = lending(1000)
    fresh.said(first)
    for at in range(SAMPLES):
        assert fresh.look(first, None, 0.0).link == first.link
        fresh.transfers(sent, 10.0 * at, busy=True)
        sent += 4 * LEAST_BYTES
        fresh.transfers(sent, 10.0 * at + 4.0, busy=False)
    found = fresh.look(first, None, 99.0)
    assert found.link is not None
    assert found.link.uplink_bps == 8 * LEAST_BYTES
    assert fresh.is_news(found)
    slow = first.model_copy(update={"limits": Limits(uplink_bps=1e5)})
    assert fresh.look(slow, None, 99.0).link.uplink_bps == 1e5  # type: ignore[union-attr]  # it has one


def test_an_agent_tells_a_change_once_and_a_steady_machine_nothing(tmp_path: Path) -> None:
    machine, desk = new_machine(tmp_path)
    free = {"mib": 1000.0}
    machine.start()
    assert machine.daemon is not None

    def measure(profile: DeviceProfile, _: int | None) -> DeviceProfile:
        return lending(free["mib"]).model_copy(update={"link": profile.link})

    machine.daemon._freshness = Freshness(measure)
    told: list[float] = []
    say = machine.daemon._mouth.say

    def listening(message: Any) -> bool:
        said = say(message)
        if said and isinstance(message, Profile):
            told.append(message.profile.memory_limit_bytes() / MIB)
        return said

    machine.daemon._mouth.say = listening  # type: ignore[method-assign]  # the desk keeps no profiles

    def idle(seconds: float) -> None:
        for _ in range(int(seconds / 10)):
            machine.now += 10.0
            machine.pump()
            desk.pump()

    idle(4 * IDLE_S)
    begun = len(told)
    assert told
    idle(4 * IDLE_S)
    free["mib"] = 980.0
    idle(2 * IDLE_S)
    assert len(told) == begun
    free["mib"] = 600.0
    idle(3 * IDLE_S)
    assert told[begun:] == [600.0]
    assert machine.daemon._state.setup.profile.memory_limit_bytes() == 600 * MIB
    machine.kill()


def test_the_limit_of_a_training_is_what_is_free_as_it_is_handed_over(tmp_path: Path) -> None:
    machine, desk = new_machine(tmp_path)
    machine.start()
    assert machine.daemon is not None
    free = [1000.0]
    machine.daemon._freshness = Freshness(lambda profile, _: lending(free[0]).model_copy(update={"link": profile.link}))
    limits: list[int] = []
    ask = machine.daemon._seat.ask

    def listening(request: Any) -> Any:
        if isinstance(request, TrainRequest):
            limits.append(request.memory_limit_bytes or 0)
        return ask(request)

    machine.daemon._seat.ask = listening  # type: ignore[method-assign]  # to see what the trainer is asked
    desk.say(desk.task(1))
    free[0] = 700.0
    for _ in range(LIMIT):
        if limits:
            break
        machine.pump()
        desk.pump()
    assert limits == [700 * MIB]
    machine.kill()
