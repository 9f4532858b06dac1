"""The sending state machine at work: chunks from a store into a transport.

Owns which blobs are on offer, the window over all of them, and the pace. Everything happens in the owner's thread and
nothing waits: the owner passes on what its transport's queue delivers, calls `tick` after it, and sleeps until the
time that `tick` said.
"""

from collections import OrderedDict, deque

from fedpipe_wire import blobs
from fedpipe_wire.blob_bits import BlobError, all_bits, chunk_count, decode_bitmap
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_outcomes import BlobFailed, Clock
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.messages import BlobRef
from fedpipe_wire.topics import Topics
from fedpipe_wire.transport import Transport, TransportError


class BlobSender:
    """Sends chunks of the store's blobs, as asked, all blobs in turn.

    Args:
        transport: the owner's session.
        topics: of the federation.
        store: where the blobs are.
        clock: monotonic seconds.
        agent: whose upward topics to write; None writes the broadcast.
        settings: window and pace.
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
        self._offered: OrderedDict[str, tuple[BlobRef, blobs.Sending]] = OrderedDict()
        self._handles: dict[int, tuple[str, int, int]] = {}
        self._pace = blobs.Pace(settings.uplink_bps)
        self.failures: deque[BlobFailed] = deque()
        self.acknowledged_bytes = 0

    @property
    def in_flight(self) -> int:
        """Chunks published and not yet acknowledged by the broker."""
        return len(self._handles)

    def busy(self, sha256: str) -> bool:
        """Whether chunks of this blob are still to be sent or acknowledged."""
        offered = self._offered.get(sha256)
        return offered is not None and bool(offered[1].todo | offered[1].in_flight)

    def offer(self, ref: BlobRef) -> None:
        """Be ready to send this blob when it is asked for.

        Raises:
            BlobError: if its chunks are not usable.
        """
        if ref.sha256 not in self._offered:
            self._offered[ref.sha256] = (ref, blobs.Sending(chunk_count(ref)))

    def push(self, ref: BlobRef) -> None:
        """Offer this blob and send all of it without being asked.

        Raises:
            BlobError: if its chunks are not usable.
        """
        self.offer(ref)
        self._step(ref.sha256, blobs.Asked(all_bits(chunk_count(ref))))

    def withdraw(self, sha256: str) -> None:
        """Send no more of this blob."""
        self._offered.pop(sha256, None)

    def on_request(self, sha256: str, bitmap: str) -> None:
        """A receiver misses chunks.

        Raises:
            BlobError: if the blob is not offered, or the bitmap is not one of its chunks.
        """
        if sha256 not in self._offered:
            raise BlobError(f"blob {sha256[:12]} was asked for and is not offered here")
        ref, _ = self._offered[sha256]
        self._step(sha256, blobs.Asked(decode_bitmap(bitmap, chunk_count(ref))))

    def on_delivered(self, handle: int) -> bool:
        """The broker acknowledged a publication; whether it was one of these chunks."""
        chunk = self._handles.pop(handle, None)
        if chunk is None:
            return False
        sha256, index, size = chunk
        self.acknowledged_bytes += size
        if sha256 in self._offered:
            self._step(sha256, blobs.Acknowledged(index))
        return True

    def on_connected(self, *, resumed: bool) -> None:
        """The session is up again; unless `resumed`, the broker may have lost what it acknowledged."""
        if not resumed:
            for sha256 in list(self._offered):
                self._step(sha256, blobs.StateLost())

    def tick(self, now: float) -> float | None:
        """Send what may be sent; the clock's time of the next call that matters, None if only an event matters."""
        while len(self._handles) < self._settings.window and self._transport.connected:
            sha256 = next((name for name, (_, state) in self._offered.items() if state.todo), None)
            if sha256 is None:
                return None
            if now < self._pace.free_at:
                return self._pace.free_at
            if not self._send_one(sha256, now):
                return None
        return None

    def _send_one(self, sha256: str, now: float) -> bool:
        ref, _ = self._offered[sha256]
        (send,) = self._step(sha256, blobs.SlotFree())
        try:
            data = self._store.read_chunk(sha256, send.index, ref.chunk_bytes)
            handle = self._transport.publish(self._topic(sha256, send.index), data)
        except (BlobError, TransportError) as error:
            self.withdraw(sha256)
            self.failures.append(BlobFailed(self._agent, sha256, str(error)))
            return True
        if handle is None:
            self._step(sha256, blobs.NotTaken(send.index))
            return False
        self._handles[handle] = (sha256, send.index, len(data))
        self._pace = self._pace.spend(len(data), now)
        self._offered.move_to_end(sha256)
        return True

    def _step(self, sha256: str, event: blobs.SenderEvent) -> tuple[blobs.Send, ...]:
        ref, state = self._offered[sha256]
        state, actions = blobs.step_sender(state, event, self._clock(), self._settings)
        self._offered[sha256] = (ref, state)
        return actions

    def _topic(self, sha256: str, index: int) -> str:
        if self._agent is None:
            return self._topics.broadcast_chunk(sha256, index)
        return self._topics.up_chunk(self._agent, sha256, index)
