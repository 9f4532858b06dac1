"""The blob store: content-named files, partial files that outlive a process, and disks that refuse."""

import contextlib
import errno
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedpipe_wire.blob_bits import BlobDiskError, BlobError, decode_bitmap
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_partial import PartialBlob
from fedpipe_wire.blob_pumps import BlobArrived, BlobFailed, BlobReceiver, BlobWanted
from fedpipe_wire.blobs import BlobSettings
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.topics import Address

Spoil = Callable[[Path, Path], object]
DATA = bytes(range(250)) * 4
CHUNKS = [DATA[begin : begin + 300] for begin in range(0, 1000, 300)]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", chunk_bytes=300, reserve_bytes=0)


@pytest.fixture
def ref() -> BlobRef:
    return BlobRef(sha256=hashlib.sha256(DATA).hexdigest(), size=1000, chunk_bytes=300)


@pytest.fixture
def partial(store: BlobStore, ref: BlobRef) -> Iterator[PartialBlob]:
    opened = store.open_partial(ref)
    yield opened
    opened.close()


def files(store: BlobStore) -> set[str]:
    return {path.suffix for path in store.folder.iterdir()}


def test_bytes_are_kept_under_the_name_of_their_content(store: BlobStore, ref: BlobRef) -> None:
    assert store.add_bytes(DATA) == ref
    assert store.add_bytes(DATA) == ref
    assert store.names() == [ref.sha256]
    assert store.ref(ref.sha256) == ref
    assert [store.read_chunk(ref.sha256, index, 300) for index in range(4)] == CHUNKS
    store.remove(ref.sha256)
    assert not store.has(ref.sha256)
    store.remove(ref.sha256)


@pytest.mark.parametrize("move", [False, True])
def test_a_file_is_copied_or_moved(store: BlobStore, ref: BlobRef, tmp_path: Path, move: bool) -> None:  # noqa: FBT001 -- a table's column
    source = tmp_path / "update.safetensors"
    source.write_bytes(DATA)
    assert store.add_file(source, move=move) == ref
    assert source.exists() is not move
    assert store.path(ref.sha256).read_bytes() == DATA


def test_a_file_whose_writer_knows_its_hash_is_not_read_again(store: BlobStore, ref: BlobRef, tmp_path: Path) -> None:
    source = tmp_path / "adapter.safetensors"
    source.write_bytes(DATA)
    named = store.add_file(source, move=True, sha256="a" * 64)
    assert (named.sha256, named.size) == ("a" * 64, ref.size)
    assert not source.exists()
    with pytest.raises(BlobError, match="64 lower-case hexadecimal"):
        store.add_file(store.path("a" * 64), move=True, sha256="../blob")


@pytest.mark.parametrize("name", ["", "x" * 64, "../" + "a" * 61, "A" * 64, "a" * 63])
def test_a_name_that_is_no_hash_never_becomes_a_path(store: BlobStore, name: str) -> None:
    for use in (store.path, store.has, store.ref, store.remove):
        with pytest.raises(BlobError, match="64 lower-case hexadecimal"):
            use(name)


@pytest.mark.parametrize("index", [-1, 4, 1 << 40])
def test_a_chunk_that_is_not_there_is_refused(store: BlobStore, index: int) -> None:
    ref = store.add_bytes(DATA)
    with pytest.raises(BlobError, match=f"no chunk {index}|cannot read"):
        store.read_chunk(ref.sha256, index, 300)


def test_what_is_not_here_is_told(store: BlobStore, ref: BlobRef, tmp_path: Path) -> None:
    with pytest.raises(BlobDiskError, match=r"cannot find blob .*: No such file"):
        store.ref(ref.sha256)
    with pytest.raises(BlobDiskError, match="cannot read"):
        store.read_chunk(ref.sha256, 0, 300)
    with pytest.raises(BlobDiskError, match="cannot add"):
        store.add_file(tmp_path / "nothing")
    with pytest.raises(BlobError, match="0 bytes, 1 to"):
        store.add_bytes(b"")


