"""What slow disk work leaves to the owner: all goes on while a blob is checked and synced, and nothing is lost."""

import errno
import hashlib
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_pumps import BlobArrived, BlobFailed, BlobReceiver, BlobWanted
from fedpipe_wire.blob_receiver import SYNC_BYTES
from fedpipe_wire.blob_worker import DiskWorker
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.topics import Address

PATIENCE_S = 20.0
SETTINGS = BlobSettings(chunk_bytes=100, silence_s=50.0)
DATA = random.Random(1).randbytes(950)


class Disk:
    """Every fsync waits until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.busy, self.go_on, self._fsync = threading.Event(), threading.Event(), os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        self.busy.set()
        assert self.go_on.wait(PATIENCE_S)
        self._fsync(descriptor)


class Owner:
    """A receiver with a worker, in a made-up time."""

    def __init__(self, folder: Path) -> None:
        self.now, self.woken = 0.0, threading.Event()
        self.ref = BlobStore(folder / "source", chunk_bytes=100, reserve_bytes=0).add_bytes(DATA)
        self.store = BlobStore(folder / "store", chunk_bytes=100, reserve_bytes=0)
        self.receiver = BlobReceiver(self.store, lambda: self.now, settings=SETTINGS, wake=self.woken.set)

    def receive(self, ref: BlobRef, data: bytes, source: str = "one") -> None:
        for index in range(-(-len(data) // 100)):
            chunk = data[100 * index : 100 * index + 100]
            self.receiver.on_chunk(Address(source, "up", "blob", ref.sha256, index), chunk)

    def wait(self) -> list[BlobArrived | BlobFailed]:
        """What the transfers came to, after the worker woke the owner."""
        assert self.woken.wait(PATIENCE_S)
        self.woken.clear()
        self.receiver.tick(self.now)
        return [outcome for outcome in self.receiver.take() if isinstance(outcome, BlobArrived | BlobFailed)]


@contextmanager
def owner_at(folder: Path, disk: Disk) -> Iterator[Owner]:
    disk.go_on.set()
    owner = Owner(folder)
    disk.go_on.clear()
    disk.busy.clear()
    try:
        yield owner
    finally:
        disk.go_on.set()
        owner.receiver.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def owner(tmp_path: Path, disk: Disk) -> Iterator[Owner]:
    with owner_at(tmp_path, disk) as made:
        yield made


def test_the_owner_goes_on_while_the_disk_works(owner: Owner, disk: Disk) -> None:
    owner.receiver.expect(owner.ref, "one")
    owner.receive(owner.ref, DATA)
    assert disk.busy.wait(PATIENCE_S)
    owner.receiver.expect(owner.ref, "two")
    owner.receive(owner.ref, bytes(950))  # chunks that come once more change nothing any more
    owner.receiver.on_connected(resumed=False)
    owner.now += 1000.0  # a disk may take longer than a peer may be silent
    assert owner.receiver.tick(owner.now) is None
    assert [type(outcome).__name__ for outcome in owner.receiver.take()] == ["BlobWanted"]
    disk.go_on.set()
    assert owner.woken.wait(PATIENCE_S)
    owner.receive(owner.ref, bytes(950))  # also when the worker is done and the owner does not know yet
    told = owner.wait()
    assert {(type(outcome), outcome.source) for outcome in told} == {(BlobArrived, "one"), (BlobArrived, "two")}
    assert owner.store.path(owner.ref.sha256).read_bytes() == DATA


def test_nothing_is_collected_before_its_owner_was_told(owner: Owner, disk: Disk) -> None:
    owner.receiver.expect(owner.ref, "one")
    owner.receive(owner.ref, DATA)
    owner.store.collect(())
    disk.go_on.set()
    assert owner.woken.wait(PATIENCE_S)
    owner.store.collect(())
    assert len(owner.wait()) == 1
    owner.store.collect(())
    assert owner.store.has(owner.ref.sha256)  # its owner is acting on what it was told
    owner.receiver.take()
    owner.store.collect(())
    assert not owner.store.has(owner.ref.sha256)


def test_what_is_cancelled_while_the_disk_works_is_told_to_nobody(owner: Owner, disk: Disk) -> None:
    owner.receiver.expect(owner.ref, "one")
    owner.receive(owner.ref, DATA)
    assert disk.busy.wait(PATIENCE_S)
    owner.receiver.cancel(owner.ref.sha256, "one")
    disk.go_on.set()
    assert owner.wait() == []
    assert not owner.receiver.expecting(owner.ref.sha256)
    assert owner.store.has(owner.ref.sha256)


def test_wrong_bytes_are_found_by_the_worker_and_fetched_again(owner: Owner, disk: Disk) -> None:
    disk.go_on.set()
    owner.receiver.expect(owner.ref, "one")
    owner.receive(owner.ref, bytes(950))
    assert owner.wait() == []
    owner.now += SETTINGS.gap_s
    owner.receiver.tick(owner.now)
    assert [type(outcome).__name__ for outcome in owner.receiver.take()] == ["BlobWanted"]
    owner.receive(owner.ref, DATA)
    (arrived,) = owner.wait()
    assert isinstance(arrived, BlobArrived)


def test_a_close_while_the_disk_works_leaves_the_blob_whole_or_its_parts(owner: Owner, disk: Disk) -> None:
    owner.receiver.expect(owner.ref, "one")
    owner.receive(owner.ref, DATA)
    assert disk.busy.wait(PATIENCE_S)
    closing = threading.Thread(target=owner.receiver.close)
    closing.start()
    disk.go_on.set()
    closing.join(PATIENCE_S)
    assert owner.store.path(owner.ref.sha256).read_bytes() == DATA
    assert owner.receiver.take()[1:] == []


def test_a_large_blob_is_synced_on_the_way(
    owner: Owner, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    disk.go_on.set()
    chunk = bytes(1 << 20)
    size = SYNC_BYTES + len(chunk)
    ref = BlobRef(sha256="0" * 64, size=2 * size, chunk_bytes=len(chunk))
    owner.receiver.expect(ref, "one")
    for index in range(size // len(chunk)):
        owner.receiver.on_chunk(Address("one", "up", "blob", ref.sha256, index), chunk)
    owner.wait()
    assert len(synced) == 2  # its bytes, then the claim that they are there
    owner.receiver.close()
    again = BlobStore(tmp_path / "store", boot="another").open_partial(ref)
    assert again.have.bit_count() == SYNC_BYTES // len(chunk)
    again.close()


def test_a_worker_that_is_closed_forgets_what_it_had_not_begun() -> None:
    begun, go_on, woken = threading.Event(), threading.Event(), threading.Event()
    worker = DiskWorker(woken.set)

    def wait() -> None:
        begun.set()
        assert go_on.wait(PATIENCE_S)

    endings: list[str] = []
    worker.submit(wait, lambda _: endings.append("first"))
    worker.submit(lambda: endings.append("done"), lambda _: endings.append("second"))
    assert begun.wait(PATIENCE_S)
    closing = threading.Thread(target=worker.close)
    closing.start()
    go_on.set()
    closing.join(PATIENCE_S)
    worker.settle()
    assert endings in ([], ["done"])
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("blobs")]


def test_the_owner_does_not_wait_for_space_to_be_freed(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on, unlink = threading.Event(), threading.Event(), Path.unlink

    def slow(path: Path, *, missing_ok: bool = False) -> None:
        if path.suffix == ".gone":
            began.set()
            assert go_on.wait(PATIENCE_S)
        unlink(path, missing_ok=missing_ok)

    for name in (owner.ref.sha256, "a" * 64):
        (owner.store.folder / name).write_bytes(DATA)
    monkeypatch.setattr(Path, "unlink", slow)
    owner.store.collect(())
    assert began.wait(PATIENCE_S)
    assert not owner.store.has(owner.ref.sha256)
    owner.receiver.expect(owner.ref, "one")
    assert owner.receiver.expecting(owner.ref.sha256)
    go_on.set()
    owner.receiver.close()  # what the worker did not come to is freed now
    assert {path.suffix for path in owner.store.folder.iterdir()} == {".part", ".map"}
    owner.store.remove(owner.ref.sha256)
    assert not list(owner.store.folder.iterdir())
    assert not owner.woken.is_set()


# --- what an earlier process left -------------------------------------------------------------------------------


@pytest.fixture
def left(owner: Owner, disk: Disk) -> Owner:
    """The blob is here, and nobody has looked at it."""
    disk.go_on.set()
    BlobStore(owner.store.folder, reserve_bytes=0).add_bytes(DATA)
    return owner


def test_a_blob_of_an_earlier_process_arrives_when_the_worker_has_read_it(left: Owner) -> None:
    for source in ("one", "two", "one"):
        left.receiver.expect(left.ref, source)
    assert left.receiver.take() == []
    assert left.receiver.expecting(left.ref.sha256)
    left.store.collect(())
    told = left.wait()
    assert [(type(outcome), outcome.source) for outcome in told] == [(BlobArrived, "one"), (BlobArrived, "two")]
    left.receiver.expect(left.ref, "three")
    (again,) = left.receiver.take()  # what is known to be right arrives at once
    assert (type(again), again.source) == (BlobArrived, "three")


def test_a_blob_of_an_earlier_process_with_wrong_bytes_is_received_anew(left: Owner) -> None:
    left.store.path(left.ref.sha256).write_bytes(bytes(950))
    left.receiver.expect(left.ref, "one")
    left.receiver.expect(left.ref, "two")
    left.receiver.cancel(left.ref.sha256, "one")
    assert left.woken.wait(PATIENCE_S)
    left.woken.clear()
    left.receiver.tick(left.now)
    (wanted,) = left.receiver.take()
    assert isinstance(wanted, BlobWanted)
    assert wanted.source == "two"
    left.receive(left.ref, DATA, "two")
    assert [type(outcome) for outcome in left.wait()] == [BlobArrived]
    assert left.store.path(left.ref.sha256).read_bytes() == DATA


def test_a_blob_of_an_earlier_process_that_cannot_be_read_is_a_failure_of_this_disk(
    left: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    left.receiver.expect(left.ref, "one")
    (failed,) = left.wait()
    assert isinstance(failed, BlobFailed)
    assert (failed.disk, failed.hopeless) == (True, False)
    assert "Input/output error" in failed.reason
