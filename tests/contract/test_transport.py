"""What every `Transport` promises, shown on the in-memory broker and on a real Mosquitto."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty
from typing import Protocol, TypeVar, cast

import pytest
from mosquitto_support import Mosquitto, running_mosquitto

from fedpipe_wire.memory import MemoryBroker, MemoryTransport
from fedpipe_wire.mqtt import MqttOptions, MqttTransport
from fedpipe_wire.transport import (
    Connected,
    Delivered,
    Disconnected,
    Event,
    Received,
    Transport,
    TransportError,
    Will,
)

PATIENCE_S = 20.0
E = TypeVar("E", bound=Event)


class Place(Protocol):
    """A broker under test."""

    def client(
        self, name: str, *, will: Will | None = None, credentials: tuple[str, str] | None = None
    ) -> Transport: ...
    def lose(self, transport: Transport) -> None:
        """Break a session as the death of its process would."""
        ...

    def kill(self) -> None: ...
    def start(self, *, empty: bool) -> None: ...


class MemoryPlace:
    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker

    def client(
        self, name: str, *, will: Will | None = None, credentials: tuple[str, str] | None = None
    ) -> MemoryTransport:
        return MemoryTransport(self.broker, name, will=will, credentials=credentials)

    def lose(self, transport: Transport) -> None:
        cast("MemoryTransport", transport).kill()

    def kill(self) -> None:
        self.broker.stop()

    def start(self, *, empty: bool) -> None:
        self.broker.start(empty=empty)


class MosquittoPlace:
    def __init__(self, broker: Mosquitto) -> None:
        self.broker = broker

    def client(
        self, name: str, *, will: Will | None = None, credentials: tuple[str, str] | None = None
    ) -> MqttTransport:
        options = MqttOptions(backoff_min_s=0.05, backoff_max_s=0.2)
        return MqttTransport(
            self.broker.host, self.broker.port, name, will=will, credentials=credentials, options=options
        )

    def lose(self, transport: Transport) -> None:
        break_socket(cast("MqttTransport", transport))

    def kill(self) -> None:
        self.broker.kill()

    def start(self, *, empty: bool) -> None:
        self.broker.restart(empty=empty)


def break_socket(transport: MqttTransport) -> None:
    link = transport._session._link
    assert link is not None
    link._client.socket().shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]  # paho's socket, behind two borders


@contextlib.contextmanager
def place_of(kind: str, folder: Path, passwords: Sequence[str] = ()) -> Iterator[Place]:
    if kind == "memory":
        users = dict(line.split(":", 1) for line in passwords)
        yield MemoryPlace(MemoryBroker(passwords=users or None))
        return
    extra: list[str] = ["allow_anonymous false"] if passwords else []
    with running_mosquitto(folder, extra) as broker:
        yield MosquittoPlace(broker)


@pytest.fixture(params=["memory", "mosquitto"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(kind: str, tmp_path: Path) -> Iterator[Place]:
    with place_of(kind, tmp_path / "broker") as found:
        yield found


Open = Callable[..., Transport]


@pytest.fixture
def opened(place: Place) -> Iterator[Open]:
    """Opens sessions that are up, with their subscriptions, and stops them at the end."""
    transports: list[Transport] = []

    def open_one(name: str, *patterns: str, will: Will | None = None) -> Transport:
        transport = place.client(name, will=will)
        for pattern in patterns:
            transport.subscribe(pattern)
        transports.append(transport)
        transport.start()
        wait_for(transport, Connected)
        return transport

    yield open_one
    for transport in transports:
        transport.stop()


def wait_for(transport: Transport, kind: type[E], test: Callable[[E], bool] = lambda _: True) -> E:
    """The next event of this kind that passes the test; others are dropped."""
    deadline = time.monotonic() + PATIENCE_S
    seen: list[Event] = []
    while True:
        try:
            event = transport.events.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            pytest.fail(f"no {kind.__name__} within {PATIENCE_S} s; came: {seen}")
        if isinstance(event, kind) and test(event):
            return event
        seen.append(event)


def send(transport: Transport, topic: str, payload: bytes = b"x", *, retain: bool = False) -> int:
    handle = transport.publish(topic, payload, retain=retain)
    assert handle is not None
    return handle


def test_a_message_reaches_its_subscriber_with_its_properties(opened: Open) -> None:
    reader, writer = opened("reader", "a/b"), opened("writer")
    handle = writer.publish("a/b", b'{"k": 1}', properties={"v": "1", "id": "m-1", "n": "7"})
    received = wait_for(reader, Received)
    expected = Received("a/b", b'{"k": 1}', retained=False, properties={"v": "1", "id": "m-1", "n": "7"})
    assert received == expected
    assert wait_for(writer, Delivered) == Delivered(handle or -1)


def test_every_publication_is_delivered_and_in_its_order(opened: Open) -> None:
    reader, writer = opened("reader", "a/#"), opened("writer")
    handles = [send(writer, "a/b", str(number).encode()) for number in range(200)]
    came = [wait_for(reader, Received).payload for _ in handles]
    assert came == [str(number).encode() for number in range(200)]
    assert sorted(wait_for(writer, Delivered).handle for _ in handles) == handles
    assert len(set(handles)) == 200


def test_a_retained_message_waits_for_those_who_come_later(opened: Open) -> None:
    writer = opened("writer")
    send(writer, "state/one", b"old", retain=True)
    send(writer, "state/one", b"new", retain=True)
    wait_for(writer, Delivered)
    wait_for(writer, Delivered)
    reader = opened("reader", "state/+")
    assert wait_for(reader, Received) == Received("state/one", b"new", retained=True)
    send(writer, "state/one", b"newest", retain=True)
    assert wait_for(reader, Received).retained is False


def test_an_empty_retained_message_forgets_the_last_one(opened: Open) -> None:
    writer = opened("writer")
    for payload in (b"something", b""):
        send(writer, "state/one", payload, retain=True)
        wait_for(writer, Delivered)
    reader = opened("reader", "state/+")
    send(writer, "state/two", b"marker")
    assert wait_for(reader, Received).topic == "state/two"


@pytest.mark.parametrize(
    ("pattern", "topics"),
    [
        ("f/x/agents/+/up/#", ["f/x/agents/one/up/report", "f/x/agents/two/up/blob/00/3"]),
        ("f/+/broadcast/run", ["f/x/broadcast/run", "f/y/broadcast/run"]),
        ("f/x/broadcast/#", ["f/x/broadcast/run"]),
        ("f/x/agents/one/up/report", ["f/x/agents/one/up/report"]),
    ],
)
def test_wildcards_choose_whole_levels(opened: Open, pattern: str, topics: list[str]) -> None:
    reader, writer = opened("reader", pattern, "end"), opened("writer")
    everything = [
        "f/x/agents/one/up/report",
        "f/x/agents/two/up/blob/00/3",
        "f/x/agents/one/down/task",
        "f/x/broadcast/run",
        "f/y/broadcast/run",
    ]
    for topic in everything:
        send(writer, topic)
    send(writer, "end")
    came: list[str] = []
    while (topic := wait_for(reader, Received).topic) != "end":
        came.append(topic)
    assert came == topics


def test_a_subscription_may_be_added_while_connected(opened: Open) -> None:
    both = opened("both", "first")
    both.subscribe("second/#")
    send(both, "second/x", b"retained", retain=True)
    assert wait_for(both, Received).topic == "second/x"


def test_the_will_is_sent_when_a_session_dies_and_is_retained(place: Place, opened: Open) -> None:
    reader = opened("reader", "presence/#")
    mortal = opened("mortal", will=Will("presence/mortal", b"offline", {"v": "1"}))
    place.lose(mortal)
    died = wait_for(reader, Received)
    assert (died.topic, died.payload, dict(died.properties)) == ("presence/mortal", b"offline", {"v": "1"})
    later = opened("later", "presence/#")
    assert wait_for(later, Received).retained is True


def test_the_will_is_not_sent_after_a_goodbye(opened: Open) -> None:
    reader = opened("reader", "presence/#", "end")
    polite = opened("polite", will=Will("presence/polite", b"offline"))
    send(polite, "presence/polite", b"bye")
    polite.stop()
    send(reader, "end")
    assert wait_for(reader, Received).payload == b"bye"
    assert wait_for(reader, Received).topic == "end"


def test_what_was_published_before_stop_arrives(opened: Open) -> None:
    reader, writer = opened("reader", "a/#"), opened("writer")
    for number in range(60):
        send(writer, "a/b", str(number).encode())
    writer.stop()
    assert [wait_for(reader, Received).payload for _ in range(60)] == [str(n).encode() for n in range(60)]
    assert not writer.connected
    assert writer.publish("a/b", b"late") is None


def test_nothing_is_queued_while_the_session_is_down(place: Place, opened: Open) -> None:
    writer = opened("writer", "a/#")
    place.kill()
    wait_for(writer, Disconnected, lambda event: not event.final)
    assert not writer.connected
    assert writer.publish("a/b", b"lost") is None
    place.start(empty=True)
    wait_for(writer, Connected)
    send(writer, "a/b", b"heard")
    assert wait_for(writer, Received).payload == b"heard"


def test_a_broker_that_comes_back_empty_is_subscribed_again(place: Place, opened: Open) -> None:
    reader, writer = opened("reader", "a/#", "b/+"), opened("writer")
    place.kill()
    wait_for(reader, Disconnected)
    wait_for(writer, Disconnected)
    place.start(empty=True)
    assert wait_for(reader, Connected) == Connected(resumed=False)
    wait_for(writer, Connected)
    send(writer, "b/one", b"again")
    assert wait_for(reader, Received).payload == b"again"


def test_messages_for_a_session_that_is_away_wait_for_it(place: Place, opened: Open) -> None:
    reader, writer = opened("reader", "a/#"), opened("writer")
    reader.stop()
    send(writer, "a/b", b"while away")
    wait_for(writer, Delivered)
    again = place.client("reader")
    again.subscribe("a/#")
    again.start()
    assert wait_for(again, Connected) == Connected(resumed=True)
    assert wait_for(again, Received).payload == b"while away"
    again.stop()


def test_a_broker_that_is_not_there_is_told_and_waited_for(place: Place) -> None:
    place.kill()
    early = place.client("early")
    early.start()
    down = wait_for(early, Disconnected)
    assert not down.final
    assert "cannot reach the broker" in down.reason
    place.start(empty=True)
    wait_for(early, Connected)
    early.stop()


def test_a_refused_login_is_final_and_says_what_to_do(kind: str, tmp_path: Path) -> None:
    with place_of(kind, tmp_path / "closed", ["somebody:secret"]) as place:
        stranger = place.client("stranger", credentials=("somebody", "guess"))
        stranger.start()
        down = wait_for(stranger, Disconnected)
        assert down.final
        assert "refused the login" in down.reason
        assert not stranger.connected
        assert stranger.publish("a", b"") is None
        stranger.stop()


def test_a_packet_over_the_brokers_limit_is_refused_with_both_values(opened: Open) -> None:
    writer = opened("writer", "a")
    with pytest.raises(TransportError, match=r"packet of 2000\d+ bytes .* limit is 2000000"):
        writer.publish("a", bytes(2_000_000))
    send(writer, "a", bytes(1_900_000))
    assert len(wait_for(writer, Received).payload) == 1_900_000


@pytest.mark.parametrize("topic", ["", "a/+/b", "a/#"])
def test_a_topic_that_cannot_be_published_to_is_refused(opened: Open, topic: str) -> None:
    with pytest.raises(TransportError, match="cannot be published"):
        opened("writer").publish(topic, b"")


def test_a_second_start_is_refused_and_a_second_stop_is_nothing(opened: Open) -> None:
    transport = opened("one")
    with pytest.raises(TransportError, match="started before"):
        transport.start()
    transport.stop()
    transport.stop()


def test_a_second_session_of_one_identity_ends_the_first(place: Place, opened: Open) -> None:
    older = opened("same")
    newer = place.client("same")
    newer.start()
    assert wait_for(newer, Connected).resumed is True
    wait_for(older, Disconnected)
    newer.stop()


# --- what only a network can do ---------------------------------------------------------------------------------


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    with running_mosquitto(tmp_path / "broker") as broker:
        yield broker


def test_a_cut_in_mid_stream_loses_nothing_and_keeps_the_order(mosquitto: Mosquitto) -> None:
    options = MqttOptions(backoff_min_s=0.05, max_in_flight=8)
    reader = MqttTransport(mosquitto.host, mosquitto.port, "reader")
    writer = MqttTransport(mosquitto.host, mosquitto.port, "writer", options=options)
    reader.subscribe("a/#")
    for transport in (reader, writer):
        transport.start()
        wait_for(transport, Connected)
    handles = [send(writer, "a/b", str(number).encode() * 1000) for number in range(100)]
    wait_for(writer, Delivered)
    break_socket(writer)
    delivered = {wait_for(writer, Delivered).handle for _ in handles[1:]}
    assert delivered == set(handles[1:])
    came: list[bytes] = []
    while len(set(came)) < 100:
        came.append(wait_for(reader, Received).payload)
    firsts = list(dict.fromkeys(came))
    assert firsts == [str(number).encode() * 1000 for number in range(100)]
    assert len(came) - 100 <= 8  # nothing is sent twice beyond what was in flight
    for transport in (reader, writer):
        transport.stop()


def test_a_cut_of_the_reader_repeats_no_more_than_it_lets_be_on_the_way(mosquitto: Mosquitto) -> None:
    options = MqttOptions(backoff_min_s=0.05, receive_maximum=4)
    reader = MqttTransport(mosquitto.host, mosquitto.port, "reader", options=options)
    writer = MqttTransport(mosquitto.host, mosquitto.port, "writer")
    reader.subscribe("a/#")
    for transport in (reader, writer):
        transport.start()
        wait_for(transport, Connected)
    for number in range(300):
        send(writer, "a/b", str(number).encode() * 1000)
    came = [wait_for(reader, Received).payload]
    break_socket(reader)
    while len(set(came)) < 300:
        came.append(wait_for(reader, Received).payload)
    assert list(dict.fromkeys(came)) == [str(number).encode() * 1000 for number in range(300)]
    assert len(came) - 300 <= 4
    for transport in (reader, writer):
        transport.stop()


def test_a_broker_killed_in_mid_stream_that_comes_back_empty_gets_what_it_had_not_acknowledged(
    mosquitto: Mosquitto,
) -> None:
    options = MqttOptions(backoff_min_s=0.05, backoff_max_s=0.2, max_in_flight=8)
    reader = MqttTransport(mosquitto.host, mosquitto.port, "reader", options=options)
    writer = MqttTransport(mosquitto.host, mosquitto.port, "writer", options=options)
    reader.subscribe("a/#")
    for transport in (reader, writer):
        transport.start()
        assert wait_for(transport, Connected) == Connected(resumed=False)
    handles = [send(writer, "a/b", str(number).encode() * 1000) for number in range(500)]
    wait_for(writer, Delivered)
    mosquitto.kill()
    delivered = 1
    events: list[Event] = []
    while not isinstance(events[-1] if events else None, Disconnected):
        events.append(writer.events.get(timeout=PATIENCE_S))
        delivered += isinstance(events[-1], Delivered)
    assert writer.publish("a/b", b"refused") is None
    mosquitto.restart(empty=True)
    assert wait_for(writer, Connected) == Connected(resumed=False)
    assert writer.resent <= 8
    for _ in handles[delivered:]:
        wait_for(writer, Delivered)
    for transport in (reader, writer):
        transport.stop()


def test_a_session_is_resumed_only_where_the_broker_kept_it(mosquitto: Mosquitto) -> None:
    options = MqttOptions(backoff_min_s=0.05, backoff_max_s=0.2)
    client = MqttTransport(mosquitto.host, mosquitto.port, "client", options=options)
    client.subscribe("a/#")
    client.start()
    assert wait_for(client, Connected) == Connected(resumed=False)
    break_socket(client)
    assert wait_for(client, Connected) == Connected(resumed=True)
    mosquitto.restart(empty=True)
    assert wait_for(client, Connected) == Connected(resumed=False)
    client.stop()


def test_a_broker_that_stops_answering_is_noticed_and_waited_for(mosquitto: Mosquitto) -> None:
    options = MqttOptions(keepalive_s=1, answer_s=0.5, backoff_min_s=0.05, backoff_max_s=0.2)
    client = MqttTransport(mosquitto.host, mosquitto.port, "client", options=options)
    client.subscribe("a/#")
    client.start()
    wait_for(client, Connected)
    with mosquitto.frozen():  # the kernel still accepts connections for it
        assert not wait_for(client, Disconnected).final
        assert client.publish("a/b", b"refused") is None
        again = wait_for(client, Disconnected)
        assert "did not answer as an MQTT 5 broker within 0.5 s" in again.reason
    wait_for(client, Connected)
    send(client, "a/b", b"heard")
    assert wait_for(client, Received, lambda event: not event.retained).payload == b"heard"
    client.stop()


@contextlib.contextmanager
def answering_server(answer: bytes) -> Iterator[int]:
    """A TCP server that answers every connection's first bytes with `answer`; its port."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)
                    connection.recv(1000)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE_S)


