"""A real broker and real sessions with seals and no TLS: somebody on the wire changes what the broker delivers."""

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from queue import Empty

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mosquitto_support import Mosquitto, running_mosquitto
from office import TOPICS, Office
from run_support import device, job, survey
from tampering_proxy import Proxy, Published, in_the_middle

from fedpipe_coordinator.audit.federation_audit import FederationAudit
from fedpipe_coordinator.audit.sources import AuditSources
from fedpipe_coordinator.exchange import TransferDone
from fedpipe_coordinator.home import Home
from fedpipe_wire.agent_messages import AgentMessage, Presence, Profile
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_pumps import BlobSender
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.coordinator_messages import BlobRequest
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.messages import decode_from_coordinator
from fedpipe_wire.mqtt import MqttTransport
from fedpipe_wire.sealing import RETAINED_BY_AGENTS, Sealer
from fedpipe_wire.transport import Connected, Delivered, Received

LIMIT_S = 30.0
Change = Callable[[Published], Published]


class RealOffice(Office):
    """The coordinator's sessions go to a real broker, through somebody else; its agent's go to the broker itself."""

    def __init__(self, folder: Path, broker: Mosquitto, proxy: Proxy) -> None:
        self.real, self.proxy = broker, proxy
        super().__init__(folder, sealed=True)
        self.line = MqttTransport(broker.host, broker.port, "fedpipe-tests-agent-a")
        self.line.subscribe(TOPICS.all_down("a"))
        self.line.start()
        self.until(lambda: self.line.connected)

    def session(self) -> MqttTransport:
        return MqttTransport("127.0.0.1", self.proxy.port, "fedpipe-tests-coordinator")

    def stop(self) -> None:
        self.line.stop()
        super().stop()

    def until(self, holds: Callable[[], bool]) -> None:
        """Handle what comes until something holds."""
        deadline = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < deadline, self.said[-5:]
            wake = self.service._exchange.tick(time.monotonic())
            try:
                event = self.service._queue.get(timeout=max(0.0, min(0.02, wake - time.monotonic())))
            except Empty:
                self.service._settle_transfers()
                continue
            self.service._handle(event)

    def send(self, message: AgentMessage) -> None:
        packet = self.packet(message)
        retain = packet.topic.rpartition("/")[2] in RETAINED_BY_AGENTS
        assert self.line.publish(packet.topic, packet.payload, retain=retain, properties=packet.properties)

    def refused(self) -> dict[str, int]:
        return self.service.chronicle.refused()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with running_mosquitto(tmp_path_factory.mktemp("broker")) as found:
        yield found


@pytest.fixture
def office(tmp_path: Path, broker: Mosquitto) -> Iterator[RealOffice]:
    with in_the_middle(broker.port) as proxy:
        office = RealOffice(tmp_path, broker, proxy)
        office.send(Profile(profile=device("a")))
        office.send(Presence(state="online", session=tmp_path.name))
        office.until(lambda: office.ask(op="status")["agents_online"] == 1)
        yield office
        office.stop()


def _property(name: str, value: str) -> Change:
    def change(published: Published) -> Published:
        pairs = tuple((key, value if key == name else old) for key, old in published.properties)
        return replace(published, properties=pairs)

    return change


def _without(*names: str) -> Change:
    def change(published: Published) -> Published:
        return replace(published, properties=tuple(pair for pair in published.properties if pair[0] not in names))

    return change


def _by_somebody(published: Published) -> Published:
    sealer = Sealer("a", lambda: 10**6, Ed25519PrivateKey.generate())
    sealed = sealer.seal(published.topic, published.payload).properties()
    return replace(published, properties=tuple(sealed.items()))


CHANGES: dict[str, tuple[Change, str]] = {
    "payload": (lambda each: replace(each, payload=each.payload.replace(b"30", b"31")), "forged"),
    "cut": (lambda each: replace(each, payload=each.payload[:-1]), "forged"),
    "counter": (_property("n", "999999"), "forged"),
    "id": (_property("id", "will-1"), "forged"),
    "signature": (_property("s", "A" * 86 + "=="), "forged"),
    "key": (_property("k", "0" * 16), "unknown-key"),
    "unsigned": (_without("k", "s"), "unsigned"),
    "bare": (_without("v", "id", "n", "k", "s"), "malformed"),
    "by somebody": (_by_somebody, "unknown-key"),
    "moved to another agent": (lambda each: replace(each, topic=each.topic.replace("/a/", "/b/")), "unknown-sender"),
    "moved to another channel": (lambda each: replace(each, topic=each.topic.replace("report", "profile")), "forged"),
    "moved down": (lambda each: replace(each, topic=each.topic.replace("/up/", "/down/")), "wrong-topic"),
    "retained": (lambda each: replace(each, retain=True), "retained"),
    "large": (lambda each: replace(each, payload=each.payload + bytes(1_000_001)), "oversize"),
    "repeated": (lambda each: each, "replayed"),
}


