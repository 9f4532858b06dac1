"""Real adapters and updates on a real disk that changes bytes between two processes of a coordinator."""

from pathlib import Path

import numpy as np
import pytest
from run_support import evaluated, trained, training
from safetensors.numpy import save_file

from fedpipe_coordinator import work
from fedpipe_coordinator.aggregation.adapter_making import first_adapter
from fedpipe_coordinator.merging import WorkError
from fedpipe_coordinator.runs.run_events import (
    AdapterChecked,
    Aggregate,
    Aggregated,
    BroadcastAdapter,
    Damaged,
    UpdatesRefused,
    UpdateStored,
)
from fedpipe_coordinator.runs.run_state import RunState
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.message_values import BlobRef
from fedpipe_wire.tensors import update_spec


class Disk:
    """A run whose blobs are real: two agents, and as many rounds as are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = self.opened()
        self.drive = training("a", "b", number=4)
        self.drive.state = self.drive.state.model_copy(
            update={"adapter": first_adapter(self.state, self.blobs, folder)}
        )

    @property
    def state(self) -> RunState:
        return self.drive.state

    def opened(self) -> BlobStore:
        """The folder as another process finds it."""
        return BlobStore(self.folder / "blobs", reserve_bytes=0)

    def train(self) -> Aggregate:
        """Both agents' updates are stored: what is to be aggregated."""
        for name in ("a", "b"):
            plan = self.drive.member(name).plan
            assert self.state.shape is not None
            assert plan is not None
            numbers = np.random.default_rng(ord(name) + self.state.round)
            file = self.folder / "update"
            spec = update_spec(self.state.shape, plan)
            save_file({each: numbers.normal(size=s.shape).astype(np.float32) for each, s in spec.items()}, file)
            ref = self.blobs.add_file(file)
            self.drive.hear(name, evaluated(self.state.round))
            self.drive.hear(name, trained(name, self.state.round).model_copy(update={"update": ref}))
            self.drive(UpdateStored(name, self.state.round, ref.sha256))
        return self.drive.all(Aggregate)[-1]

    def aggregate(self, action: Aggregate, blobs: BlobStore | None = None) -> Aggregated | UpdatesRefused | Damaged:
        return work.aggregate(self.state, action, blobs or self.blobs, self.folder)

    def flip(self, sha256: str) -> None:
        """One bit of a number changes, and nothing else: size and header stay as they were."""
        path = self.folder / "blobs" / sha256
        data = bytearray(path.read_bytes())
        data[-3] ^= 0x20
        path.write_bytes(data)

    @property
    def adapter(self) -> BlobRef:
        assert self.state.adapter is not None
        return self.state.adapter


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def _next_round(disk: Disk) -> Aggregate:
    """A first round is aggregated; the second one's plans are not made yet."""
    action = disk.train()
    done = disk.aggregate(action)
    assert isinstance(done, Aggregated)
    disk.drive(done)
    assert disk.drive.phase == "planning"
    return action


def test_an_update_with_one_bit_changed_is_not_aggregated(disk: Disk) -> None:
    action = disk.train()
    disk.flip(action.updates["b"])
    found = disk.aggregate(action, disk.opened())
    assert found == Damaged(1, (("b", action.updates["b"]),))


def test_what_is_whole_is_aggregated_to_the_same_bytes_by_another_process(disk: Disk) -> None:
    action = disk.train()
    assert disk.aggregate(action) == disk.aggregate(action, disk.opened())


def test_the_first_adapter_is_made_again_where_it_is_damaged_or_gone(disk: Disk) -> None:
    action = disk.train()
    whole = disk.aggregate(action)
    disk.flip(disk.adapter.sha256)
    assert disk.aggregate(action, disk.opened()) == whole
    (disk.folder / "blobs" / disk.adapter.sha256).unlink()
    assert disk.aggregate(action, disk.opened()) == whole


def test_a_later_adapter_is_made_again_while_what_it_was_made_of_is_here(disk: Disk) -> None:
    _next_round(disk)
    path = disk.folder / "blobs" / disk.adapter.sha256
    before = path.read_bytes()
    disk.flip(disk.adapter.sha256)
    asked = BroadcastAdapter(disk.adapter, 2)
    assert work.check(disk.state, asked, disk.opened(), disk.folder) == AdapterChecked(disk.adapter, 2)
    assert path.read_bytes() == before


@pytest.mark.parametrize("input_", ["update", "former adapter"])
def test_an_adapter_that_cannot_be_made_again_fails_the_run_with_its_file(disk: Disk, input_: str) -> None:
    action = _next_round(disk)
    former = disk.state.former
    assert former is not None
    disk.flip(action.updates["a"] if input_ == "update" else former.sha256)
    disk.flip(disk.adapter.sha256)
    with pytest.raises(WorkError, match=f"{disk.adapter.sha256} is damaged or gone"):
        work.check(disk.state, BroadcastAdapter(disk.adapter, 2), disk.opened(), disk.folder)


def test_a_file_is_read_once_in_the_life_of_a_process(disk: Disk) -> None:
    action = disk.train()
    blobs = disk.opened()
    assert isinstance(disk.aggregate(action, blobs), Aggregated)
    assert {*action.updates.values(), disk.adapter.sha256} <= blobs.verified
