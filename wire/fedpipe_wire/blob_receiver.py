"""The receiving state machine at work: chunks from topics into a store.

Owns which blobs are expected and from whom. Everything happens in the owner's thread and nothing waits: the owner
passes on what its transport's queue delivers, calls `tick` after it, takes the outcomes and acts on them, and sleeps
until the time that `tick` said. What takes seconds, checking a whole blob and forcing it to the disk, a worker does.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial as bound
from pathlib import Path

from fedpipe_wire import blobs
from fedpipe_wire.blob_bits import BlobDiskError, BlobError, chunk_count, encode_bitmap
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_outcomes import BlobArrived, BlobFailed, BlobWanted, Clock
from fedpipe_wire.blob_partial import PartialBlob
from fedpipe_wire.blob_worker import DiskWorker
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.topics import Address

SYNC_BYTES = 32 << 20
"""What has come is forced to the disk as often as this: a power cut loses no more, and little is left at the end."""


@dataclass(slots=True)
class _Transfer:
    """A blob that is arriving, and who can send it; the first source is the one that is asked.

    `finishing`: all is here and the worker has it.
    """

    ref: BlobRef
    sources: deque[str | None]
    partial: PartialBlob
    state: blobs.Receiving
    attempts_left: int
    actions: deque[blobs.ReceiverAction] = field(default_factory=deque)
    syncing: bool = False
    finishing: bool = False


@dataclass(slots=True)
class _Check:
    """A whole blob of an earlier process, which the worker reads once; `pushed` as it was expected."""

    ref: BlobRef
    sources: deque[str | None]
    pushed: bool


class BlobReceiver:
    """Receives blobs into a store, any number at once.

    Args:
        store: where they go; nobody else receives into it.
        clock: monotonic seconds.
        settings: how much to ask for, and when.
        wake: lets the owner call `tick` soon; called from another thread. None does slow disk work in the owner's
            thread.

    Attributes:
        outcomes: what the owner must act on, in order: requests to send, blobs that are whole, blobs given up.
    """

    def __init__(
        self, store: BlobStore, clock: Clock, *, settings: BlobSettings, wake: Callable[[], None] | None = None
    ) -> None:
        self._store, self._clock, self._settings = store, clock, settings
        self._transfers: dict[str, _Transfer] = {}
        self._checks: dict[str, _Check] = {}
        self._told: list[BlobWanted | BlobArrived | BlobFailed] = []
        self._worker = DiskWorker(wake)
        self.outcomes: deque[BlobWanted | BlobArrived | BlobFailed] = deque()
        store.in_use = self._in_use
        store.later = None if wake is None else self._worker.spare

    def expect(self, ref: BlobRef, source: str | None, *, pushed: bool = False) -> None:
        """Receive this blob from an agent, or from the broadcast (None); go on where an earlier process stopped.

        `pushed`: the source is sending it without being asked. A blob that is here already arrives at once; one that an
        earlier process left arrives when it was checked, and one with wrong bytes is removed and received anew.

        Raises:
            BlobError: if it is too large, contradicts what is already expected by that name, or has no room on disk.
        """
        if self._store.has(ref.sha256) or ref.sha256 in self._checks:
            self._expect_here(ref, source, pushed=pushed)
            return
        transfer = self._transfers.get(ref.sha256)
        if transfer is None:
            partial = self._store.open_partial(ref)
            state, actions = self._begin(partial, pushed=pushed)
            attempts = self._settings.attempts
            transfer = _Transfer(ref, deque((source,)), partial, state, attempts, deque(actions))
            self._transfers[ref.sha256] = transfer
            self._act(transfer)
        elif transfer.ref != ref:
            size, chunk = transfer.ref.size, transfer.ref.chunk_bytes
            raise BlobError(
                f"blob {ref.sha256[:12]} is said to have {ref.size} bytes in chunks of {ref.chunk_bytes}, "
                f"another source says {size} in chunks of {chunk}"
            )
        elif source not in transfer.sources:
            transfer.sources.append(source)

    def cancel(self, sha256: str, source: str | None) -> None:
        """Expect this blob from this source no more; what has come stays on disk."""
        check = self._checks.get(sha256)
        if check is not None and source in check.sources:
            check.sources.remove(source)
        transfer = self._transfers.get(sha256)
        if transfer is not None and source in transfer.sources:
            transfer.sources.remove(source)
            if not transfer.sources and not transfer.finishing:
                transfer.partial.close()
                del self._transfers[sha256]

    def expecting(self, sha256: str) -> bool:
        """Whether this blob is on its way."""
        return sha256 in self._transfers or sha256 in self._checks

    def on_chunk(self, address: Address, payload: bytes) -> bool:
        """A chunk came on a blob topic; whether it was new and expected from there. Others are ignored.

        A disk that does not take it ends the transfer, with an outcome; what has come stays.

        Raises:
            BlobError: if it is out of range or of the wrong length: the sender errs.
        """
        transfer = None if address.sha256 is None else self._transfers.get(address.sha256)
        if transfer is None or transfer.finishing or address.chunk is None:
            return False
        if transfer.sources[0] != (address.agent if address.direction == "up" else None):
            return False
        try:
            if not transfer.partial.write_chunk(address.chunk, payload):
                return False
        except BlobDiskError as error:
            self._fail(transfer, error)
            return False
        self._sync(transfer)
        self._step(transfer, blobs.Came(address.chunk), self._clock())
        return True

    def on_connected(self, *, resumed: bool) -> None:
        """The session is up again; unless `resumed`, requests and chunks may be lost: ask again."""
        if not resumed:
            for transfer in self._moving():
                self._step(transfer, blobs.StateLost(), self._clock())

    def tick(self, now: float) -> float | None:
        """Let time pass; the clock's time of the next call that matters, None if only an event matters."""
        self._worker.settle()
        for transfer in self._moving():
            if now >= transfer.state.wake_at(self._settings):
                if now >= transfer.state.ask_at and transfer.state.moved_at < now - self._settings.idle_s:
                    transfer.sources.rotate(-1)  # a source that says nothing must not keep the others waiting
                self._step(transfer, blobs.Woke(), now)
        return min((each.state.wake_at(self._settings) for each in self._moving()), default=None)

    def take(self) -> list[BlobWanted | BlobArrived | BlobFailed]:
        """The outcomes since the last call. Until the next one, the store keeps the blobs that they name."""
        self._told = list(self.outcomes)
        self.outcomes.clear()
        return list(self._told)

    def close(self) -> None:
        """Let go of all files; a later process goes on from them."""
        self._worker.close()
        self._store.later = None
        self._store.free_removed()
        for transfer in self._transfers.values():
            transfer.partial.close()
        self._transfers.clear()
        self._checks.clear()

    def _expect_here(self, ref: BlobRef, source: str | None, *, pushed: bool) -> None:
        check = self._checks.get(ref.sha256)
        if check is None and ref.sha256 in self._store.verified:
            self._arrived(ref.sha256, (source,))
        elif check is None:
            self._checks[ref.sha256] = check = _Check(ref, deque((source,)), pushed)
            self._worker.submit(bound(self._store.verify, ref.sha256), bound(self._checked, check))
        elif source not in check.sources:
            check.sources.append(source)

    def _checked(self, check: _Check, result: Callable[[], bool]) -> None:
        sha256 = check.ref.sha256
        del self._checks[sha256]
        try:
            if result():
                self._arrived(sha256, check.sources)
                return
            for source in check.sources:
                self.expect(check.ref, source, pushed=check.pushed)
        except BlobError as error:
            disk = isinstance(error, BlobDiskError)
            self.outcomes.extend(BlobFailed(source, sha256, str(error), disk=disk) for source in check.sources)

    def _arrived(self, sha256: str, sources: Iterable[str | None]) -> None:
        path = self._store.path(sha256)
        self.outcomes.extend(BlobArrived(source, sha256, path) for source in sources)

    def _in_use(self) -> set[str]:
        return {*self._transfers, *self._checks, *(each.sha256 for each in (*self.outcomes, *self._told))}

    def _moving(self) -> list[_Transfer]:
        return [transfer for transfer in self._transfers.values() if not transfer.finishing]

    def _begin(
        self, partial: PartialBlob, *, pushed: bool = False
    ) -> tuple[blobs.Receiving, tuple[blobs.ReceiverAction, ...]]:
        count = chunk_count(partial.ref)
        return blobs.begin_receiving(count, partial.have, self._clock(), self._settings, pushed=pushed)

    def _step(self, transfer: _Transfer, event: blobs.ReceiverEvent, now: float) -> None:
        transfer.state, actions = blobs.step_receiver(transfer.state, event, now, self._settings)
        transfer.actions.extend(actions)
        self._act(transfer)

    def _act(self, transfer: _Transfer) -> None:
        while transfer.actions:
            match transfer.actions.popleft():
                case blobs.Ask(bits):
                    bitmap = encode_bitmap(bits, transfer.state.chunks)
                    self.outcomes.append(BlobWanted(transfer.sources[0], transfer.ref.sha256, bitmap))
                case blobs.Complete():
                    transfer.finishing = True
                    self._worker.submit(transfer.partial.finish, bound(self._finished, transfer))
                case blobs.GiveUp():
                    missing, silence_s = transfer.state.missing.bit_count(), self._settings.silence_s
                    self._fail(transfer, BlobError(f"{missing} chunks missing and nothing came for {silence_s:g} s"))

    def _sync(self, transfer: _Transfer) -> None:
        partial = transfer.partial
        if partial.unsynced_bytes >= SYNC_BYTES and not transfer.syncing:
            partial.unsynced_bytes, transfer.syncing = 0, True
            self._worker.submit(bound(partial.sync, partial.have), bound(self._synced, transfer))

    def _synced(self, transfer: _Transfer, result: Callable[[], None]) -> None:
        transfer.syncing = False
        result()

    def _finished(self, transfer: _Transfer, result: Callable[[], Path]) -> None:
        transfer.finishing = False
        try:
            result()
            del self._transfers[transfer.ref.sha256]
            self._arrived(transfer.ref.sha256, transfer.sources)
        except BlobDiskError as error:
            self._fail(transfer, error)
        except BlobError as error:
            self._again(transfer, error)

    def _again(self, transfer: _Transfer, error: BlobError) -> None:
        transfer.attempts_left -= 1
        if transfer.attempts_left <= 0 or not transfer.sources:
            self._fail(transfer, BlobError(f"{error} ({self._settings.attempts} attempts)"), spoilt=True)
            return
        transfer.sources.rotate(-1)
        try:
            transfer.partial = self._store.open_partial(transfer.ref)
        except BlobError as second:
            self._fail(transfer, second)
            return
        state, actions = self._begin(transfer.partial)
        # What was just sent is not sent again at once; so do not ask before the sender will hear.
        transfer.state = replace(state, ask_at=self._clock() + self._settings.gap_s)
        transfer.actions.extend(action for action in actions if not isinstance(action, blobs.Ask))
        self._act(transfer)

    def _fail(self, transfer: _Transfer, error: BlobError, *, spoilt: bool = False) -> None:
        transfer.partial.close()
        self._transfers.pop(transfer.ref.sha256, None)
        sha256, disk = transfer.ref.sha256, isinstance(error, BlobDiskError)
        self.outcomes.extend(
            BlobFailed(source, sha256, str(error), disk=disk, spoilt=spoilt) for source in transfer.sources
        )
