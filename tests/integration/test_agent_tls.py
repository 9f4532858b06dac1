"""TLS with a real broker: what a person is told of each way in which it fails, and that it is tried again."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mosquitto_support import running_mosquitto
from sealed_support import HOST, SealedFederation, TlsBroker, tls_broker

from fedpipe_agent.passport import Enrolled
from fedpipe_wire.mqtt import MqttOptions, MqttTransport
from fedpipe_wire.transport import Connected, Disconnected, Event

FEDERATION, OTHER = SealedFederation(), SealedFederation()
LIMIT_S = 20.0
QUICK = MqttOptions(backoff_min_s=0.02, backoff_max_s=0.1)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsBroker]:
    with tls_broker(tmp_path_factory.mktemp("tls") / "broker", FEDERATION) as running:
        yield running


@dataclass
class Caller:
    """An agent's session, and what came of it."""

    transport: MqttTransport
    seen: list[Event] = field(default_factory=list)

    def until(self, test: Callable[[Event], bool]) -> Event:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            event = self.transport.events.get(timeout=LIMIT_S)
            self.seen.append(event)
            if test(event):
                return event
        raise AssertionError(self.seen)

    def reason(self) -> str:
        """Why it is not connected, and it goes on trying."""
        event = self.until(lambda each: isinstance(each, Disconnected))
        assert isinstance(event, Disconnected)
        assert not event.final
        return event.reason


@contextlib.contextmanager
def calling(state: Path, host: str, port: int, name: str = "a") -> Iterator[Caller]:
    passport = Enrolled(state, name, lambda _: None)
    transport = MqttTransport(host, port, f"test-{state.name}", tls=passport.context, options=QUICK)
    transport.start()
    try:
        yield Caller(transport)
    finally:
        transport.stop()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    FEDERATION.enroll(tmp_path / "state", "a")
    return tmp_path / "state"


def up(event: Event) -> bool:
    return isinstance(event, Connected)


def test_who_is_enrolled_is_let_in(broker: TlsBroker, state: Path) -> None:
    with calling(state, HOST, broker.port) as caller:
        caller.until(up)


def test_an_agent_of_another_federation_is_told_and_so_is_the_broker(broker: TlsBroker, tmp_path: Path) -> None:
    OTHER.enroll(tmp_path / "state", "a")
    with calling(tmp_path / "state", HOST, broker.port) as caller:
        assert "its certificate is not of this federation" in caller.reason()


def test_a_certificate_that_the_broker_does_not_know_is_told(broker: TlsBroker, tmp_path: Path) -> None:
    """It knows the broker's federation, and holds a certificate of another one."""
    OTHER.enroll(tmp_path / "state", "a")
    passport = Enrolled(tmp_path / "state", "a", lambda _: None)
    pem = broker.folder / "ca.crt"
    (tmp_path / "state" / "identity" / "ca.crt").write_bytes(pem.read_bytes())
    transport = MqttTransport(HOST, broker.port, "stranger", tls=passport.context, options=QUICK)
    transport.start()
    reason = Caller(transport).reason()
    transport.stop()
    assert "the broker refuses this machine's certificate: it is not of the broker's federation" in reason


def test_another_name_than_the_brokers_is_told(broker: TlsBroker, state: Path) -> None:
    broker.certify(hosts=("broker.example.org", "10.1.2.3"))
    broker.stop()
    broker.start()
    with calling(state, HOST, broker.port) as caller:
        assert f"its certificate is not for the name '{HOST}'" in caller.reason()
        broker.certify()
        broker.stop()
        broker.start()
        caller.until(up)


def test_a_broker_whose_certificate_has_expired_is_told_with_the_clocks_time(broker: TlsBroker, state: Path) -> None:
    broker.certify(days=-3)
    broker.stop()
    broker.start()
    with calling(state, HOST, broker.port) as caller:
        reason = caller.reason()
        assert "its certificate has expired, and this machine's clock says 20" in reason
        assert "set the clock" in reason
    broker.certify()
    broker.stop()
    broker.start()


def test_an_agent_that_is_revoked_is_told_again_and_again_and_does_not_spin(broker: TlsBroker, state: Path) -> None:
    with calling(state, HOST, broker.port) as caller:
        caller.until(up)
        broker.revoke("a")
        broker.stop()
        broker.start()
        caller.until(lambda e: isinstance(e, Disconnected) and "it was revoked" in e.reason)
        opened = caller.transport._session._number
        time.sleep(10 * QUICK.backoff_max_s)
        tried = caller.transport._session._number - opened
        assert 1 <= tried <= 12
        broker.revoke()
        broker.stop()
        broker.start()
        caller.until(up)


def test_a_broker_that_speaks_no_tls_is_told(state: Path, tmp_path: Path) -> None:
    with running_mosquitto(tmp_path / "plain") as plain, calling(state, HOST, plain.port) as caller:
        reason = caller.reason()
        told = ("no TLS can be spoken with it", "or is no broker with TLS")
        assert any(part in reason for part in told)


def test_keys_that_others_can_read_are_not_shown_to_a_broker(broker: TlsBroker, state: Path) -> None:
    with calling(state, HOST, broker.port) as caller:
        caller.until(up)
        (state / "identity" / "login.key").unlink()
        broker.stop()
        broker.start()
        caller.until(lambda e: isinstance(e, Disconnected) and "cannot log in with" in e.reason)
