"""A blob that is still arriving: a sparse file, and a map of the chunks that are in it.

Owns `<sha256>.part` and `<sha256>.map` in a store's folder; a part without a readable map is nothing.

A map may, after a power cut, claim chunks whose bytes were never written: the check of the whole finds that, and the
blob is fetched again. After a mere kill it never does, because a chunk is written before it is claimed.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fedpipe_wire.blob_bits import BlobDiskError, BlobError, all_bits, chunk_count, chunk_span
from fedpipe_wire.messages import BlobRef

_BLOCK_BYTES = 1 << 20


class PartialBlob:
    """A blob that is arriving. Chunks may come in any order and more than once.

    Attributes:
        ref: what is arriving.
        have: the chunks that are here, as bits.
    """

    def __init__(self, folder: Path, ref: BlobRef) -> None:
        self.ref = ref
        self.have = 0
        self._whole = folder / ref.sha256
        self._part, self._map = self._whole.with_suffix(".part"), self._whole.with_suffix(".map")
        self._head = f"{ref.sha256} {ref.size} {ref.chunk_bytes}\n".encode()
        self._file: BinaryIO | None = None
        self._marks: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._digested = 0

    def open(self) -> None:
        """Open both files, as they were left or new; raises OSError."""
        count = chunk_count(self.ref)
        self.have = self._left(count)
        if not self.have:
            self._part.write_bytes(b"")
            self._map.write_bytes(self._head + bytes(-(-count // 8)))
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
        return True

    def finish(self) -> Path:
        """Verify the whole, make it durable and give it its name.

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
            os.fsync(self._file.fileno())
            self.close()
            self._part.replace(self._whole)
            self._map.unlink()
            sync_folder(self._whole.parent)
        except OSError as error:
            raise disk_error("finish", self.ref.sha256, error) from None
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

    def _left(self, count: int) -> int:
        """The chunks that an earlier process left, as bits; 0 if there is nothing usable."""
        try:
            marks = self._map.read_bytes()
            size = self._part.stat().st_size
        except FileNotFoundError:
            return 0
        usable = marks.startswith(self._head) and len(marks) == len(self._head) + -(-count // 8)
        have = int.from_bytes(marks[len(self._head) :], "little")
        return have if usable and size == self.ref.size and not have >> count else 0


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