def test_chunks_in_any_order_become_the_blob(store: BlobStore, ref: BlobRef, partial: PartialBlob) -> None:
    assert [partial.write_chunk(index, CHUNKS[index]) for index in (3, 0, 0, 2, 1)] == [True, True, False, True, True]
    path = partial.finish()
    assert path.read_bytes() == DATA
    assert store.has(ref.sha256)
    assert files(store) == {""}


def test_what_has_come_outlives_the_process(store: BlobStore, ref: BlobRef, partial: PartialBlob) -> None:
    partial.write_chunk(0, CHUNKS[0])
    partial.write_chunk(2, CHUNKS[2])
    # No close, no flush: a process that is killed does neither.
    again = BlobStore(store.folder, reserve_bytes=0).open_partial(ref)
    assert again.have == 0b101
    again.write_chunk(1, CHUNKS[1])
    again.write_chunk(3, CHUNKS[3])
    assert again.finish().read_bytes() == DATA


@pytest.mark.parametrize(
    "spoil",
    [
        lambda map_file, _part: map_file.unlink(),
        lambda _map, part: part.unlink(),
        lambda map_file, _part: map_file.write_bytes(map_file.read_bytes()[:-1]),
        lambda map_file, _part: map_file.write_bytes(b"\x00" * 10),
        lambda map_file, _part: map_file.write_bytes(map_file.read_bytes()[:-1] + b"\xff"),
        lambda _map, part: part.write_bytes(b"short"),
    ],
    ids=["no map", "no part", "map cut off", "map of nothing", "map of too much", "part cut off"],
)
def test_a_spoilt_partial_blob_begins_anew(store: BlobStore, ref: BlobRef, partial: PartialBlob, spoil: Spoil) -> None:
    partial.write_chunk(0, CHUNKS[0])
    partial.close()
    spoil(store.folder / f"{ref.sha256}.map", store.folder / f"{ref.sha256}.part")
    again = store.open_partial(ref)
    assert again.have == 0
    for index, chunk in enumerate(CHUNKS):
        again.write_chunk(index, chunk)
    assert again.finish().read_bytes() == DATA


def test_another_chunk_size_begins_anew(store: BlobStore, ref: BlobRef, partial: PartialBlob) -> None:
    partial.write_chunk(0, CHUNKS[0])
    partial.close()
    again = store.open_partial(ref.model_copy(update={"chunk_bytes": 500}))
    assert again.have == 0
    again.discard()


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_bytes_that_do_not_match_the_name_are_thrown_away(
    store: BlobStore, ref: BlobRef, partial: PartialBlob, place: int
) -> None:
    for index, chunk in enumerate(CHUNKS):
        changed = bytes((chunk[0] ^ 1,)) + chunk[1:]
        partial.write_chunk(index, changed if index == place else chunk)
    with pytest.raises(BlobError, match=f"blob named {ref.sha256} has bytes of"):
        partial.finish()
    assert not files(store)


def test_a_map_that_claims_bytes_lost_in_a_power_cut_is_found_out(
    store: BlobStore, ref: BlobRef, partial: PartialBlob
) -> None:
    partial.write_chunk(0, CHUNKS[0])
    partial.close()
    (store.folder / f"{ref.sha256}.part").write_bytes(bytes(1000))
    again = store.open_partial(ref)
    for index in (1, 2, 3):
        again.write_chunk(index, CHUNKS[index])
    with pytest.raises(BlobError, match="has bytes of"):
        again.finish()


def test_an_unfinished_blob_is_not_finished(partial: PartialBlob) -> None:
    partial.write_chunk(0, CHUNKS[0])
    with pytest.raises(BlobError, match="has 1 of its 4 chunks"):
        partial.finish()


def test_the_room_that_is_there_already_counts(tmp_path: Path, ref: BlobRef) -> None:
    free = 1000
    store = BlobStore(tmp_path, free_bytes=lambda _: free, reserve_bytes=0)
    partial = store.open_partial(ref)
    partial.write_chunk(0, CHUNKS[0])
    partial.close()
    free = 700
    store.open_partial(ref).close()
    free = 699
    with pytest.raises(BlobDiskError, match=r"needs 700 bytes .* 699 are free"):
        store.open_partial(ref)


