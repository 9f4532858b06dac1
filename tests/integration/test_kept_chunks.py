"""A hostile agent asks a real broker to keep chunks: they are refused, recorded, and forgotten by the broker."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from enrolments import let_in, new_keys, new_office, write_agent
from mosquitto_support import mosquitto_or_skip

from fedpipe_coordinator.broker.managed import ManagedBroker
from fedpipe_coordinator.exchange import Exchange, Said
from fedpipe_coordinator.federation import guard_of
from fedpipe_coordinator.security.credentials import Credentials, load_credentials
from fedpipe_coordinator.serve import _OPTIONS
from fedpipe_wire.agent_messages import Presence
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.messages import encode
from fedpipe_wire.mqtt import MqttOptions, MqttTransport
from fedpipe_wire.sealing import RETAINED_BY_AGENTS, Inspector, Sealer, key_id
from fedpipe_wire.topics import Topics
from fedpipe_wire.transport import Connected, Event, Received, Transport

PATIENCE_S = 20.0
TOPICS = Topics("tests")


def until(transport: Transport, kind: type[Event]) -> Event:
    """The next event of a kind."""
    while not isinstance(event := transport.events.get(timeout=PATIENCE_S), kind):
        pass
    return event


class Scene:
    """A broker with the access list, the coordinator's side of it, and an agent that was enrolled."""

    def __init__(self, folder: Path) -> None:
        now = datetime.now(UTC)
        self.office, self.keys, self.said = new_office(folder / "home", now), new_keys(), list[str]()
        self.agent = write_agent(folder / "agent", self.keys, let_in(self.office, "north", self.keys, now))
        self.credentials: Credentials = load_credentials(self.office.home, "tests", now)
        self.broker = ManagedBroker(
            self.office.home.broker, guard=guard_of(self.office.home), context=self.credentials.context
        )
        self.broker.start()
        key = self.keys.signing.public_key()
        judge = Inspector({"north": {key_id(key): key}}.get, {}, RETAINED_BY_AGENTS)
        self.line = self.session("coordinator", _OPTIONS)
        store = BlobStore(folder / "blobs")
        numbers = iter(range(1, 100))
        sealer = self.credentials.sealer(numbers.__next__)
        self.exchange = Exchange(self.line, TOPICS, store, sealer, judge, self.said.append)
        self.exchange.start()
        until(self.line, Connected)
        self.north = MqttTransport("127.0.0.1", self.broker.port, "north", tls=self.agent.context)
        self.north.start()
        until(self.north, Connected)

    def session(self, name: str, options: MqttOptions) -> MqttTransport:
        """One of the coordinator's."""
        return MqttTransport("127.0.0.1", self.broker.port, name, tls=self.credentials.context, options=options)

    def stop(self) -> None:
        """End all of it."""
        self.north.stop()
        self.exchange.stop()
        self.broker.stop()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    mosquitto_or_skip()
    made = Scene(tmp_path)
    yield made
    made.stop()


def test_what_an_agent_has_kept_on_chunk_topics_is_refused_recorded_and_forgotten(scene: Scene) -> None:
    topics = [f"fedpipe/tests/agents/north/up/blob/{what}/{number}" for what in ("ab" * 32, "junk") for number in "01"]
    for topic in [*topics, f"{topics[0][:-1]}presence"]:
        assert scene.north.publish(topic, b"x" * 1000, retain=True)
    presence = TOPICS.up("north", "presence")
    payload = encode(Presence(state="online", session="1"))
    seal = Sealer("north", iter([1]).__next__, scene.keys.signing).seal(presence, payload, retain=True)
    assert scene.north.publish(presence, payload, retain=True, properties=seal.properties())
    heard, forgotten = list[Said](), 0
    # The words to forget come back to who said them: that tells that the broker took them.
    while not heard or forgotten < 5:
        event = until(scene.line, Received)
        assert isinstance(event, Received)
        forgotten += event.payload == b""
        heard += list(scene.exchange.received(event))
    assert [each.agent for each in heard] == ["north"], "a live presence, marked to be kept, is heard"
    assert scene.exchange.refusals.counts == {"retained": 5}
    assert all("as of north" in line for line in scene.said)
    later = scene.session("later", MqttOptions())
    later.subscribe(TOPICS.all_up())
    later.start()
    until(later, Connected)
    mark = TOPICS.up("north", "report")
    assert scene.north.publish(mark, b"mark")
    kept = list[str]()
    while mark not in kept:
        event = until(later, Received)
        assert isinstance(event, Received)
        kept.append(event.topic)
    later.stop()
    assert kept == [presence, mark]
    assert scene.exchange.refusals.counts == {"retained": 5}
