"""The sending state machine at work: chunks from a store into a transport.

Owns which blobs are on offer and to whom, the window over all of them, and the pace. Everything happens in the owner's
thread and nothing waits: the owner passes on what its transport's queue delivers, calls `tick` after it, and sleeps
until the time that `tick` said.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from fedpipe_wire import blobs
from fedpipe_wire.blob_bits import BlobError, all_bits, chunk_count, chunk_span, decode_bitmap
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_outcomes import BlobFailed, Clock
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.topics import Topics
from fedpipe_wire.transport import Transport, TransportError

MAX_RECEIVERS = 4096
_Key = tuple[str, str | None]


@dataclass(slots=True)
class _Stream:
    """One blob on its way to everybody who listens (`to` None) or to one agent; `asked` counts chunks taken on."""

    ref: BlobRef
    to: str | None
    chunks: int
    state: blobs.Sending
    asked: dict[str | None, int] = field(default_factory=dict)


class BlobSender:
    """Sends chunks of the store's blobs, as asked, all blobs in turn; what goes to all goes before what goes to one.

    Args:
        transport: the owner's session.
        topics: of the federation.
        store: where the blobs are.
        clock: monotonic seconds.
        agent: whose upward topics to write; None writes the broadcast.
        settings: window and pace.

    Attributes:
        failures: blobs that cannot be sent any more; for the owner to take.
        published_chunks: chunks handed to the transport.
        acknowledged_bytes: bytes of chunks that the broker acknowledged.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        store: BlobStore,
        clock: Clock,
        *,
        agent: str | None = None,
        settings: BlobSettings,
    ) -> None:
        self._transport, self._topics, self._store = transport, topics, store
        self._clock, self._agent, self._settings = clock, agent, settings
        self._streams: OrderedDict[_Key, _Stream] = OrderedDict()
        self._handles: dict[int, tuple[_Key, int, int]] = {}
        self._pace = blobs.Pace(settings.uplink_bps)
        self.failures: deque[BlobFailed] = deque()
        self.published_chunks = 0
        self.acknowledged_bytes = 0

    @property
    def in_flight(self) -> int:
        """Chunks published and not yet acknowledged by the broker."""
        return len(self._handles)

    def busy(self, sha256: str) -> bool:
        """Whether chunks of this blob are still to be sent or acknowledged."""
        return any(each.state.todo | each.state.in_flight for each in self._of(sha256))

    def offer(self, ref: BlobRef) -> None:
        """Be ready to send this blob when it is asked for.

        Raises:
            BlobError: if its chunks are not usable.
        """
        if (ref.sha256, None) not in self._streams:
            self._open(ref, None)

    def push(self, ref: BlobRef) -> None:
        """Offer this blob and send all of it without being asked.

        Raises:
            BlobError: if its chunks are not usable.
        """
        self.offer(ref)
        stream = self._streams[ref.sha256, None]
        stream.asked.clear()
        self._step(stream, blobs.Asked(all_bits(stream.chunks)))

    def withdraw(self, sha256: str) -> None:
        """Send no more of this blob."""
        for stream in self._of(sha256):
            del self._streams[sha256, stream.to]

    def on_request(self, sha256: str, bitmap: str, asker: str | None = None) -> None:
        """A receiver misses chunks; `asker` is the agent that misses some of a broadcast.

        Raises:
            BlobError: if the blob is not offered, the bitmap is not one of its chunks, or it was asked for too often.
        """
        everybody = self._streams.get((sha256, None))
        if everybody is None:
            raise BlobError(f"blob {sha256[:12]} was asked for and is not offered here")
        bits = decode_bitmap(bitmap, everybody.chunks)
        to = asker if self._agent is None else None
        self._step(everybody, blobs.Asked(0))  # time passes: what was sent long ago is open no more
        stream = self._streams.get((sha256, to))
        news = bits & ~everybody.state.open & ~(0 if stream is None else stream.state.open)
        self._charge(everybody, to, news.bit_count())
        if stream is None:
            stream = self._open(everybody.ref, to)
        if to is not None:
            shared = self._also_missed(sha256, to, news)
            self._step(everybody, blobs.Asked(shared))
            news &= ~shared
        self._step(stream, blobs.Asked(news))

    def on_delivered(self, handle: int) -> bool:
        """The broker acknowledged a publication; whether it was one of these chunks."""
        chunk = self._handles.pop(handle, None)
        if chunk is None:
            return False
        key, index, size = chunk
        self.acknowledged_bytes += size
        if key in self._streams:
            self._step(self._streams[key], blobs.Acknowledged(index))
        return True

    def on_connected(self, *, resumed: bool) -> None:
        """The session is up again; unless `resumed`, the broker may have lost what it acknowledged."""
        for stream in self._streams.values():
            if not resumed:
                stream.asked.clear()
            self._step(stream, blobs.Resumed() if resumed else blobs.StateLost())

    def spend(self, size: int) -> None:
        """The owner sends `size` bytes of something else: they count against the pace."""
        self._pace = self._pace.spend(size, self._clock())

    def tick(self, now: float) -> float | None:
        """Send what may be sent; the clock's time of the next call that matters, None if only an event matters."""
        while len(self._handles) < self._settings.window and self._transport.connected:
            stream = self._next()
            if stream is None:
                return None
            if now < self._pace.free_at:
                return self._pace.free_at
            if not self._send_one(stream, now):
                return None
        return None

    def _of(self, sha256: str) -> list[_Stream]:
        return [stream for (name, _), stream in self._streams.items() if name == sha256]

    def _open(self, ref: BlobRef, to: str | None) -> _Stream:
        count = chunk_count(ref)
        self._streams[ref.sha256, to] = stream = _Stream(ref, to, count, blobs.Sending(count))
        return stream

    def _charge(self, everybody: _Stream, to: str | None, chunks: int) -> None:
        """Refuse one who asks for ever: a request costs its sender little, and this side the whole line."""
        asked = everybody.asked.get(to, 0) + chunks
        name, most = everybody.ref.sha256[:12], self._settings.repeats * everybody.chunks
        if asked > most:
            raise BlobError(
                f"{to or 'the receiver'} asked for {asked} chunks of blob {name}, which has {everybody.chunks}; "
                f"at most {most} are sent at one's request"
            )
        if to not in everybody.asked and len(everybody.asked) >= MAX_RECEIVERS:
            raise BlobError(f"blob {name} was asked for by {MAX_RECEIVERS} agents already, {to} is not served")
        everybody.asked[to] = asked

    def _also_missed(self, sha256: str, to: str, bits: int) -> int:
        """Those of the chunks that another agent asked for a moment ago; where they still wait, they do no more."""
        shared = 0
        for other in self._of(sha256):
            if other.to not in {None, to}:
                self._step(other, blobs.Dropped(0))  # time passes
                shared |= other.state.open & bits
                self._step(other, blobs.Dropped(bits))
        return shared

    def _next(self) -> _Stream | None:
        waiting = [stream for stream in self._streams.values() if stream.state.todo]
        return next((stream for stream in waiting if stream.to is None), waiting[0] if waiting else None)

    def _send_one(self, stream: _Stream, now: float) -> bool:
        ref = stream.ref
        (send,) = self._step(stream, blobs.SlotFree())
        topic = self._topic(stream, send.index)
        try:
            data = self._chunk(ref, send.index)
            handle = self._transport.publish(topic, data)
        except (BlobError, TransportError) as error:
            self.withdraw(ref.sha256)
            self.failures.append(BlobFailed(self._agent, ref.sha256, str(error)))
            return True
        if handle is None:
            self._step(stream, blobs.NotTaken(send.index))
            return False
        self.published_chunks += 1
        self._handles[handle] = ((ref.sha256, stream.to), send.index, len(data))
        self._pace = self._pace.spend(len(data), now)
        self._streams.move_to_end((ref.sha256, stream.to))
        return True

    def _chunk(self, ref: BlobRef, index: int) -> bytes:
        data, (_, length) = self._store.read_chunk(ref.sha256, index, ref.chunk_bytes), chunk_span(ref, index)
        if len(data) != length:
            # its receiver would refuse it, and ask again and again
            raise BlobError(
                f"chunk {index} of blob {ref.sha256[:12]} has {len(data)} bytes, it must have {length}: "
                f"{self._store.path(ref.sha256)} was changed or cut short"
            )
        return data

    def _step(self, stream: _Stream, event: blobs.SenderEvent) -> tuple[blobs.Send, ...]:
        stream.state, actions = blobs.step_sender(stream.state, event, self._clock(), self._settings)
        return actions

    def _topic(self, stream: _Stream, index: int) -> str:
        if self._agent is not None:
            return self._topics.up_chunk(self._agent, stream.ref.sha256, index)
        if stream.to is not None:
            return self._topics.down_chunk(stream.to, stream.ref.sha256, index)
        return self._topics.broadcast_chunk(stream.ref.sha256, index)
