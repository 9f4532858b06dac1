"""A network in virtual time between one blob sender and its receivers: it delays, loses, repeats and reorders.

The real pumps and stores run on both ends; only transport and clock are made up, so a day of silence takes no time.
"""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_pumps import BlobArrived, BlobFailed, BlobReceiver, BlobSender, BlobWanted
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.topics import Address, Topics
from fedpipe_wire.transport import Event

TOPICS = Topics("hospitals")
AGENT = "agent-one"


@dataclass(frozen=True)
class Faults:
    """What happens to each packet, as probabilities; `jitter_s` reorders."""

    lost: float = 0.0
    repeated: float = 0.0
    corrupted: float = 0.0
    jitter_s: float = 0.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeTransport:
    """The sender's session: what is published goes into the simulation."""

    def __init__(self, simulation: "Simulation") -> None:
        self.connected = True
        self.events: SimpleQueue[Event] = SimpleQueue()
        self._simulation = simulation

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def subscribe(self, pattern: str) -> None: ...

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, properties: Mapping[str, str] | None = None
    ) -> int | None:
        assert not retain
        assert not properties
        return self._simulation.published(topic, payload) if self.connected else None


class Simulation:
    """One sender, one receiver per name; `run` until nothing is left to happen or `until` says so."""

    def __init__(
        self,
        folder: Path,
        settings: BlobSettings,
        faults: Faults | None = None,
        *,
        seed: int = 0,
        agent: str | None = AGENT,
        receivers: tuple[str, ...] = ("coordinator",),
    ) -> None:
        self.folder, self.settings, self.faults, self.agent = folder, settings, faults or Faults(), agent
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.transport = FakeTransport(self)
        self.sent: list[tuple[float, int, int]] = []
        self.most_in_flight = 0
        self.outcomes: list[tuple[str, BlobArrived | BlobFailed]] = []
        self.sender_store = self._store("sender")
        self.names = receivers
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._order, self._handles = itertools.count(), itertools.count(1)
        self._unacknowledged: dict[int, tuple[Address, bytes]] = {}
        self._waiting: list[tuple[str, BlobWanted]] = []
        self.came: Counter[str] = Counter()
        self.receivers: dict[str, BlobReceiver] = {}
        self.start_sender()
        for name in receivers:
            self.start_receiver(name)

    def _store(self, name: str) -> BlobStore:
        return BlobStore(self.folder / name, chunk_bytes=self.settings.chunk_bytes, reserve_bytes=0)

    def start_sender(self) -> None:
        """Also after the old one was killed: it knows nothing any more, and nothing in flight is acknowledged to it."""
        self._heap = []
        self._unacknowledged = {}
        self.sender = BlobSender(
            self.transport, TOPICS, self.sender_store, self.clock, agent=self.agent, settings=self.settings
        )

    def start_receiver(self, name: str) -> None:
        """Also after the old one was killed: the kernel closes its files."""
        if name in self.receivers:
            self.receivers[name].close()
        self.receivers[name] = BlobReceiver(self._store(name), self.clock, settings=self.settings)

    def close(self) -> None:
        """Let go of what unfinished transfers hold open."""
        for receiver in self.receivers.values():
            receiver.close()

    def blob(self, size: int) -> tuple[BlobRef, bytes]:
        """A blob in the sender's store."""
        data = self.rng.randbytes(size)
        return self.sender_store.add_bytes(data), data

    def received(self, name: str, ref: BlobRef) -> bytes:
        """What the receiver's store holds by that name."""
        return self._store(name).path(ref.sha256).read_bytes()

    def later(self, delay_s: float, act: Callable[[], object]) -> None:
        """Do something at a later virtual time."""
        heapq.heappush(self._heap, (self.clock.now + delay_s, next(self._order), act))

    def cut(self, for_s: float) -> None:
        """The sender's session is down for a while; requests wait for it in the broker."""
        self.transport.connected = False
        self.later(for_s, self._mended)

    def lose_broker(self) -> None:
        """The broker dies and comes back empty: nothing that was on its way arrives.

        As a session does, the sender's sends again what was not acknowledged, first and in its order.
        """
        self._heap, self._waiting = [], []
        self.transport.connected = True
        for handle in self._unacknowledged:
            self._pass_on(handle)
        self.sender.on_connected(resumed=False)
        for receiver in self.receivers.values():
            receiver.on_connected(resumed=False)

    def _mended(self) -> None:
        self.transport.connected = True
        self.sender.on_connected(resumed=True)
        waiting, self._waiting = self._waiting, []
        for name, wanted in waiting:
            self._ask(name, wanted)

    def published(self, topic: str, payload: bytes) -> int:
        """The sender hands a chunk to the broker."""
        handle, address = next(self._handles), TOPICS.parse(topic)
        assert address.chunk is not None
        self.sent.append((self.clock.now, address.chunk, len(payload)))
        self._unacknowledged[handle] = address, payload
        self.most_in_flight = max(self.most_in_flight, len(self._unacknowledged))
        self._pass_on(handle)
        return handle

    def _pass_on(self, handle: int) -> None:
        address, payload = self._unacknowledged[handle]
        self.later(0.01, lambda: self._acknowledge(handle))
        for name in self.names if address.direction != "down" else (address.agent or "",):
            for _ in range(self._copies()):
                data = payload
                if self.rng.random() < self.faults.corrupted:
                    data = bytes((payload[0] ^ 1,)) + payload[1:]
                self.later(self._delay(), partial(self._deliver, name, address, data))

    def _deliver(self, name: str, address: Address, data: bytes) -> None:
        self.came[name] += 1
        if name in self.receivers:  # somebody outside may have asked
            self.receivers[name].on_chunk(address, data)

    def run(self, until: Callable[[], bool] = lambda: False, *, for_s: float = 100_000.0) -> None:
        """Let virtual time pass, from one thing that happens to the next."""
        end = self.clock.now + for_s
        while not until():
            wakes = [self.sender.tick(self.clock.now)]
            wakes += [receiver.tick(self.clock.now) for receiver in self.receivers.values()]
            self._take()
            times = [at for at in wakes if at is not None] + [at for at, _, _ in self._heap[:1]]
            if not times or min(times) > end:
                return
            self.clock.now = max(self.clock.now, *[min(times)])
            while self._heap and self._heap[0][0] <= self.clock.now:
                heapq.heappop(self._heap)[2]()

    def _take(self) -> None:
        for name, receiver in self.receivers.items():
            for outcome in receiver.take():
                if isinstance(outcome, BlobWanted):
                    for _ in range(self._copies()):
                        self.later(self._delay(), partial(self._ask, name, outcome))
                else:
                    self.outcomes.append((name, outcome))

    def _ask(self, name: str, wanted: BlobWanted) -> None:
        if self.transport.connected:
            self.sender.on_request(wanted.sha256, wanted.bitmap, name)
        else:
            self._waiting.append((name, wanted))

    def _acknowledge(self, handle: int) -> None:
        if self._unacknowledged.pop(handle, None):
            self.sender.on_delivered(handle)

    def _copies(self) -> int:
        if self.rng.random() < self.faults.lost:
            return 0
        return 2 if self.rng.random() < self.faults.repeated else 1

    def _delay(self) -> float:
        return 0.02 + self.rng.random() * self.faults.jitter_s