def test_a_full_disk_loses_nothing_that_was_there(
    ref: BlobRef, partial: PartialBlob, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial.write_chunk(0, CHUNKS[0])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(BlobDiskError, match=f"cannot write blob {ref.sha256}: the disk is full: make room"):
            partial.write_chunk(1, CHUNKS[1])
    assert partial.have == 0b1
    for index in (1, 2, 3):
        assert partial.write_chunk(index, CHUNKS[index])
    assert partial.finish().read_bytes() == DATA


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BlobDiskError, match="cannot make the folder"):
        BlobStore(tmp_path / "file" / "blobs")


@pytest.mark.parametrize("name", ["x.new", "tmpabc.new"])
def test_a_leftover_that_cannot_be_removed_is_told(store: BlobStore, name: str) -> None:
    (store.folder / name).mkdir()
    with pytest.raises(BlobDiskError, match=rf"cannot remove .*/{name}: Is a directory.*by hand"):
        BlobStore(store.folder)


def test_a_folder_that_is_gone_is_told(store: BlobStore) -> None:
    store.folder.rmdir()
    for use in (store.names, lambda: store.collect(())):
        with pytest.raises(BlobDiskError, match=r"cannot read the folder .*: No such file"):
            use()


def test_what_a_killed_process_was_adding_is_swept(store: BlobStore) -> None:
    (store.folder / "tmpabc.new").write_bytes(b"half")
    assert BlobStore(store.folder).names() == []
    assert not files(store)


# --- what an earlier process left -------------------------------------------------------------------------------


def spoiled_at(place: int) -> Spoil:
    def spoil(path: Path, _: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)

    return spoil


