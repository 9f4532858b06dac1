"""The blob store: content-named files, partial files that outlive a process, and disks that refuse."""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedpipe_wire.blob_bits import BlobDiskError, BlobError
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.blob_partial import PartialBlob
from fedpipe_wire.messages import BlobRef

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


def test_what_a_killed_process_was_adding_is_swept(store: BlobStore) -> None:
    (store.folder / "tmpabc.new").write_bytes(b"half")
    assert BlobStore(store.folder).names() == []
    assert not files(store)
