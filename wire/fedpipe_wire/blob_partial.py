"""A blob that is still arriving: a sparse file, and a map of the chunks that are in it.

Owns `<sha256>.part` and `<sha256>.map` in a store's folder; a part without a readable map is nothing.

The map has two sets of chunks. Those that were written are true for as long as this machine has not been booted again:
a kill loses nothing that was written. Those that were synced are true for ever; only they count after a power cut. A
disk that forgets even these is found out by the check of the whole, and the blob is fetched again.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from fedpipe_wire.blob_bits import BlobDiskError, BlobError, all_bits, chunk_count, chunk_span
from fedpipe_wire.message_values import BlobRef

_BLOCK_BYTES = 1 << 20


class PartialBlob:
    """A blob that is arriving. Chunks may come in any order and more than once.

    One thread owns it. `sync` may run in another thread at any time, `finish` once all chunks are here: from then on
    the owner leaves it alone until `finish` is over.

    Args:
        folder: where the files lie.
        ref: what is arriving.
        boot: names the time since this machine was booted.
        whole: told the blob's name when it is whole; called where `finish` is.

    Attributes:
        ref: what is arriving.
        have: the chunks that are here, as bits.
        unsynced_bytes: written and not yet told to `sync`.
    """

    def __init__(self, folder: Path, ref: BlobRef, boot: str, whole: Callable[[str], None] = lambda _: None) -> None:
        self.ref = ref
        self._tell_whole = whole
        self.have = 0
        self.unsynced_bytes = 0
        self._whole = folder / ref.sha256
        self._part, self._map = self._whole.with_suffix(".part"), self._whole.with_suffix(".map")
        self._head = f"{ref.sha256} {ref.size} {ref.chunk_bytes} {boot}\n".encode()
        self._map_bytes = -(-chunk_count(ref) // 8)
        self._file: BinaryIO | None = None
        self._marks: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._digested = 0

    @property
    def closed(self) -> bool:
        """Whether the files were let go."""
        return self._file is None

    @property
    def missing_bytes(self) -> int:
        """Upper bound of what is still to be written."""
        return max(0, self.ref.size - self.have.bit_count() * self.ref.chunk_bytes)

    def open(self, check_room: Callable[[int], None]) -> None:
        """Open both files, as they were left or new; raises OSError.

        `check_room` is given the bytes that are still to come, before anything is written, and may raise.
        """
        self.have, synced = self._left()
        check_room(self.missing_bytes)
        if not self.have:
            self._part.write_bytes(b"")
        marks = self._head + self._mask(self.have) + self._mask(synced)
        if not self._map.exists() or self._map.read_bytes() != marks:
            new = self._map.with_suffix(".new")
            new.write_bytes(marks)
            new.replace(self._map)
        self._file = self._part.open("r+b", buffering=0)
        self._file.truncate(self.ref.size)
        self._marks = self._map.open("r+b", buffering=0)

    def write_chunk(self, index: int, data: bytes) -> bool:
        """Keep one chunk; False if it was here before.

        Raises:
            BlobDiskError: if the disk does not take it.
            BlobError: if there is no such chunk, or it has another length than it must.
        """
        offset, length = chunk_span(self.ref, index)
        if len(data) != length:
            name = self.ref.sha256[:12]
            raise BlobError(f"chunk {index} of blob {name} has {len(data)} bytes, it must have {length}")
        if self._file is None or self._marks is None:
            raise BlobError(f"blob {self.ref.sha256[:12]} is closed")
        if self.have >> index & 1:
            return False
        try:
            _write_all(self._file.fileno(), data, offset)
            self.have |= 1 << index
            byte = self.have >> (index & ~7) & 0xFF
            _write_all(self._marks.fileno(), bytes((byte,)), len(self._head) + index // 8)
        except OSError as error:
            self.have &= ~(1 << index)
            raise disk_error("write", self.ref.sha256, error) from None
        if offset == self._digested:  # most chunks come in order and need not be read again
            self._digest.update(data)
            self._digested += length
        self.unsynced_bytes += length
        return True

    def sync(self, have: int) -> None:
        """Make these chunks, written before, survive a power cut; nothing happens if the disk refuses.

        It opens the files itself, so that the owner may let go of its own meanwhile.
        """
        with contextlib.suppress(OSError), self._part.open("rb") as file, self._map.open("r+b", buffering=0) as marks:
            os.fdatasync(file.fileno())
            _write_all(marks.fileno(), self._mask(have), len(self._head) + self._map_bytes)
            os.fdatasync(marks.fileno())
            sync_folder(self._whole.parent)

    def finish(self) -> Path:
        """Verify the whole, make it durable and give it its name. The files are closed after it.

        Raises:
            BlobError: if chunks are missing; if the bytes do not match the name, when the partial blob is thrown away;
                or, as `BlobDiskError`, if the disk does not take it.
        """
        count = chunk_count(self.ref)
        if self.have != all_bits(count) or self._file is None:
            raise BlobError(f"blob {self.ref.sha256[:12]} has {self.have.bit_count()} of its {count} chunks")
        try:
            self._file.seek(self._digested)
            for block in blocks(self._file):
                self._digest.update(block)
            found = self._digest.hexdigest()
            if found != self.ref.sha256:
                self.discard()
                raise BlobError(f"blob named {self.ref.sha256} has bytes of {found}: some chunk was changed on its way")
            self._sync_whole(self._file)
            self.close()
            self._part.replace(self._whole)
            self._map.unlink()
            sync_folder(self._whole.parent)
            self._tell_whole(self.ref.sha256)
        except OSError as error:
            raise disk_error("finish", self.ref.sha256, error) from None
        finally:
            self.close()
        return self._whole

    def discard(self) -> None:
        """Throw away what has come."""
        self.close()
        self._part.unlink(missing_ok=True)
        self._map.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the files; what has come stays for a later `open_partial`."""
        for file in (self._file, self._marks):
            if file is not None:
                file.close()
        self._file = self._marks = None

    def _sync_whole(self, file: BinaryIO) -> None:
        try:
            os.fsync(file.fileno())
        except OSError:
            # A second fsync would succeed and mean nothing: the kernel has marked the pages clean (fsync(2), EIO).
            self.discard()
            raise

    def _mask(self, bits: int) -> bytes:
        return bits.to_bytes(self._map_bytes, "little")

    def _left(self) -> tuple[int, int]:
        """The chunks that are here, and those that are safe, as an earlier process left them; 0 if not usable."""
        try:
            head, _, body = self._map.read_bytes().partition(b"\n")
            size = self._part.stat().st_size
        except FileNotFoundError:
            return 0, 0
        *ours, boot = self._head.split()
        *names, then = head.split() or [b""]
        if names != ours or size != self.ref.size or len(body) != 2 * self._map_bytes:
            return 0, 0
        written, synced = (
            int.from_bytes(half, "little") for half in (body[: self._map_bytes], body[self._map_bytes :])
        )
        if (written | synced) >> chunk_count(self.ref):
            return 0, 0
        return (written if then == boot else synced), synced


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def blocks(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file, a piece at a time."""
    while block := file.read(_BLOCK_BYTES):
        yield block


def disk_error(verb: str, what: str, error: OSError) -> BlobDiskError:
    """What to tell of an operating system's refusal."""
    reason = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        reason = "the disk is full: make room, nothing that was acknowledged is lost"
    return BlobDiskError(f"cannot {verb} blob {what[:80]}: {reason}")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable; raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