SPOILS: dict[str, Spoil] = {
    "its first byte": spoiled_at(0),
    "its last byte": spoiled_at(-1),
    "an end that is missing": lambda path, _: os.truncate(path, 700),
    "nothing in it": lambda path, _: os.truncate(path, 0),
    "more at its end": lambda path, _: path.write_bytes(DATA + b"x"),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_blob_that_is_not_what_its_name_says_is_found_and_removed(store: BlobStore, spoil: str) -> None:
    ref = store.add_bytes(DATA)
    SPOILS[spoil](store.path(ref.sha256), store.folder)
    later = BlobStore(store.folder, chunk_bytes=300)
    assert not later.verify(ref.sha256)
    assert not later.has(ref.sha256)
    assert later.add_bytes(DATA) == ref
    assert later.verify(ref.sha256)


def test_a_blob_is_read_once_in_a_process_and_not_at_all_where_the_process_made_it(
    store: BlobStore, partial: PartialBlob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for index, chunk in enumerate(CHUNKS):
        partial.write_chunk(index, chunk)
    partial.finish()
    (tmp_path / "file").write_bytes(b"a file")
    made = [partial.ref.sha256, store.add_bytes(b"bytes").sha256, store.add_file(tmp_path / "file", move=True).sha256]
    later = BlobStore(store.folder)
    assert all(later.verify(name) for name in made)

    def unread(*_: object) -> object:
        raise AssertionError("it was read")

    monkeypatch.setattr(hashlib, "file_digest", unread)
    for each in (store, later):
        assert all(each.verify(name) for name in made)
    store.remove(made[0])
    assert not store.verify(made[0])
    assert made[0] not in store.verified
    assert not later.verify(made[0])


def test_a_blob_that_cannot_be_read_is_told_and_stays(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = store.add_bytes(DATA)
    later = BlobStore(store.folder)
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", refuse)
        with pytest.raises(BlobDiskError, match=f"cannot read blob {ref.sha256}: Input/output error"):
            later.verify(ref.sha256)
    assert later.verify(ref.sha256)


# --- what a power cut leaves ------------------------------------------------------------------------------------


def booted(store: BlobStore, name: str) -> BlobStore:
    """The same folder in a process that was started after the machine was."""
    return BlobStore(store.folder, chunk_bytes=300, reserve_bytes=0, boot=name)


def test_after_a_power_cut_only_what_was_synced_counts(store: BlobStore, ref: BlobRef) -> None:
    partial = booted(store, "monday").open_partial(ref)
    partial.write_chunk(0, CHUNKS[0])
    partial.write_chunk(2, CHUNKS[2])
    partial.sync(partial.have)
    partial.write_chunk(1, CHUNKS[1])
    partial.close()
    killed = booted(store, "monday").open_partial(ref)
    assert killed.have == 0b111
    killed.close()
    part = store.folder / f"{ref.sha256}.part"
    part.write_bytes(part.read_bytes()[:300] + bytes(300) + part.read_bytes()[600:])  # chunk 1 never reached the disk
    cut = booted(store, "tuesday").open_partial(ref)
    assert cut.have == 0b101
    cut.close()
    again = booted(store, "tuesday").open_partial(ref)
    assert again.have == 0b101
    for index in (1, 3):
        again.write_chunk(index, CHUNKS[index])
    assert again.finish().read_bytes() == DATA


def refuse(*_: object) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_sync_that_the_disk_refuses_claims_nothing(
    store: BlobStore, ref: BlobRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = booted(store, "monday").open_partial(ref)
    partial.write_chunk(0, CHUNKS[0])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        partial.sync(partial.have)
    partial.close()
    later = booted(store, "tuesday").open_partial(ref)
    assert later.have == 0
    later.close()


def test_after_a_failed_fsync_nothing_is_believed(
    store: BlobStore, partial: PartialBlob, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, chunk in enumerate(CHUNKS):
        partial.write_chunk(index, chunk)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(BlobDiskError, match="cannot finish blob"):
            partial.finish()
    assert not files(store)
    assert partial.closed


# --- room and rubbish -------------------------------------------------------------------------------------------


def other_ref(byte: int, size: int = 1000) -> BlobRef:
    return BlobRef(sha256=f"{byte:02x}" * 32, size=size, chunk_bytes=300)


def test_room_that_another_transfer_will_need_is_taken(tmp_path: Path, ref: BlobRef) -> None:
    store = BlobStore(tmp_path, free_bytes=lambda _: 1999, reserve_bytes=0)
    first = store.open_partial(ref)
    with pytest.raises(BlobDiskError, match=r"needs 2000 bytes .* 1999 are free"):
        store.open_partial(other_ref(1))
    first.write_chunk(0, CHUNKS[0])  # these bytes are not free any more, and need not come any more
    store.open_partial(other_ref(1)).close()
    first.close()
    store.open_partial(other_ref(2, 1999)).close()


def test_what_nobody_needs_is_collected(store: BlobStore, ref: BlobRef) -> None:
    kept, old = (store.add_bytes(bytes((number,))).sha256 for number in range(2))
    store.open_partial(other_ref(1)).close()
    arriving, used = store.open_partial(ref), store.open_partial(other_ref(2))
    used.close()
    store.in_use = lambda: {used.ref.sha256}
    (store.folder / ("e" * 64 + ".map")).write_bytes(b"left")
    (store.folder / "notes.txt").write_text("somebody's")
    assert store.collect({kept}) == 4  # the old one, a partial blob's two files, and the map that was left
    assert store.names() == [kept]
    assert {path.name for path in store.folder.iterdir()} == {
        *(kept, "notes.txt"),
        *(f"{name}.{end}" for name in (ref.sha256, used.ref.sha256) for end in ("part", "map")),
    }
    arriving.close()
    store.in_use = set
    assert store.has(old) is False
    assert BlobStore(store.folder).collect({kept}) == 4
    assert store.names() == [kept]


def test_a_removed_file_is_gone_at_once_and_its_space_later(store: BlobStore, ref: BlobRef) -> None:
    jobs: list[Callable[[], None]] = []
    store.later = jobs.append
    store.add_bytes(DATA)
    store.open_partial(other_ref(1)).close()
    store.remove(ref.sha256)
    store.remove(ref.sha256)
    assert store.collect(()) == 2
    assert not store.has(ref.sha256)
    assert store.names() == []
    assert store.collect(()) == 0
    with contextlib.closing(store.open_partial(other_ref(1))) as anew:
        assert anew.have == 0
    store.add_bytes(DATA)  # what comes anew is not what goes
    for job in jobs:
        job()
    assert store.read_chunk(ref.sha256, 1, 300) == CHUNKS[1]
    assert files(store) == {"", ".part", ".map"}


def test_space_that_is_still_to_be_freed_is_made_when_it_is_needed(tmp_path: Path) -> None:
    """1,500 bytes of room, as `free_bytes` counts what lies in the folder."""
    store = BlobStore(
        tmp_path, reserve_bytes=0, free_bytes=lambda folder: 1500 - sum(p.stat().st_size for p in folder.iterdir())
    )
    store.later = lambda _: None
    old = store.add_bytes(DATA)
    with pytest.raises(BlobDiskError, match=r"needs 1000 bytes .* 500 are free"):
        store.open_partial(other_ref(1))
    store.remove(old.sha256)
    store.open_partial(other_ref(1)).close()
    assert not list(tmp_path.glob("*.gone"))


def test_what_a_killed_process_did_not_free_is_freed(store: BlobStore) -> None:
    store.later = lambda _: None
    store.remove(store.add_bytes(DATA).sha256)
    assert files(store) == {".gone"}
    BlobStore(store.folder)
    assert files(store) == set()


# --- disks that are full or read-only ---------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 64 KiB of room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small file system can only be mounted by root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_real_disk_that_fills_up_in_mid_transfer_loses_nothing(small_disk: Path) -> None:
    chunks = [bytes((number,)) * 4096 for number in range(10)]
    data = b"".join(chunks)
    ref = BlobRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data), chunk_bytes=4096)
    receiver = BlobReceiver(BlobStore(small_disk, reserve_bytes=0), lambda: 0.0, settings=BlobSettings())
    receiver.expect(ref, "one")
    address = Address("one", "up", "blob", ref.sha256)
    for index in range(3):
        receiver.on_chunk(replace(address, chunk=index), chunks[index])
    with (small_disk / "thesis").open("wb") as file, contextlib.suppress(OSError):
        file.write(bytes(1 << 20))
    assert not receiver.on_chunk(replace(address, chunk=3), chunks[3])
    (failed,) = (outcome for outcome in receiver.take() if isinstance(outcome, BlobFailed))
    assert "the disk is full: make room, nothing that was acknowledged is lost" in failed.reason
    with pytest.raises(BlobDiskError, match=r"needs 28672 bytes .* 0 are free"):
        receiver.expect(ref, "one")
    (small_disk / "thesis").unlink()
    receiver.expect(ref, "one")
    (wanted,) = receiver.take()
    assert isinstance(wanted, BlobWanted)
    assert decode_bitmap(wanted.bitmap, 10) == 0b1111111000
    for index in range(3, 10):
        receiver.on_chunk(replace(address, chunk=index), chunks[index])
    (arrived,) = (outcome for outcome in receiver.take() if isinstance(outcome, BlobArrived))
    assert arrived.path.read_bytes() == data


def test_a_full_disk_takes_no_blob_and_keeps_no_half_of_one(small_disk: Path) -> None:
    store = BlobStore(small_disk, reserve_bytes=0, free_bytes=lambda _: 1 << 30)
    with pytest.raises(BlobDiskError, match="the disk is full"):
        store.add_bytes(bytes(1 << 20))
    assert not list(small_disk.iterdir())


def test_a_disk_that_became_read_only_is_told(small_disk: Path) -> None:
    store = BlobStore(small_disk, reserve_bytes=0)
    ref = store.add_bytes(DATA)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert store.read_chunk(ref.sha256, 0, 300) == CHUNKS[0]
    store.later = lambda _: None
    uses: list[Callable[[], object]] = [
        lambda: store.add_bytes(b"more"),
        lambda: store.open_partial(other_ref(1)),
        lambda: store.remove(ref.sha256),
        lambda: store.collect({ref.sha256}) or BlobStore(small_disk).collect(()),
    ]
    for use in uses:
        with pytest.raises(BlobDiskError, match="Read-only file system"):
            use()
