"""An agent acts on what its coordinator said, to it, once; what the broker makes of that changes nothing."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from agent_desk import AGENT, TOPICS, Desk
from agent_in_process import Machine, new_machine, use_stub_trainer
from run_support import RUN, name_of
from sealed_support import SealedFederation

from fedpipe_agent.audit_reading import lines_of, verify
from fedpipe_agent.passport import Enrolled
from fedpipe_agent.refusals import MOST, WINDOW_S
from fedpipe_coordinator.security.authority import new_signing_key
from fedpipe_wire.certificates import load_certificate, signing_key_of
from fedpipe_wire.coordinator_messages import Ack, EndTask, RunState, TurnedAway
from fedpipe_wire.messages import encode
from fedpipe_wire.sealing import COORDINATOR, Inspector, Keys, Sealer, key_id
from fedpipe_wire.transport import Received

FEDERATION = SealedFederation()


@pytest.fixture(autouse=True)
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_stub_trainer(tmp_path, monkeypatch)


class Judge:
    """The coordinator's inspector of everything that the desk hears."""

    def __init__(self, state: Path) -> None:
        pem = (state / "identity" / "signing.crt").read_text()
        key = signing_key_of(load_certificate(pem, "signing"))
        self.keys: dict[str, Keys] = {AGENT: {key_id(key): key}}
        self.inspector = Inspector(self.keys.get, {}, frozenset({"presence", "profile"}))
        self.heard = 0

    def __call__(self, event: Received) -> None:
        address = TOPICS.parse(event.topic)
        if address.channel != "blob":
            self.inspector.inspect(address.agent or "", event)
            self.heard += 1


class JudgingDesk(Desk):
    judge: Callable[[Received], None]

    def _received(self, event: Received) -> None:
        self.judge(event)
        super()._received(event)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Machine, Desk]]:
    """An enrolled agent, and a desk that seals; whatever the desk hears is judged."""
    machine, desk = new_machine(tmp_path / "machine", acknowledges=True, sealer=FEDERATION.sealer())
    state = machine.folder / "state"
    FEDERATION.enroll(state, AGENT)
    desk.__class__ = JudgingDesk
    desk.judge = Judge(state)  # type: ignore[attr-defined]  # of the class that it has become
    machine.passport = lambda: Enrolled(state, AGENT, machine.logged.append)
    yield machine, desk
    if machine.daemon is not None:
        machine.kill()


def pump(machine: Machine, desk: Desk, until: Callable[[], object], limit: int = 2000) -> None:
    for _ in range(limit):
        if until():
            return
        moved = machine.pump()
        if not (desk.pump() or moved):
            machine.wait()
    raise AssertionError(machine.logged[-5:])


def test_a_whole_run_under_seals(place: tuple[Machine, Desk]) -> None:
    machine, desk = place
    machine.run(desk)
    assert len(desk.taken) == desk.rounds
    assert desk.judge.heard >= 7  # type: ignore[attr-defined]
    assert not [line for line in machine.logged if "refused" in line]
    machine.close()
    desk.pump()  # its will or its goodbye is let in too
    assert desk.presences[-1].state == "offline"


def test_the_will_of_a_killed_agent_is_let_in(place: tuple[Machine, Desk]) -> None:
    machine, desk = place
    machine.start()
    pump(machine, desk, lambda: desk.presences)
    machine.kill()
    desk.pump()
    assert desk.presences[-1].state == "offline"


# --- what a broker can do -----------------------------------------------------------------------------------------

ACK = TOPICS.down(AGENT, "ack")
TASK = TOPICS.down(AGENT, "task")
END = encode(EndTask(run=RUN, reason="says who?"))
FRESH = count(10**6).__next__


def _sealed(topic: str, payload: bytes, *, key: Any = FEDERATION.signing, sender: str = COORDINATOR) -> dict[str, str]:
    return Sealer(sender, FRESH, key).seal(topic, payload).properties()