@pytest.mark.parametrize(
    ("answer", "final", "words"),
    [
        (bytes.fromhex("20020001"), True, "does not speak MQTT 5"),
        (bytes.fromhex("2003008500"), True, "client identifier"),
        (bytes.fromhex("2003008800"), False, "refused the login"),
        (bytes.fromhex("20050000022400"), True, "does not offer MaximumQoS"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, "did not answer as an MQTT 5 broker"),
        (bytes.fromhex("200200fe"), False, "lost"),
        (b"", False, "did not answer as an MQTT 5 broker"),
    ],
)
def test_a_server_that_is_no_fit_broker_is_told_apart(answer: bytes, final: bool, words: str) -> None:  # noqa: FBT001 -- a table's column
    with answering_server(answer) as port:
        transport = MqttTransport("127.0.0.1", port, "one", options=MqttOptions(answer_s=0.3))
        transport.start()
        down = wait_for(transport, Disconnected)
        assert words in down.reason
        assert down.final is final
        transport.stop()


def test_the_configured_maximum_counts_before_the_broker_has_spoken() -> None:
    transport = MqttTransport("127.0.0.1", 1, "one", options=MqttOptions(max_packet_bytes=1000))
    with pytest.raises(TransportError, match="the limit is 1000"):
        transport.publish("a", bytes(1000))


