"""A federation with keys while it runs: enrolled, renewed, revoked, lost and restored."""

import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest
from cryptography import x509
from enrolments import Agent, Keys, let_in, new_keys, new_office, write_agent
from federation import Federation, fedpipe, wait_for
from mosquitto_support import mosquitto_or_skip

from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.security.enrolling import revoke
from fedpipe_wire.agent_messages import Presence
from fedpipe_wire.messages import encode
from fedpipe_wire.mqtt import MqttOptions, MqttTransport
from fedpipe_wire.sealing import Sealer
from fedpipe_wire.topics import Topics
from fedpipe_wire.transport import Connected, Disconnected, Event

TOPICS = Topics("tests")


@dataclass
class Live:
    """An agent that is connected, and what came to its session."""

    name: str
    keys: Keys
    agent: Agent
    transport: MqttTransport
    events: list[Event]

    def drain(self) -> list[Event]:
        """Everything that came so far."""
        while not self.transport.events.empty():
            self.events.append(self.transport.events.get_nowait())
        return self.events

    def has(self, kind: type[Event]) -> bool:
        """Whether something of this kind came."""
        return any(isinstance(event, kind) for event in self.drain())

    def say_hello(self, federation: Federation) -> None:
        """Tell the coordinator that it is there, and wait until it says that it heard."""
        topic = TOPICS.up(self.name, "presence")
        payload = encode(Presence(state="online", session=f"s-{self.name}"))
        sealer = Sealer(self.name, count(1).__next__, self.keys.signing)
        outside = sealer.seal(topic, payload, retain=True)
        assert self.transport.publish(topic, payload, retain=True, properties=outside.properties()) is not None
        up = federation.children["coordinator"]
        wait_for("it is online", lambda: f"agent {self.name} is online" in up.log.read_text(), [up])