def _bit(text: str) -> str:
    return ("A" if text[0] != "A" else "B") + text[1:]


HOSTILE: dict[str, tuple[str, bytes, Callable[[], dict[str, str]], str]] = {
    "nothing on its outside": (TASK, END, dict, "malformed"),
    "no seal": (TASK, END, lambda: _sealed(TASK, END, key=None), "unsigned"),
    "another's key": (TASK, END, lambda: _sealed(TASK, END, key=new_signing_key()), "unknown-key"),
    "another's key under the coordinator's name for it": (
        TASK,
        END,
        lambda: _sealed(TASK, END, key=new_signing_key()) | {"k": key_id(FEDERATION.signing.public_key())},
        "forged",
    ),
    "a seal of another sender": (TASK, END, lambda: _sealed(TASK, END, sender=AGENT), "forged"),
    "a seal of another topic": (TASK, END, lambda: _sealed(ACK, END), "forged"),
    "a seal of another agent's topic": (TASK, END, lambda: _sealed(TOPICS.down("b", "task"), END), "forged"),
    "a seal of another payload": (TASK, END, lambda: _sealed(TASK, END + b" "), "forged"),
    "another counter": (TASK, END, lambda: _sealed(TASK, END) | {"n": str(FRESH())}, "forged"),
    "another id": (TASK, END, lambda: _sealed(TASK, END) | {"id": "m"}, "forged"),
    "a changed signature": (TASK, END, lambda: (s := _sealed(TASK, END)) | {"s": _bit(s["s"])}, "forged"),
    "too many properties": (TASK, END, lambda: {f"p{n}": "" for n in range(99)}, "malformed"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_the_coordinator_did_not_say_so_is_not_acted_on_and_recorded(
    place: tuple[Machine, Desk], name: str
) -> None:
    machine, desk = place
    topic, payload, properties, fault = HOSTILE[name]
    desk.acknowledges = False
    machine.start()
    pump(machine, desk, lambda: desk.stored)
    before = machine.memory
    desk.transport.publish(topic, payload, properties=properties())
    pump(machine, desk, lambda: any("refused what came on" in line for line in machine.logged))
    machine.pump()
    assert machine.memory == before
    (line,) = [each for each in lines_of(machine.state.path) if each["kind"] == "refused"]
    assert (line["topic"], line["fault"], line["bytes"]) == (topic, fault, len(payload))
    desk.acknowledges = True
    desk.say(Ack(run=RUN, round=1, sha256=next(iter(desk.offered)), accepted=True))
    pump(machine, desk, lambda: not machine.memory.outbox)


class Spy:
    """Has seen everything that the coordinator published."""

    def __init__(self, desk: Desk) -> None:
        self.seen: list[tuple[str, bytes, dict[str, str]]] = []
        self._publish = desk.transport.publish
        desk.transport.publish = self.publish  # type: ignore[method-assign]

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, properties: Any = None) -> int | None:
        if properties:
            self.seen.append((topic, payload, dict(properties)))
        return self._publish(topic, payload, retain=retain, properties=properties)

    def again(self, *, retain: bool = False) -> None:
        for topic, payload, properties in self.seen:
            self._publish(topic, payload, retain=retain, properties=properties)


def test_nothing_is_heard_twice_not_even_after_a_kill(place: tuple[Machine, Desk]) -> None:
    machine, desk = place
    spy = Spy(desk)
    machine.run(desk)
    first = len(spy.seen)
    for _ in range(2):
        before, said, told = machine.memory, len(desk.heard), _count(machine, "was heard before")
        spy.again()
        pump(machine, desk, partial(_told, machine, told + first))
        assert machine.memory == before
        assert len(desk.heard) == said
        machine.kill()
        machine.now += 2 * WINDOW_S  # what is told of is bounded, and counted anew in the next minute
        machine.start()
        pump(machine, desk, lambda: not machine.pump())
        spy.seen = spy.seen[:first]


def _told(machine: Machine, times: int) -> bool:
    return _count(machine, "was heard before") >= times


def _count(machine: Machine, part: str) -> int:
    return sum(part in line for line in machine.logged)


def test_commands_that_a_broker_kept_are_not_acted_on(place: tuple[Machine, Desk]) -> None:
    machine, desk = place
    desk.rounds = 0
    for topic, message in ((TASK, desk.task(1)), (ACK, Ack(run=RUN, round=1, sha256=name_of("x"), accepted=True))):
        payload = encode(message)
        desk.transport.publish(topic, payload, retain=True, properties=_sealed(topic, payload))
    desk.transport.publish(TOPICS.broadcast_chunk(name_of("x"), 0), b"chunk", retain=True)
    machine.start()
    pump(machine, desk, lambda: _count(machine, "refused what came on") == 3)
    assert machine.memory.task is None


def test_the_newest_state_of_runs_counts_once_the_broker_keeps_it_and_an_older_one_does_not(
    place: tuple[Machine, Desk],
) -> None:
    machine, desk = place
    desk.rounds = 0
    topic = TOPICS.broadcast("run")
    older, newer = (encode(RunState(run=RUN, state=state, round=1)) for state in ("older", "newer"))
    seals = [desk.sealer.seal(topic, each, retain=True).properties() for each in (older, newer)]
    desk.transport.publish(topic, newer, retain=True, properties=seals[1])
    machine.start()
    pump(machine, desk, lambda: desk.presences)
    assert not _count(machine, "refused")
    desk.transport.publish(topic, older, retain=True, properties=seals[0])
    pump(machine, desk, lambda: _count(machine, "was heard before, or is older"))


def test_a_message_on_another_agents_topic_is_not_heard(place: tuple[Machine, Desk]) -> None:
    machine, desk = place
    desk.rounds = 0
    machine.start()
    pump(machine, desk, lambda: desk.presences)
    payload = encode(desk.task(1))
    for topic in (TOPICS.down("b", "task"), TOPICS.up(AGENT, "report"), "fedpipe/other/broadcast/run"):
        event = Received(topic, payload, False, _sealed(topic, payload))
        assert machine.daemon is not None
        machine.daemon._received(event)
        assert "refused what came on" in machine.logged[-1]
    assert machine.memory.task is None


def test_rubbish_without_end_fills_neither_log_nor_record(place: tuple[Machine, Desk]) -> None:
    machine, desk = place
    desk.rounds = 0
    machine.start()
    pump(machine, desk, lambda: desk.presences)
    event = Received(TASK + "\x1b[31m\n", b"{", False, {})
    assert machine.daemon is not None
    for _ in range(500):
        machine.daemon._received(event)
    machine.now += WINDOW_S
    machine.pump()
    refused = [line for line in machine.logged if "refused" in line]
    assert len(refused) == MOST + 1
    assert "480 more packets were refused" in refused[-1]
    assert not any("\x1b" in line or "\n" in line for line in refused)
    assert len([each for each in lines_of(machine.state.path) if each["kind"] == "refused"]) == MOST + 1
    verify(machine.state.path)


def test_an_old_welcome_or_dismissal_of_another_session_changes_nothing(place: tuple[Machine, Desk]) -> None:
    """Delaying is all that is left to a broker: what was said to an earlier session is for that one."""
    machine, desk = place
    desk.rounds = 0
    topic = TOPICS.down(AGENT, "presence")
    payload = encode(TurnedAway(session="session-0", reason="long ago"))
    machine.start()
    pump(machine, desk, lambda: desk.presences)
    desk.transport.publish(topic, payload, properties=_sealed(topic, payload))
    pump(machine, desk, lambda: not machine.pump())
    assert machine.daemon is not None
    assert machine.daemon._mouth.open