def _pair(mosquitto: Mosquitto, max_takeovers: int) -> tuple[MqttTransport, MqttTransport]:
    options = MqttOptions(backoff_min_s=0.05, backoff_max_s=0.1, max_takeovers=max_takeovers)
    first, second = (MqttTransport(mosquitto.host, mosquitto.port, "same", options=options) for _ in range(2))
    for each in (first, second):
        each.subscribe("a/#")
    return first, second


def test_two_of_one_identity_do_not_take_turns_for_ever(mosquitto: Mosquitto) -> None:
    first, second = _pair(mosquitto, max_takeovers=6)
    first.start()
    wait_for(first, Connected)
    second.start()
    ends: list[Disconnected] = []
    while not any(end.final for end in ends):
        for each in (first, second):
            while not each.events.empty():
                event = each.events.get()
                ends += [event] if isinstance(event, Disconnected) else []
        time.sleep(0.01)
    (final,) = [end for end in ends if end.final]
    assert "Stop one of the two" in final.reason
    left = next(each for each in (first, second) if each._session.phase != "ended")
    if not left.connected:
        wait_for(left, Connected)
    for each in (first, second):
        each.stop()


def test_a_broker_that_is_killed_again_and_again_is_no_rival(mosquitto: Mosquitto) -> None:
    (only, _) = _pair(mosquitto, max_takeovers=2)
    only.start()
    for _ in range(4):
        wait_for(only, Connected)
        mosquitto.kill()
        assert not wait_for(only, Disconnected).final
        wait_for(only, Disconnected, lambda event: "cannot reach" in event.reason)
        mosquitto.restart(empty=False)
    wait_for(only, Connected)
    only.stop()
