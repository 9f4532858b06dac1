"""What a blob transfer promises: over a made-up network that does its worst, and over both transports."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty

import pytest
from blob_simulation import AGENT, TOPICS, Faults, Simulation
from mosquitto_support import running_mosquitto

from fedpipe_wire.agent_messages import BlobMissing
from fedpipe_wire.blob_bits import BlobError, all_bits, encode_bitmap
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_pumps import BlobArrived, BlobFailed, BlobReceiver, BlobSender, BlobWanted
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.memory import MemoryBroker, MemoryTransport
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.messages import decode_from_agent, encode
from fedpipe_wire.mqtt import MqttOptions, MqttTransport
from fedpipe_wire.topics import Address
from fedpipe_wire.transport import Connected, Delivered, Received, Transport

SMALL = BlobSettings(chunk_bytes=100, ask_chunks=16)


Simulate = Callable[..., Simulation]
OpenReceiver = Callable[[Path], tuple[BlobReceiver, BlobRef, bytes]]


@pytest.fixture
def simulate() -> Iterator[Simulate]:
    """Makes simulations whose files are closed at the end."""
    with ExitStack() as stack:
        yield lambda *arguments, **more: stack.enter_context(closing(Simulation(*arguments, **more)))


@pytest.fixture
def opened() -> Iterator[OpenReceiver]:
    """Makes receivers that expect nothing yet, with a blob of 950 bytes in chunks of 100, and close them at the end."""
    with ExitStack() as stack:

        def open_one(folder: Path) -> tuple[BlobReceiver, BlobRef, bytes]:
            data = random.Random(1).randbytes(950)
            ref = BlobStore(folder / "source", chunk_bytes=100, reserve_bytes=0).add_bytes(data)
            store = BlobStore(folder / "store", chunk_bytes=100, reserve_bytes=0)
            receiver = BlobReceiver(store, lambda: 1000.0, settings=SMALL)
            return stack.enter_context(closing(receiver)), ref, data

        yield open_one


def arrived(simulation: Simulation) -> list[str]:
    return [name for name, outcome in simulation.outcomes if isinstance(outcome, BlobArrived)]


def failures(simulation: Simulation) -> list[str]:
    return [outcome.reason for _, outcome in simulation.outcomes if isinstance(outcome, BlobFailed)]


@pytest.mark.parametrize("size", [1, 99, 100, 101, 1600, 12_345])
def test_each_chunk_crosses_once_where_nothing_goes_wrong(simulate: Simulate, tmp_path: Path, size: int) -> None:
    simulation = simulate(tmp_path, SMALL)
    ref, data = simulation.blob(size)
    simulation.sender.offer(ref)
    simulation.receivers["coordinator"].expect(ref, AGENT)
    simulation.run()
    assert arrived(simulation) == ["coordinator"]
    assert simulation.received("coordinator", ref) == data
    assert [index for _, index, _ in simulation.sent] == list(range(-(-size // 100)))
    assert simulation.sender.acknowledged_bytes == size
    assert not simulation.sender.busy(ref.sha256)


@pytest.mark.parametrize("seed", range(5))
def test_lost_repeated_and_reordered_packets_change_nothing(simulate: Simulate, tmp_path: Path, seed: int) -> None:
    faults = Faults(lost=0.2, repeated=0.3, jitter_s=0.5)
    simulation = simulate(tmp_path, SMALL, faults, seed=seed)
    ref, data = simulation.blob(9_950)
    simulation.sender.offer(ref)
    simulation.receivers["coordinator"].expect(ref, AGENT)
    simulation.run()
    assert arrived(simulation) == ["coordinator"]
    assert simulation.received("coordinator", ref) == data


@pytest.mark.parametrize("victim", ["sender", "receiver", "both"])
def test_a_transfer_goes_on_where_it_was_after_a_kill(simulate: Simulate, tmp_path: Path, victim: str) -> None:
    simulation = simulate(tmp_path, SMALL)
    ref, data = simulation.blob(10_000)
    simulation.sender.offer(ref)
    simulation.receivers["coordinator"].expect(ref, AGENT)
    simulation.run(lambda: len(simulation.sent) >= 50)
    if victim in {"sender", "both"}:
        simulation.start_sender()
        simulation.sender.offer(ref)
    if victim in {"receiver", "both"}:
        simulation.start_receiver("coordinator")
        simulation.receivers["coordinator"].expect(ref, AGENT)
    simulation.run()
    assert arrived(simulation) == ["coordinator"]
    assert simulation.received("coordinator", ref) == data
    # What was asked for and on its way may be sent again, nothing that had arrived.
    assert len(simulation.sent) <= 100 + SMALL.ask_chunks


def test_a_cut_of_a_minute_repeats_no_more_than_a_window(simulate: Simulate, tmp_path: Path) -> None:
    simulation = simulate(tmp_path, SMALL)
    ref, data = simulation.blob(10_000)
    simulation.sender.offer(ref)
    simulation.receivers["coordinator"].expect(ref, AGENT)
    simulation.run(lambda: len(simulation.sent) >= 50)
    simulation.cut(60.0)
    simulation.run()
    assert simulation.received("coordinator", ref) == data
    assert len(simulation.sent) <= 100 + SMALL.window


def test_a_broker_that_comes_back_empty_is_not_waited_for(simulate: Simulate, tmp_path: Path) -> None:
    simulation = simulate(tmp_path, SMALL)
    ref, data = simulation.blob(10_000)
    simulation.sender.offer(ref)
    simulation.receivers["coordinator"].expect(ref, AGENT)
    simulation.run(lambda: len(simulation.sent) >= 50)
    begin = simulation.clock.now
    simulation.lose_broker()
    simulation.run(lambda: bool(arrived(simulation)))
    assert simulation.received("coordinator", ref) == data
    # What it had acknowledged a moment ago is asked for and sent again at once.
    assert simulation.clock.now - begin < SMALL.settle_s
    assert len(simulation.sent) <= 100 + SMALL.ask_chunks


def test_a_corrupted_chunk_is_found_and_fetched_again(simulate: Simulate, tmp_path: Path) -> None:
    simulation = simulate(tmp_path, SMALL, Faults(corrupted=1.0))
    ref, data = simulation.blob(1_000)
    simulation.sender.offer(ref)
    simulation.receivers["coordinator"].expect(ref, AGENT)
    simulation.run(lambda: len(simulation.sent) == 10)
    simulation.faults = Faults()
    simulation.run()
    assert arrived(simulation) == ["coordinator"]
    assert simulation.received("coordinator", ref) == data
    assert len(simulation.sent) == 20


def test_a_source_that_only_sends_lies_is_given_up(simulate: Simulate, tmp_path: Path) -> None:
    simulation = simulate(tmp_path, SMALL, Faults(corrupted=1.0))
    ref, _ = simulation.blob(500)
    simulation.sender.offer(ref)
    simulation.receivers["coordinator"].expect(ref, AGENT)
    simulation.run()
    (reason,) = failures(simulation)
    assert ref.sha256 in reason
    assert "3 attempts" in reason
    assert len(simulation.sent) == 15
    assert not list((tmp_path / "coordinator").iterdir())


def test_silence_ends_a_transfer_and_progress_never_does(simulate: Simulate, tmp_path: Path) -> None:
    slow = BlobSettings(chunk_bytes=100, uplink_bps=8.0)  # a chunk in 100 s, ten times the patience for one
    simulation = simulate(tmp_path, slow)
    ref, data = simulation.blob(2_000)
    simulation.sender.offer(ref)
    simulation.receivers["coordinator"].expect(ref, AGENT)
    begin = simulation.clock.now
    simulation.run(lambda: len(simulation.sent) == 19)
    assert simulation.clock.now - begin > 1000
    simulation.run()
    assert simulation.received("coordinator", ref) == data
    assert len(simulation.sent) == 20  # asking again costs nothing

    silent = simulate(tmp_path / "silent", slow)
    ref, _ = silent.blob(2_000)
    silent.sender.offer(ref)
    silent.transport.connected = False
    begin = silent.clock.now
    silent.receivers["coordinator"].expect(ref, AGENT)
    silent.run()
    assert failures(silent) == ["20 chunks missing and nothing came for 120 s"]
    assert silent.clock.now - begin == pytest.approx(120.0)


@pytest.mark.parametrize("window", [1, 4, 9])
def test_the_window_is_used_and_never_exceeded(simulate: Simulate, tmp_path: Path, window: int) -> None:
    settings = BlobSettings(chunk_bytes=100, window=window)
    simulation = simulate(tmp_path, settings, Faults(lost=0.1, jitter_s=0.2))
    for _ in range(3):
        ref, _ = simulation.blob(3_000)
        simulation.sender.offer(ref)
        simulation.receivers["coordinator"].expect(ref, AGENT)
    simulation.run()
    assert arrived(simulation) == ["coordinator"] * 3
    assert simulation.most_in_flight == window


@pytest.mark.parametrize(("chunk_bytes", "uplink_bps"), [(100, 1e4), (10_000, 20e6)])
def test_the_pace_is_kept_within_a_tenth(
    simulate: Simulate, tmp_path: Path, chunk_bytes: int, uplink_bps: float
) -> None:
    settings = BlobSettings(chunk_bytes=chunk_bytes, uplink_bps=uplink_bps, window=1000)
    simulation = simulate(tmp_path, settings)
    ref, _ = simulation.blob(600 * chunk_bytes)
    simulation.sender.push(ref)
    simulation.receivers["coordinator"].expect(ref, AGENT, pushed=True)
    simulation.run()
    begin, end = simulation.sent[0][0], simulation.sent[-1][0]
    bits = 8 * sum(size for _, _, size in simulation.sent[:-1])
    assert bits / (end - begin) == pytest.approx(uplink_bps, rel=0.1)
    for first in range(0, 500, 50):  # and not only on the whole: any stretch of a hundred chunks
        stretch = simulation.sent[first : first + 101]
        seconds = stretch[-1][0] - stretch[0][0]
        assert 8 * 100 * chunk_bytes / seconds <= 1.1 * uplink_bps


def test_a_sender_that_wakes_late_still_reaches_its_pace(simulate: Simulate, tmp_path: Path) -> None:
    settings = BlobSettings(chunk_bytes=1000, uplink_bps=1e6, window=1000)
    simulation = simulate(tmp_path, settings)
    ref, _ = simulation.blob(500_000)
    simulation.sender.push(ref)
    rng, clock, begin = random.Random(3), simulation.clock, simulation.clock.now
    while len(simulation.sent) < 500:
        wake = simulation.sender.tick(clock.now)
        clock.now = max(clock.now, wake or clock.now) + rng.random() * 0.01  # a chunk takes 8 ms
    assert 8 * 499 * 1000 / (clock.now - begin) == pytest.approx(1e6, rel=0.1)


def test_small_and_large_blobs_share_the_line(simulate: Simulate, tmp_path: Path) -> None:
    simulation = simulate(tmp_path, SMALL)
    large, _ = simulation.blob(100_000)
    small, _ = simulation.blob(500)
    for ref in (large, small):
        simulation.sender.offer(ref)
        simulation.receivers["coordinator"].expect(ref, AGENT)
    simulation.run(lambda: len(arrived(simulation)) == 1)
    assert not simulation.receivers["coordinator"].expecting(small.sha256)
    assert len(simulation.sent) < 40


# --- broadcast --------------------------------------------------------------------------------------------------

AGENTS = ("one", "two", "three")


def test_a_broadcast_is_published_once_for_all(simulate: Simulate, tmp_path: Path) -> None:
    simulation = simulate(tmp_path, SMALL, agent=None, receivers=AGENTS)
    ref, data = simulation.blob(5_000)
    for receiver in simulation.receivers.values():
        receiver.expect(ref, None, pushed=True)
    simulation.sender.push(ref)
    simulation.run()
    assert sorted(arrived(simulation)) == sorted(AGENTS)
    assert all(simulation.received(name, ref) == data for name in AGENTS)
    assert len(simulation.sent) == 50


def test_one_that_comes_late_asks_for_what_it_missed(simulate: Simulate, tmp_path: Path) -> None:
    simulation = simulate(tmp_path, SMALL, agent=None, receivers=AGENTS)
    ref, data = simulation.blob(5_000)
    for name in AGENTS[:2]:
        simulation.receivers[name].expect(ref, None, pushed=True)
    simulation.sender.push(ref)
    simulation.run(lambda: len(simulation.sent) >= 30)
    simulation.receivers[AGENTS[2]].expect(ref, None)
    simulation.run()
    assert simulation.received(AGENTS[2], ref) == data
    assert len(simulation.sent) <= 50 + 30 + SMALL.window
    # What it missed went to it alone: the others' lines carried the blob once.
    assert [simulation.came[name] for name in AGENTS[:2]] == [50, 50]


def test_two_that_come_late_together_are_served_together(simulate: Simulate, tmp_path: Path) -> None:
    simulation = simulate(tmp_path, SMALL, agent=None, receivers=AGENTS)
    ref, data = simulation.blob(5_000)
    simulation.sender.push(ref)
    simulation.run()
    simulation.clock.now += 60.0
    for name in AGENTS[1:]:
        simulation.receivers[name].expect(ref, None)
    simulation.run()
    assert all(simulation.received(name, ref) == data for name in AGENTS[1:])
    assert len(simulation.sent) <= 50 + 50 + 2 * SMALL.window


def test_what_all_wait_for_is_not_held_up_by_one_that_is_late(simulate: Simulate, tmp_path: Path) -> None:
    settings = BlobSettings(chunk_bytes=100, uplink_bps=8000)  # a chunk in a tenth of a second
    simulation = simulate(tmp_path, settings, agent=None, receivers=AGENTS)
    old, _ = simulation.blob(5_000)
    new, data = simulation.blob(1_000)
    simulation.sender.push(old)
    simulation.run()
    simulation.clock.now += 60.0
    simulation.receivers["one"].expect(old, None)
    simulation.run(lambda: len(simulation.sent) > 55)
    simulation.receivers["two"].expect(new, None, pushed=True)
    simulation.sender.push(new)
    begin = len(simulation.sent)
    simulation.run(lambda: "two" in arrived(simulation))
    assert simulation.received("two", new) == data
    assert len(simulation.sent) - begin <= 10 + SMALL.window
    simulation.run()
    assert "one" in arrived(simulation)


def test_what_several_miss_is_sent_to_the_first_and_then_to_all(simulate: Simulate, tmp_path: Path) -> None:
    simulation = simulate(tmp_path, SMALL, Faults(lost=1.0), agent=None, receivers=AGENTS)
    ref, data = simulation.blob(1_000)
    for receiver in simulation.receivers.values():
        receiver.expect(ref, None, pushed=True)
    simulation.sender.push(ref)
    simulation.run(lambda: len(simulation.sent) == 10)
    simulation.faults = Faults(jitter_s=0.5)  # their requests come one after the other
    simulation.run()
    assert sorted(arrived(simulation)) == sorted(AGENTS)
    assert all(simulation.received(name, ref) == data for name in AGENTS)
    assert len(simulation.sent) <= 30


# --- two that send the same -------------------------------------------------------------------------------------


def test_the_same_blob_from_two_agents_is_fetched_once_and_told_twice(opened: OpenReceiver, tmp_path: Path) -> None:
    receiver, ref, data = opened(tmp_path)
    receiver.expect(ref, "one")
    receiver.expect(ref, "two")
    assert [type(outcome) for outcome in receiver.take()] == [BlobWanted]
    for index in range(10):
        chunk = data[100 * index : 100 * index + 100]
        assert not receiver.on_chunk(Address("stranger", "up", "blob", ref.sha256, index), bytes(len(chunk)))
        assert receiver.on_chunk(Address("one", "up", "blob", ref.sha256, index), chunk)
    told = receiver.take()
    assert {outcome.source for outcome in told if isinstance(outcome, BlobArrived)} == {"one", "two"}
    receiver.expect(ref, "three")
    assert [(type(each), each.source) for each in receiver.take()] == [(BlobArrived, "three")]


def test_a_source_that_says_nothing_does_not_keep_the_other_waiting(opened: OpenReceiver, tmp_path: Path) -> None:
    receiver, ref, _ = opened(tmp_path)
    receiver.expect(ref, "silent")
    receiver.expect(ref, "willing")
    receiver.take()
    receiver.tick(1011.0)
    (asked,) = receiver.take()
    assert asked.source == "willing"
    receiver.cancel(ref.sha256, "silent")
    receiver.cancel(ref.sha256, "willing")
    assert not receiver.expecting(ref.sha256)


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "size", "words"),
    [
        (0, 99, "chunk 0 .* has 99 bytes, it must have 100"),
        (0, 101, "has 101 bytes, it must have 100"),
        (9, 100, "chunk 9 .* has 100 bytes, it must have 50"),
        (3, 0, "has 0 bytes"),
        (10, 100, "chunks 0 to 9, chunk 10 is outside"),
        (1_000_000, 100, "chunk 1000000 is outside"),
    ],
)
def test_a_chunk_that_cannot_be_is_refused_and_the_transfer_goes_on(
    opened: OpenReceiver, tmp_path: Path, index: int, size: int, words: str
) -> None:
    receiver, ref, data = opened(tmp_path)
    receiver.expect(ref, "one")
    with pytest.raises(BlobError, match=words):
        receiver.on_chunk(Address("one", "up", "blob", ref.sha256, index), bytes(size))
    for each in range(10):
        receiver.on_chunk(Address("one", "up", "blob", ref.sha256, each), data[100 * each : 100 * each + 100])
    assert isinstance(receiver.take()[-1], BlobArrived)


@pytest.mark.parametrize(
    ("ref_changes", "words"),
    [
        ({"size": (4 << 30) + 1}, "at most 4294967296 are taken"),
        ({"chunk_bytes": 2_000_000}, "at most 1900000 fit a packet"),
        ({"size": 4 << 30, "chunk_bytes": 1}, "has 4294967296 chunks"),
    ],
)
def test_a_blob_that_is_too_large_is_refused_before_anything_is_reserved(
    opened: OpenReceiver, tmp_path: Path, ref_changes: dict[str, int], words: str
) -> None:
    receiver, ref, _ = opened(tmp_path)
    with pytest.raises(BlobError, match=words):
        receiver.expect(ref.model_copy(update=ref_changes), "one")
    assert not list((tmp_path / "store").iterdir())


def test_a_blob_without_room_is_refused_with_both_values(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, free_bytes=lambda _: 5_000, reserve_bytes=4_096)
    receiver = BlobReceiver(store, lambda: 0.0, settings=SMALL)
    with pytest.raises(BlobError, match=r"needs 5046 bytes .* 5000 are free"):
        receiver.expect(BlobRef(sha256="0" * 64, size=950, chunk_bytes=100), "one")
    assert not receiver.expecting("0" * 64)


def test_two_sources_may_not_disagree_about_a_blob(opened: OpenReceiver, tmp_path: Path) -> None:
    receiver, ref, _ = opened(tmp_path)
    receiver.expect(ref, "one")
    with pytest.raises(BlobError, match=r"said to have 951 bytes .* says 950"):
        receiver.expect(ref.model_copy(update={"size": 951}), "two")


@pytest.mark.parametrize(
    ("bitmap", "words"),
    [
        ("", "bitmap of 0 bytes for 10 chunks, it must have exactly 2"),
        (encode_bitmap(1, 8), "bitmap of 1 bytes"),
        (encode_bitmap(1, 24), "bitmap of 3 bytes"),
        (encode_bitmap(1 << 10, 16), "names chunk 10, the last of 10 chunks is 9"),
        ("AA*=", "not base64"),
        ("AAA", "not base64"),
    ],
)
def test_a_bitmap_that_does_not_fit_the_blob_is_refused(
    simulate: Simulate, tmp_path: Path, bitmap: str, words: str
) -> None:
    simulation = simulate(tmp_path, SMALL)
    ref, _ = simulation.blob(950)
    simulation.sender.offer(ref)
    with pytest.raises(BlobError, match=words):
        simulation.sender.on_request(ref.sha256, bitmap)
    assert not simulation.sender.busy(ref.sha256)


def test_a_blob_that_is_not_offered_is_not_sent(simulate: Simulate, tmp_path: Path) -> None:
    simulation = simulate(tmp_path, SMALL)
    ref, _ = simulation.blob(950)
    with pytest.raises(BlobError, match="not offered"):
        simulation.sender.on_request(ref.sha256, encode_bitmap(all_bits(10), 10))


def test_a_blob_that_vanishes_from_the_senders_disk_is_told(simulate: Simulate, tmp_path: Path) -> None:
    simulation = simulate(tmp_path, SMALL)
    ref, _ = simulation.blob(950)
    simulation.sender.push(ref)
    simulation.sender_store.remove(ref.sha256)
    simulation.run()
    (failure,) = simulation.sender.failures
    assert failure.sha256 == ref.sha256
    assert not simulation.sent


@pytest.mark.parametrize("size", [0, 50, 750])
def test_a_blob_that_is_cut_short_on_the_senders_disk_is_told_and_no_part_of_a_chunk_is_sent(
    simulate: Simulate, tmp_path: Path, size: int
) -> None:
    simulation = simulate(tmp_path, SMALL)
    ref, _ = simulation.blob(950)
    simulation.sender.push(ref)
    os.truncate(simulation.sender_store.path(ref.sha256), size)
    simulation.run()
    (failure,) = simulation.sender.failures
    assert failure.sha256 == ref.sha256
    assert f"chunk {size // 100}" in failure.reason
    assert len(simulation.sent) == size // 100


# --- over both transports ---------------------------------------------------------------------------------------


@dataclass
class Owner:
    """A program with one session: the loop that coordinator and agents have, one step at a time."""

    transport: Transport
    sender: BlobSender | None = None
    receiver: BlobReceiver | None = None
    arrived: list[str] = field(default_factory=list)

    def step(self) -> None:
        try:
            event = self.transport.events.get(timeout=0.002)
        except Empty:
            event = None
        match event:
            case Connected(resumed) if self.sender is not None:
                self.sender.on_connected(resumed=resumed)
            case Connected(resumed) if self.receiver is not None:
                self.receiver.on_connected(resumed=resumed)
            case Delivered(handle) if self.sender is not None:
                self.sender.on_delivered(handle)
            case Received():
                self._received(event)
            case _:
                pass
        if self.sender is not None:
            self.sender.tick(time.monotonic())
        if self.receiver is not None:
            self.receiver.tick(time.monotonic())
            for outcome in self.receiver.take():
                self._act(outcome)

    def _received(self, event: Received) -> None:
        address = TOPICS.parse(event.topic)
        if self.receiver is not None:
            self.receiver.on_chunk(address, event.payload)
        elif self.sender is not None:
            message = decode_from_agent(address.channel, event.payload, 1)
            assert isinstance(message, BlobMissing)
            self.sender.on_request(message.sha256, message.bitmap)

    def _act(self, outcome: BlobWanted | BlobArrived | BlobFailed) -> None:
        match outcome:
            case BlobWanted(_, sha256, bitmap):
                message = encode(BlobMissing(sha256=sha256, bitmap=bitmap))
                self.transport.publish(TOPICS.up(AGENT, "report"), message)
            case BlobArrived(_, sha256):
                self.arrived.append(sha256)
            case BlobFailed(_, _, reason):
                pytest.fail(reason)


@dataclass
class Place:
    """A broker that can be killed and come back empty."""

    def client(self, name: str) -> Transport:
        raise NotImplementedError

    def lose_everything(self) -> None:
        raise NotImplementedError


@pytest.fixture(params=["memory", "mosquitto"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "memory":
        memory = MemoryBroker()

        class MemoryPlace(Place):
            def client(self, name: str) -> Transport:
                return MemoryTransport(memory, name)

            def lose_everything(self) -> None:
                memory.stop()
                memory.start(empty=True)

        yield MemoryPlace()
        return
    with running_mosquitto(tmp_path / "broker") as broker:

        class MosquittoPlace(Place):
            def client(self, name: str) -> Transport:
                options = MqttOptions(backoff_min_s=0.05, backoff_max_s=0.2)
                return MqttTransport(broker.host, broker.port, name, options=options)

            def lose_everything(self) -> None:
                broker.restart(empty=True)

        yield MosquittoPlace()


@pytest.mark.parametrize("broker_dies", [False, True], ids=["calm", "broker dies"])
def test_a_broadcast_reaches_two_agents(place: Place, tmp_path: Path, broker_dies: bool) -> None:  # noqa: FBT001 -- a table's column
    settings = BlobSettings(chunk_bytes=64 * 1024, idle_s=1.0, uplink_bps=400e6)
    store = BlobStore(tmp_path / "coordinator", chunk_bytes=settings.chunk_bytes, reserve_bytes=0)
    ref = store.add_bytes(random.Random(2).randbytes(9_000_000))
    with ExitStack() as stack:
        coordinator, *agents = (Owner(place.client(name)) for name in ("coordinator", "one", "two"))
        coordinator.sender = BlobSender(coordinator.transport, TOPICS, store, time.monotonic, settings=settings)
        coordinator.sender.offer(ref)
        coordinator.transport.subscribe(TOPICS.all_up())
        for number, agent in enumerate(agents):
            folder = BlobStore(tmp_path / f"agent{number}", reserve_bytes=0)
            agent.receiver = BlobReceiver(folder, time.monotonic, settings=settings)
            agent.receiver.expect(ref, None, pushed=True)
            agent.transport.subscribe(TOPICS.all_broadcast())
            stack.callback(agent.receiver.close)
        for owner in (coordinator, *agents):
            stack.callback(owner.transport.stop)
            owner.transport.start()
        while not all(owner.transport.connected for owner in (coordinator, *agents)):
            for owner in (coordinator, *agents):
                owner.step()
        coordinator.sender.push(ref)
        alive = not broker_dies
        deadline = time.monotonic() + 60.0
        while not all(agent.arrived for agent in agents):
            assert time.monotonic() < deadline, "the blob did not arrive"
            for owner in (coordinator, *agents):
                owner.step()
            if not alive and coordinator.sender.acknowledged_bytes > 2_000_000:
                place.lose_everything()
                alive = True
    for number in range(2):
        assert (tmp_path / f"agent{number}" / ref.sha256).read_bytes() == store.path(ref.sha256).read_bytes()
