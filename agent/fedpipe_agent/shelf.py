"""The agent's blobs: adapters that it receives and updates that it sends, until nobody needs them.

Owns the folder `blobs` and the trainer's written update. What is needed is told by the memory: the adapter of the task
in hand, the updates in the outbox, and whatever is under way at this moment.
"""

import contextlib
import errno
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from fedpipe_agent.agent_events import (
    AdapterReady,
    DiskRefused,
    NameUpdate,
    NotShelved,
    ShelveUpdate,
    UpdateNamed,
    UpdateShelved,
)
from fedpipe_agent.memory import Memory
from fedpipe_agent.state_folder import StateFolder
from fedpipe_wire.blob_bits import BlobError
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_partial import disk_error, sync_folder
from fedpipe_wire.blob_receiver import BlobReceiver
from fedpipe_wire.blob_sender import BlobSender
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.coordinator_messages import EvaluateTask, TrainTask
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.topics import Topics
from fedpipe_wire.transport import Posted, Transport


class Shelf:
    """Used by the daemon's thread only; `clock` in monotonic seconds."""

    def __init__(
        self,
        folder: StateFolder,
        transport: Transport,
        topics: Topics,
        agent: str,
        settings: BlobSettings,
        clock: Callable[[], float],
        log: Callable[[str], None],
    ) -> None:
        self._folder, self._log = folder, log
        self.store = BlobStore(folder.blobs, chunk_bytes=settings.chunk_bytes)
        self.sender = BlobSender(transport, topics, self.store, clock, agent=agent, settings=settings)
        self.receiver = BlobReceiver(
            self.store, clock, settings=settings, wake=lambda: transport.events.put(Posted(None))
        )
        self._named: BlobRef | None = None

    def check(self, memory: Memory) -> None:
        """Read once what an earlier process left in the outbox; a file that is not what its name says is removed."""
        for trained in memory.outbox:
            try:
                self.store.verify(trained.update.sha256)
            except BlobError as error:
                self._log(str(error))  # it is told to the coordinator when it is to be offered

    def name(self, path: Path) -> BlobRef:
        """The reference to the trainer's written update: its content is read, and nothing is moved.

        Raises:
            BlobError: if it is not there, or is empty, too large or unreadable.
        """
        try:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
        except OSError as error:
            raise disk_error("read", str(path), error) from None
        if not 0 < size <= self.store.max_bytes:
            raise BlobError(f"{path} has {size} bytes, 1 to {self.store.max_bytes} are taken")
        self._named = BlobRef(sha256=sha256, size=size, chunk_bytes=self.store.chunk_bytes)
        return self._named

    def shelve(self, path: Path, ref: BlobRef) -> None:
        """Have an update in the outbox, ready to be sent: take the written file, unless it is there already.

        Raises:
            BlobError: if it is in neither place with the bytes of its name, or the disk does not take it.
        """
        if not self.store.verify(ref.sha256):
            named = self._named or (self.name(path) if path.exists() else None)
            if named is None or named.sha256 != ref.sha256:
                raise BlobError(
                    f"update {ref.sha256[:12]} is not in {self._folder.blobs} any more, or had other bytes there: "
                    "was it removed or changed by hand, or is the disk failing?"
                )
            self._move(path, ref.sha256)
        self._named = None
        self.sender.offer(ref)

    def keep(self, action: NameUpdate | ShelveUpdate) -> UpdateNamed | UpdateShelved | NotShelved:
        """Do what brings an update into the outbox; what came of it."""
        try:
            if isinstance(action, NameUpdate):
                return UpdateNamed(self.name(action.path))
            self.shelve(action.path, action.ref)
            return UpdateShelved(action.ref)
        except BlobError as error:
            return NotShelved(action.ref.sha256 if isinstance(action, ShelveUpdate) else None, str(error))

    def drop(self, sha256: str) -> None:
        """Forget an update."""
        self.sender.withdraw(sha256)
        with self._telling():
            self.store.remove(sha256)

    def fetch(self, ref: BlobRef, memory: Memory) -> None:
        """Receive an adapter; what has come of it before is used. Those not wanted any more make room for it.

        Raises:
            BlobError: if it is too large, or the disk does not take it.
        """
        self.tidy(memory, wanted=ref.sha256)
        self.receiver.expect(ref, None)

    def arrived(self, sha256: str) -> AdapterReady | DiskRefused:
        """What an adapter's arrival means: it is there, or was taken away since."""
        try:
            return AdapterReady(self.store.ref(sha256), self.store.path(sha256))
        except BlobError as error:
            return DiskRefused(sha256, str(error))

    def tidy(self, memory: Memory, *, wanted: str | None = None) -> None:
        """Remove every blob that is neither needed nor under way; `wanted` is the adapter of the next task."""
        with self._telling():
            self.store.collect(needed_blobs(memory) | ({wanted} if wanted else set()))

    def tidy_updates(self, memory: Memory) -> None:
        """Remove what trainers have written, unless it is on its way into the outbox; none may be at work."""
        update = self._folder.update
        on_its_way = memory.stage == "shelving" or any(not self.store.has(t.update.sha256) for t in memory.outbox)
        with self._telling():
            for path in update.parent.glob(f"{update.name}*"):
                if path != update or not on_its_way:
                    path.unlink()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (OSError, BlobError) as error:
            self._log(f"a file that is not needed cannot be removed from {self._folder.path}: {error}")

    def _move(self, path: Path, sha256: str) -> None:
        try:
            path.replace(self.store.path(sha256))
            sync_folder(self.store.folder)
            self.store.verified.add(sha256)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise disk_error("keep", sha256, error) from None
            self.store.add_file(path, move=True)  # the owner has the blobs on a disk of their own


def needed_blobs(memory: Memory) -> set[str]:
    """The blobs that a memory cannot do without."""
    needed = {trained.update.sha256 for trained in memory.outbox}
    if isinstance(memory.task, TrainTask | EvaluateTask) and memory.stage in ("fetching", "working"):
        needed.add(memory.task.adapter.sha256)
    return needed