class Federations:
    """A federation with keys, and agents of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.federation = Federation(folder)
        self.live: list[Live] = []

    def init(self) -> None:
        """What `fedpipe init` makes."""
        self.office = new_office(self.federation.home, datetime.now(UTC), port=self.federation.port)

    def enrol(self, name: str) -> tuple[Keys, Agent]:
        """What `fedpipe enroll` does, and what the agent keeps of its bundle."""
        keys = new_keys()
        done = let_in(self.office, name, keys, datetime.now(UTC))
        return keys, write_agent(self.folder / f"agent-{name}", keys, done)

    def join(self, name: str) -> Live:
        """Enrol an agent and connect it."""
        keys, agent = self.enrol(name)
        options = MqttOptions(backoff_max_s=0.5)
        transport = MqttTransport("127.0.0.1", self.federation.port, name, tls=agent.context, options=options)
        transport.subscribe(TOPICS.all_down(name))
        transport.start()
        live = Live(name, keys, agent, transport, [])
        self.live.append(live)
        wait_for(f"{name} is connected", lambda: live.has(Connected), [self.federation.children["coordinator"]])
        return live

    def up(self) -> None:
        """`fedpipe up`, until it is connected."""
        up = self.federation.up()
        wait_for("it is connected", lambda: "connected to the broker" in up.log.read_text(), [up])

    def log(self) -> str:
        """What the coordinator said."""
        return self.federation.children["coordinator"].log.read_text()

    def wait(self, what: str, condition: Callable[[], object]) -> None:
        """Wait for something while the coordinator lives."""
        wait_for(what, condition, [self.federation.children["coordinator"]])

    def served(self, agent: Agent) -> x509.Certificate:
        """The certificate that the broker shows now."""
        address = ("127.0.0.1", self.federation.port)
        context = agent.context()
        with socket.create_connection(address) as plain, context.wrap_socket(plain, server_hostname=address[0]) as tls:
            data = tls.getpeercert(binary_form=True)
        assert data is not None
        return x509.load_der_x509_certificate(data)


@pytest.fixture
def federations(tmp_path: Path) -> Iterator[Federations]:
    mosquitto_or_skip()
    made = Federations(tmp_path)
    with made.federation:
        made.init()
        yield made
        for live in made.live:
            live.transport.stop()


@pytest.mark.slow
def test_a_federation_lives_through_enrolment_renewal_and_revocation(federations: Federations) -> None:
    federations.up()
    assert "INSECURE" not in federations.log()
    north, south = federations.join("north"), federations.join("south")
    north.say_hello(federations.federation)

    before = federations.served(north.agent).serial_number
    assert federations.federation.ask("renew").code == 0
    federations.wait("the new certificate is served", lambda: federations.served(south.agent).serial_number != before)
    assert not north.has(Disconnected)
    assert not south.has(Disconnected)
    assert "no connection to the broker" not in federations.log()

    checked = federations.federation.ask("doctor", "--format", "json")
    shown = checked.json()
    assert shown["sound"], shown
    assert len(shown["checks"]) > 20

    assert federations.federation.ask("revoke", "north", "--yes", "--reason", "stolen").code == 0
    federations.wait("its connection is dropped", lambda: north.has(Disconnected))
    federations.wait("the other is back", lambda: Connected(resumed=True) in south.drain())
    assert "agent north: its enrolment is revoked" in federations.log()
    shown = federations.federation.ask("agents", "--format", "json").json()
    assert {name: entry["state"] for name, entry in shown["enrolled"].items()} == {
        "north": "revoked",
        "south": "enrolled",
    }
    assert shown["running"] is True
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _log_in(north.agent, federations.federation.port)
    assert sum(isinstance(event, Connected) for event in north.drain()) == 1


def _log_in(agent: Agent, port: int) -> bytes:
    """The answer to a login; raises where the broker closes the connection."""
    host, context = "127.0.0.1", agent.context()
    with socket.create_connection((host, port)) as plain, context.wrap_socket(plain, server_hostname=host) as tls:
        tls.sendall(bytes.fromhex("10 0d 00 04 4d 51 54 54 05 02 00 3c 00 00 00"))
        if not (answer := tls.recv(4)):
            raise ConnectionResetError("it was closed")
        return answer


@pytest.mark.slow
def test_a_lost_folder_is_restored_from_a_copy_and_goes_on(federations: Federations, tmp_path: Path) -> None:
    federations.up()
    north = federations.join("north")
    _, gone = federations.enrol("gone")
    revoke("gone", federations.office.files, datetime.now(UTC), "left")
    up = federations.federation.children["coordinator"]
    up.process.terminate()
    assert up.process.wait(60) == 0
    home = federations.federation.home
    shutil.copytree(home, tmp_path / "backup")
    shutil.rmtree(home)
    shutil.copytree(tmp_path / "backup", home)
    federations.up()
    federations.wait("north is back", lambda: sum(isinstance(event, Connected) for event in north.drain()) == 2)
    assert _log_in(north.agent, federations.federation.port)[0] == 0x20
    with pytest.raises((ssl.SSLError, ConnectionError)):
        _log_in(gone, federations.federation.port)


def test_a_key_that_others_may_read_keeps_the_coordinator_from_starting(federations: Federations) -> None:
    home = federations.federation.home
    (home / "keys" / "login.key").chmod(0o644)
    ended = fedpipe("up", home)
    assert ended.code == ExitCode.CREDENTIALS_UNUSABLE
    assert "chmod 600" in ended.said
    assert "Traceback" not in ended.said


def test_without_tls_it_is_shouted_at_every_start(tmp_path: Path) -> None:
    mosquitto_or_skip()
    with Federation(tmp_path) as federation:
        federation.init()
        up = federation.up()
        wait_for("it is connected", lambda: "connected to the broker" in up.log.read_text(), [up])
        assert "INSECURE: no TLS, no keys, no signatures" in up.log.read_text()
