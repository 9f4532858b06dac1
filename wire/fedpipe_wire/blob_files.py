"""Blobs as files named by their content: `<sha256>` is whole, verified and synced.

Owns one folder and the space in it. No blob is ever held in memory. What is still arriving is `blob_partial.py`'s.
A file that an earlier process left has a name, and its bytes need not match it any more: `verify` reads it once.
One thread uses a store; only `add_bytes`, `add_file`, `verify` and what reads may be called from others.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from functools import partial as bound
from pathlib import Path

from fedpipe_wire.blob_bits import BlobDiskError, BlobError, check_size
from fedpipe_wire.blob_partial import PartialBlob, blocks, disk_error, sync_folder
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.message_values import BlobRef

RESERVE_BYTES = 64 << 20
_NAME = re.compile(r"[0-9a-f]{64}")
_OURS = re.compile(r"[0-9a-f]{64}(\.part|\.map)?")
_GONE = ".gone"
"""How names of files end that were removed and still take room."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def boot_name() -> str:
    """What this start of the machine is called; where it has no name, no two calls give the same."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return uuid.uuid4().hex


class BlobStore:
    """A folder of blobs. One process uses it at a time.

    Args:
        folder: made if it is not there.
        max_bytes: larger blobs are refused.
        free_bytes: free space of a folder; a test may say otherwise.
        reserve_bytes: space that must stay free after a transfer.
        chunk_bytes: of the references that this store gives.
        boot: names this start of the machine, see `blob_partial.py`; a test may say otherwise.

    Attributes:
        in_use: blobs that somebody is at work on, and that `collect` leaves alone; its user sets it.
        later: does something soon in another thread; its user sets it. A removed file then only loses its name at once,
            and its space later, for that takes milliseconds; room that is lacking is made at once. None: all at once.
        verified: blobs whose bytes this process has seen to match their names.

    Raises:
        BlobDiskError: if the folder cannot be made, read or swept.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = BlobSettings().max_bytes,
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
        reserve_bytes: int = RESERVE_BYTES,
        chunk_bytes: int = BlobSettings().chunk_bytes,
        boot: str | None = None,
    ) -> None:
        self.folder, self.max_bytes, self.chunk_bytes = folder, max_bytes, chunk_bytes
        self.in_use: Callable[[], Collection[str]] = tuple
        self.later: Callable[[Callable[[], None]], None] | None = None
        self._free_bytes, self._reserve_bytes = free_bytes, reserve_bytes
        self._boot = boot_name() if boot is None else boot
        self._partials: dict[str, PartialBlob] = {}
        self._gone: dict[Path, None] = {}
        self._freeing = threading.Lock()
        self.verified: set[str] = set()
        self._make_folder()
        for left in self._listed():
            if left.suffix in (".new", _GONE):  # of one that was killed
                self._unlink(left)

    def path(self, sha256: str) -> Path:
        """Where a whole blob lies, or would lie.

        Raises:
            BlobError: if this is not a name of a blob.
        """
        if _NAME.fullmatch(sha256) is None:
            raise BlobError(f"blob name {sha256[:80]!r} is not 64 lower-case hexadecimal digits")
        return self.folder / sha256

    def has(self, sha256: str) -> bool:
        """Whether the whole blob is here."""
        return self.path(sha256).is_file()

    def verify(self, sha256: str) -> bool:
        """Whether the whole blob is here with the bytes that its name says; one with others is removed.

        Its file is read once in the life of a process, and not at all where this process has made it.

        Raises:
            BlobError: if it cannot be read, or is wrong and cannot be removed.
        """
        if sha256 in self.verified and self.has(sha256):
            return True
        try:
            with self.path(sha256).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise disk_error("read", sha256, error) from None
        if found != sha256:
            self._unlink(self.path(sha256))
            return False
        self.verified.add(sha256)
        return True

    def names(self) -> list[str]:
        """Whole blobs, sorted.

        Raises:
            BlobDiskError: if the folder cannot be read.
        """
        return sorted(path.name for path in self._listed() if _NAME.fullmatch(path.name))

    def ref(self, sha256: str) -> BlobRef:
        """The reference to a whole blob.

        Raises:
            BlobError: if it is not here.
        """
        try:
            size = self.path(sha256).stat().st_size
        except OSError as error:
            raise disk_error("find", sha256, error) from None
        return BlobRef(sha256=sha256, size=size, chunk_bytes=self.chunk_bytes)

    def add_bytes(self, data: bytes) -> BlobRef:
        """Keep bytes durably under the name of their content.

        Raises:
            BlobError: if there are none or too many, or the disk does not take them.
        """
        return self.ref(self._add(iter((data,)), len(data)))

    def add_file(self, path: Path, *, move: bool = False, sha256: str | None = None) -> BlobRef:
        """Keep a file's bytes durably under the name of their content. `move` takes the file itself where it can.

        `sha256` is what its writer found while it wrote and synced it: such a file is moved without being read again.

        Raises:
            BlobError: if it is empty, too large or unreadable, or the disk does not take it.
        """
        self._make_folder()
        try:
            size = path.stat().st_size
            if move and size and path.stat().st_dev == self.folder.stat().st_dev:
                self._check_total(size, str(path))
                sha256 = sha256 or _synced_digest(path)
                path.replace(self.path(sha256))
                sync_folder(self.folder)
                self.verified.add(sha256)
                return self.ref(sha256)
            with path.open("rb") as file:
                sha256 = self._add(blocks(file), size)
            if move:
                path.unlink()
        except OSError as error:
            raise disk_error("add", str(path), error) from None
        return self.ref(sha256)

    def read_chunk(self, sha256: str, index: int, chunk_bytes: int) -> bytes:
        """One chunk of a whole blob.

        Raises:
            BlobError: if the blob is not here or has no such chunk.
        """
        try:
            with self.path(sha256).open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), chunk_bytes, index * chunk_bytes) if index >= 0 else b""
        except OSError as error:
            raise disk_error("read", sha256, error) from None
        if not data:
            raise BlobError(f"blob {sha256[:12]} has no chunk {index} of {chunk_bytes} bytes")
        return data

    def remove(self, sha256: str) -> None:
        """Forget a blob, whole or partial; nothing happens if it is not here.

        Raises:
            BlobError: if the disk does not let it go.
        """
        path = self.path(sha256)
        for each in (path, path.with_suffix(".part"), path.with_suffix(".map")):
            self._unlink(each)

    def collect(self, keep: Collection[str]) -> int:
        """Remove whole blobs, partial ones and leftovers that nobody needs; how many files went.

        Beside those in `keep` stays what is arriving or in use. Whoever adds one in another thread must see to it that
        nobody collects before it is named.

        Raises:
            BlobError: if the disk does not let one go.
        """
        arriving = {name for name, partial in self._partials.items() if not partial.closed}
        kept = {*keep, *self.in_use(), *arriving}
        removed = 0
        for path in self._listed():
            if path.stem not in kept and _OURS.fullmatch(path.name):
                self._unlink(path)
                removed += 1
        return removed

    def open_partial(self, ref: BlobRef) -> PartialBlob:
        """Begin to receive a blob, or go on where an earlier process stopped.

        Raises:
            BlobError: if it is larger than allowed, or the disk has no room for what is missing, here and in the
                blobs that are arriving already.
        """
        check_size(ref, self.max_bytes)
        self._make_folder()
        partial = PartialBlob(self.folder, ref, self._boot, self.verified.add)
        self._partials = {name: each for name, each in self._partials.items() if not each.closed}
        promised = sum(each.missing_bytes for each in self._partials.values())
        try:
            partial.open(lambda missing: self.check_room(missing + promised, f"blob {ref.sha256[:12]}"))
        except OSError as error:
            partial.close()
            raise disk_error("begin", ref.sha256, error) from None
        self._partials[ref.sha256] = partial
        return partial

    def check_room(self, needed_bytes: int, what: str) -> None:
        """Refuse what would fill the disk; a folder that somebody removed is made again.

        Raises:
            BlobDiskError: naming what is needed and what is free, or the folder that cannot be made.
        """
        self._make_folder()
        free, needed = self._free_bytes(self.folder), needed_bytes + self._reserve_bytes
        if free < needed and self._gone:
            self.free_removed()
            free = self._free_bytes(self.folder)
        if free < needed:
            raise BlobDiskError(
                f"{what} needs {needed} bytes ({self._reserve_bytes} of them in reserve), {free} are free in "
                f"{self.folder}: make room or move the folder"
            )

    def free_removed(self) -> None:
        """Free now what `later` would have freed."""
        for path in list(self._gone):
            self._free(path)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BlobDiskError(
                f"cannot make the folder {self.folder} for blobs: {error.strerror}: move away what lies in its place, "
                "and make the folder around it writable"
            ) from None

    def _add(self, blocks: Iterator[bytes], size: int) -> str:
        self._check_total(size, "blob")
        self.check_room(size, "blob")
        digest = hashlib.sha256()
        new: Path | None = None
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".new", delete=False) as file:
                new = Path(file.name)
                for block in blocks:
                    digest.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path(digest.hexdigest()))
            sync_folder(self.folder)
            self.verified.add(digest.hexdigest())
        except OSError as error:
            if new is not None:
                new.unlink(missing_ok=True)  # half of it would keep the full disk full
            raise disk_error("add", "of this process", error) from None
        return digest.hexdigest()

    def _listed(self) -> list[Path]:
        try:
            return sorted(self.folder.iterdir())
        except OSError as error:
            raise BlobDiskError(f"cannot read the folder {self.folder} of blobs: {error.strerror}") from None

    def _unlink(self, path: Path) -> None:
        self.verified.discard(path.name)
        try:
            if self.later is None or not self._hide(path):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise BlobDiskError(
                f"cannot remove {path}: {error.strerror}. Make its folder writable, or remove it by hand"
            ) from None

    def _hide(self, path: Path) -> bool:
        """Take a file's name from it and have its space freed later; False where the disk does not let it."""
        gone = path.with_name(path.name + _GONE)
        try:
            path.replace(gone)
        except OSError:  # there is none, or a full disk has no room for another name
            return False
        assert self.later is not None
        self._gone[gone] = None
        self.later(bound(self._free, gone))
        return True

    def _free(self, path: Path) -> None:
        """Runs in any thread. What the disk does not let go is tried again at the next start."""
        with self._freeing, contextlib.suppress(OSError):  # who waits for room must wait for who is making it
            path.unlink(missing_ok=True)
        self._gone.pop(path, None)

    def _check_total(self, size: int, what: str) -> None:
        if not 0 < size <= self.max_bytes:
            raise BlobError(f"{what} has {size} bytes, 1 to {self.max_bytes} are taken")


def _synced_digest(path: Path) -> str:
    """The hash of a file's bytes, which are durable when it returns; raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest
