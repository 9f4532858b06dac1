"""One side of a blob transfer as a process of its own, with the project's session, stores and pumps.

    python -m benchmarks.transfer_sides {sender,receiver} --port P --folder DIR [--host H] [--sha256 S --size N] ...

It prints `{"ready": ...}` when its session is up, obeys `go` and `stop` on standard input, and prints its figures as
one line of JSON at the end. The sender plays an agent, the receiver the coordinator. With `--beat-s` the sender says
where it is as often, and the receiver takes the delay from the time in the message; both clocks must be one machine's.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty

from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_pumps import BlobArrived, BlobFailed, BlobReceiver, BlobSender, BlobWanted
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.coordinator_messages import BlobRequest
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.messages import decode_from_coordinator, encode
from fedpipe_wire.mqtt import MqttOptions, MqttTransport
from fedpipe_wire.topics import Topics
from fedpipe_wire.transport import Connected, Delivered, Disconnected, Event, Posted, Received

TOPICS = Topics("transfer")
AGENT = "sender"
_BEAT = "progress"
_TICK_S = 0.5


def memory_mib(field_name: str) -> float:
    """A line of /proc/self/status, in MiB: VmRSS, or VmHWM for the peak."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field_name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field_name}: this benchmark needs Linux")


@contextmanager
def growth() -> Iterator[dict[str, float]]:
    """Peak memory of the block beyond what there was before, under `rss_growth_mib`."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins here
    before, figures = memory_mib("VmRSS"), dict[str, float]()
    yield figures
    figures["rss_growth_mib"] = memory_mib("VmHWM") - before


@dataclass
class Side:
    """The loop that coordinator and agent have, around one sender or one receiver."""

    transport: MqttTransport
    store: BlobStore
    settings: BlobSettings
    ref: BlobRef | None = None
    beat_s: float = 0.0
    tell_every: int = 1 << 30
    sender: BlobSender | None = None
    receiver: BlobReceiver | None = None
    stopped: bool = False
    began: float = 0.0
    figures: dict[str, object] = field(default_factory=dict)
    delays: list[float] = field(default_factory=list)
    arrivals: int = 0
    cuts: int = 0
    stall_s: float = 0.0
    _beat_at: float = 0.0
    _up: bool = False

    def run(self) -> None:
        """Work until told to stop."""
        while not self.stopped:
            begin = time.monotonic()
            wake = self._tick(begin)
            self.stall_s = max(self.stall_s, time.monotonic() - begin)
            try:
                event = self.transport.events.get(timeout=max(0.0, min(_TICK_S, wake - time.monotonic())))
            except Empty:
                continue
            begin = time.monotonic()
            self._handle(event)
            self.stall_s = max(self.stall_s, time.monotonic() - begin)

    def _tick(self, now: float) -> float:
        wakes: list[float | None] = []
        if self.sender is not None:
            if self.beat_s and now >= self._beat_at:
                self._beat_at = now + self.beat_s
                self.transport.publish(TOPICS.up(AGENT, _BEAT), json.dumps(time.monotonic()).encode())
            wakes = [self.sender.tick(now), self._beat_at if self.beat_s else None]
        if self.receiver is not None:
            wakes = [self.receiver.tick(now)]
            for outcome in self.receiver.take():
                self._act(outcome)
        return min((at for at in wakes if at is not None), default=now + _TICK_S)

    def _handle(self, event: Event) -> None:
        pump = self.sender or self.receiver
        match event:
            case Connected(resumed) if pump is not None:
                self._up = True
                pump.on_connected(resumed=resumed)
                say({"ready": True, "resumed": resumed, "at": time.monotonic()})
            case Disconnected(reason):
                self.cuts += self._up
                self._up = False
                say({"lost": reason, "at": time.monotonic()})
            case Delivered(handle) if self.sender is not None:
                self.sender.on_delivered(handle)
            case Received():
                self._received(event)
            case Posted("stop"):
                self.stopped = True
            case Posted("go") if self.receiver is not None and self.ref is not None:
                self.began = time.monotonic()
                self.figures["delays_before"] = len(self.delays)
                self.receiver.expect(self.ref, AGENT)

    def _received(self, event: Received) -> None:
        address = TOPICS.parse(event.topic)
        if address.channel == _BEAT:
            self.delays.append(time.monotonic() - float(json.loads(event.payload)))
        elif self.receiver is not None:
            self.arrivals += 1
            if self.receiver.on_chunk(address, event.payload) and self.arrivals % self.tell_every == 0:
                say({"arrivals": self.arrivals, "at": time.monotonic()})
        elif self.sender is not None:
            message = decode_from_coordinator(address.channel, event.payload, 1)
            assert isinstance(message, BlobRequest)
            self.sender.on_request(message.sha256, message.bitmap)

    def _act(self, outcome: BlobWanted | BlobArrived | BlobFailed) -> None:
        match outcome:
            case BlobWanted(_, sha256, bitmap):
                message = encode(BlobRequest(sha256=sha256, bitmap=bitmap))
                self.transport.publish(TOPICS.down(AGENT, "blob"), message)
            case BlobArrived():
                self.figures["seconds"] = time.monotonic() - self.began
                say({"arrived": True, "at": time.monotonic()})
            case BlobFailed(_, _, reason):
                self.figures["seconds"] = time.monotonic() - self.began
                say({"failed": reason, "at": time.monotonic()})


def say(what: dict[str, object]) -> None:
    """One line of JSON for whoever started this process."""
    print(json.dumps(what), flush=True)


def _obey(side: Side) -> None:
    for line in sys.stdin:
        side.transport.events.put(Posted(line.strip()))
    side.transport.events.put(Posted("stop"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="one side of a blob transfer")
    parser.add_argument("role", choices=("sender", "receiver"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sha256", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--chunk-kib", type=int, default=256)
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--uplink-bps", type=float)
    parser.add_argument("--idle-s", type=float, default=BlobSettings().idle_s)
    parser.add_argument("--silence-s", type=float, default=BlobSettings().silence_s)
    parser.add_argument("--keepalive-s", type=int, default=MqttOptions().keepalive_s)
    parser.add_argument("--beat-s", type=float, default=0.0)
    parser.add_argument("--tell-every", type=int, default=1 << 30)
    return parser.parse_args()


def main() -> None:
    """Run one side to its end."""
    given = _arguments()
    settings = BlobSettings(
        chunk_bytes=given.chunk_kib * 1024,
        window=given.window,
        idle_s=given.idle_s,
        silence_s=given.silence_s,
        uplink_bps=given.uplink_bps,
    )
    options = MqttOptions(keepalive_s=given.keepalive_s)
    transport = MqttTransport(given.host, given.port, f"transfer-{given.role}", options=options)
    store = BlobStore(given.folder, chunk_bytes=settings.chunk_bytes)
    ref = BlobRef(sha256=given.sha256, size=given.size, chunk_bytes=settings.chunk_bytes)
    side = Side(transport, store, settings, ref, given.beat_s, given.tell_every)
    if given.role == "sender":
        side.sender = BlobSender(transport, TOPICS, store, time.monotonic, agent=AGENT, settings=settings)
        side.sender.offer(ref)
        transport.subscribe(TOPICS.all_down(AGENT))
    else:
        events = transport.events
        side.receiver = BlobReceiver(store, time.monotonic, settings=settings, wake=lambda: events.put(Posted(None)))
        transport.subscribe(TOPICS.all_up())
    threading.Thread(target=_obey, args=(side,), daemon=True).start()
    with growth() as grown:
        transport.start()
        side.run()
        if side.receiver is not None:
            side.receiver.close()
        transport.stop()
    say(
        side.figures
        | grown
        | {
            "published": 0 if side.sender is None else side.sender.published_chunks,
            "resent": transport.resent,
            "arrivals": side.arrivals,
            "cuts": side.cuts,
            "longest_stall_s": side.stall_s,
            "delays": side.delays,
        }
    )


if __name__ == "__main__":
    main()