def test_every_changed_repeated_and_moved_packet_is_refused_and_recorded(office: RealOffice) -> None:
    run = office.service.submit(job(), None)
    message, changed = survey().model_copy(update={"run": run}), list[Published]()

    def tamper(published: Published) -> Sequence[Published]:
        """All changed ones come before the real one, which is repeated after it."""
        if not published.topic.endswith("/up/report"):
            return [published]
        real = replace(published, qos=0, packet_id=0, duplicate=False)
        changed.extend(change(real) for name, (change, _) in CHANGES.items() if name != "repeated")
        return [*changed, published, real]

    office.proxy.tamper = tamper
    before = office.refused()
    office.send(message)
    office.until(lambda: office.service.runs[run].members["a"].survey is not None and "replayed" in office.refused())
    assert office.service.runs[run].members["a"].survey == message
    wanted: dict[str, int] = dict(before)
    for _, fault in CHANGES.values():
        wanted[fault] = wanted.get(fault, 0) + 1
    assert office.refused() == wanted
    office.service.chronicle.tick()
    told = [line["data"] for line in FederationAudit(office.folder).lines() if line["kind"] == "refused"]
    assert {each["fault"] for each in told} == {fault for _, fault in CHANGES.values()}
    brought = {(each.topic, hashlib.sha256(each.payload).hexdigest()) for each in changed}
    assert {(each["topic"], each["sha256"]) for each in told} <= brought
    assert AuditSources(Home(office.folder)).verify_federation().findings == ()


@pytest.mark.parametrize("name", ["payload", "counter", "unsigned", "moved to another agent", "by somebody"])
def test_what_comes_changed_alone_brings_nothing_about_and_the_same_whole_is_let_in(
    office: RealOffice, name: str
) -> None:
    run = office.service.submit(job(), None)
    change, fault = CHANGES[name]

    def tamper(published: Published) -> Sequence[Published]:
        return [change(published)] if published.topic.endswith("/up/report") else [published]

    office.proxy.tamper = tamper
    before = office.service.runs[run]
    office.send(survey().model_copy(update={"run": run}))
    office.until(lambda: fault in office.refused())
    assert office.service.runs[run] == before
    office.proxy.tamper = lambda published: [published]
    office.send(survey().model_copy(update={"run": run}))
    office.until(lambda: office.service.runs[run].members["a"].survey is not None)


def test_packets_that_come_in_any_order_are_each_let_in_once(office: RealOffice) -> None:
    runs = [office.service.submit(job(), None)]
    held = list[Published]()

    def tamper(published: Published) -> Sequence[Published]:
        if not published.topic.endswith("/up/report"):
            return [published]
        held.append(replace(published, qos=0, packet_id=0))
        if len(held) < 20:
            return [replace(published, payload=b"", properties=())]  # so that the broker is answered
        mixed = held * 3
        random.Random(1).shuffle(mixed)
        return [*mixed, replace(published, payload=b"", properties=())]

    office.proxy.tamper = tamper
    for _ in range(20):
        office.send(survey().model_copy(update={"run": runs[0]}))
    office.until(lambda: sum(office.refused().values()) >= 20 + 2 * 20)
    assert office.refused() == {"malformed": 20, "replayed": 40}
    assert office.service.runs[runs[0]].members["a"].survey is not None


def _send_update(office: RealOffice, sender: BlobSender, *, until: Callable[[], bool]) -> None:
    """Play the agent's part of a transfer: send what it is asked for."""

    def answered() -> bool:
        while not office.line.events.empty():
            match office.line.events.get_nowait():
                case Received(topic, payload) if topic.endswith("/down/blob"):
                    request = decode_from_coordinator("blob", payload, 1)
                    assert isinstance(request, BlobRequest)
                    sender.on_request(request.sha256, request.bitmap, None)
                case Delivered(handle):
                    sender.on_delivered(handle)
                case Connected(resumed):
                    sender.on_connected(resumed=resumed)
                case _:
                    pass
        sender.tick(time.monotonic())
        return until()

    office.until(answered)


def test_an_update_whose_chunks_are_spoilt_on_their_way_arrives_whole_in_the_end(
    office: RealOffice, tmp_path: Path
) -> None:
    settings = BlobSettings(chunk_bytes=1000, idle_s=0.5)
    exchange = office.service._exchange
    exchange._receiver._settings = settings
    store = BlobStore(tmp_path / "agent", chunk_bytes=1000, reserve_bytes=0)
    sender = BlobSender(office.line, TOPICS, store, time.monotonic, agent="a", settings=settings)
    ref: BlobRef = store.add_bytes(random.Random(2).randbytes(20_000))
    sender.offer(ref)
    spoilt, arrived = [0], list[TransferDone]()

    def tamper(published: Published) -> Sequence[Published]:
        if f"/up/blob/{ref.sha256}/7" in published.topic and spoilt[0] < settings.attempts - 1:
            spoilt[0] += 1
            return [replace(published, payload=bytes(len(published.payload)))]
        return [published]

    office.proxy.tamper = tamper
    office.service._transfer_done = arrived.append  # type: ignore[method-assign,assignment]  # no run awaits it
    exchange.fetch("a", ref)
    _send_update(office, sender, until=lambda: bool(arrived))
    assert [(done.sha256, done.spoilt) for done in arrived] == [(ref.sha256, False)]
    assert spoilt[0] == settings.attempts - 1
    assert office.blobs.path(ref.sha256).read_bytes() == store.path(ref.sha256).read_bytes()
