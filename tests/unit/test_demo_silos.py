"""The demo's silos on disk: every example in one file of one silo, private, and read back by the agent's own reader."""

import json
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest

from fedpipe_coordinator.demo.partition import PartitionError, dirichlet_partition
from fedpipe_coordinator.demo.silos import Shares, divide, hold_out, load_user_data, write_silos
from fedpipe_data.examples import CausalExample, ClassificationExample, Dataset, load_dataset
from fedpipe_data.source import DatasetSource

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
NAMES = ["north", "east", "south", "west"]
SIZES = [4.0, 3.0, 2.0, 1.0]


def pool(count: int, start: int = 0) -> tuple[ClassificationExample, ...]:
    return tuple(ClassificationExample(f"text {i}", f"label {i % 5}") for i in range(start, start + count))


def test_silos_hold_every_example_once_and_read_back(tmp_path: Path) -> None:
    examples = pool(400)
    partition = dirichlet_partition([e.label for e in examples], 4, 0.5, SIZES, seed=1)

    silos = write_silos(tmp_path / "demo", hold_out(examples, partition, seed=1), NAMES)

    assert [(silo.train_examples, silo.held_out_examples) for silo in silos] == [
        (136, 24),
        (102, 18),
        (68, 12),
        (34, 6),
    ]
    everything: list[object] = []
    for silo in silos:
        read = load_dataset(DatasetSource(path=silo.path), "sequence-classification")
        assert (len(read.train), len(read.held_out)) == (silo.train_examples, silo.held_out_examples)
        assert Counter(e.label for e in (*read.train, *read.held_out)) == silo.label_counts
        everything += [*read.train, *read.held_out]
    assert sorted(map(str, everything)) == sorted(map(str, examples))


def test_folders_and_files_are_the_owners_only(tmp_path: Path) -> None:
    shares = [Shares(train=pool(2), held_out=pool(1, 2))]

    (silo,) = write_silos(tmp_path, shares, ["a"])
    write_silos(tmp_path, [Shares(train=pool(1), held_out=pool(1))], ["a"])

    assert silo.folder == tmp_path / "silo-a"
    assert {path.name: path.stat().st_mode & 0o777 for path in (silo.folder, *silo.folder.rglob("*"))} == {
        "silo-a": 0o700,
        "data": 0o700,
        "train.jsonl": 0o600,
        "held_out.jsonl": 0o600,
    }
    assert json.loads((silo.path / "train.jsonl").read_text()) == {"text": "text 0", "label": "label 0"}


def test_the_same_seed_holds_the_same_out() -> None:
    examples, partition = pool(60), [list(range(40)), list(range(40, 60))]

    first, again, other = (hold_out(examples, partition, seed) for seed in (1, 1, 2))

    assert first == again
    assert first != other


@pytest.mark.parametrize(("count", "fraction", "out"), [(2, 0.15, 1), (3, 0.99, 2), (100, 0.15, 15)])
def test_neither_part_is_empty(count: int, fraction: float, out: int) -> None:
    (share,) = hold_out(pool(count), [list(range(count))], 0, fraction)

    assert (len(share.train), len(share.held_out)) == (count - out, out)


def test_one_example_cannot_be_both() -> None:
    with pytest.raises(PartitionError, match="silo 1 has 1 examples, and needs 2"):
        hold_out(pool(3), [[0, 1], [2]], 0)


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "../b"], ["a", ""], ["a", "B c"]])
def test_names_that_are_no_folder(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(PartitionError, match="expected"):
        write_silos(tmp_path, [Shares(pool(1), pool(1))] * 2, names)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_with_labels_is_divided_by_label_in_both_parts() -> None:
    dataset = Dataset(pool(1000), pool(200, 1000), tuple(f"label {i}" for i in range(5)), ())

    shares = divide(dataset, 0.1, SIZES, seed=3)

    assert [len(share.train) for share in shares] == [400, 300, 200, 100]
    assert [len(share.held_out) for share in shares] == [80, 60, 40, 20]
    assert sorted(str(e) for share in shares for e in share.train) == sorted(map(str, dataset.train))
    assert sorted(str(e) for share in shares for e in share.held_out) == sorted(map(str, dataset.held_out))
    for share in shares:
        (train_label, _), *_ = Counter(
            e.label for e in share.train if isinstance(e, ClassificationExample)
        ).most_common()
        held_out = Counter(e.label for e in share.held_out if isinstance(e, ClassificationExample))
        assert held_out[train_label] / held_out.total() > 0.2


def test_a_dataset_without_labels_is_divided_by_chance() -> None:
    examples = tuple(CausalExample(f"p {i}", f"t {i}") for i in range(110))
    dataset = Dataset(examples[:100], examples[100:], (), ())

    shares = divide(dataset, 0.1, SIZES, seed=3)

    assert [len(share.train) for share in shares] == [40, 30, 20, 10]
    assert [len(share.held_out) for share in shares] == [4, 3, 2, 1]
    assert divide(dataset, 0.1, SIZES, seed=3) == shares
    assert divide(dataset, 0.1, SIZES, seed=4) != shares


def test_user_data_is_sampled_by_seed_and_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("text,category\n" + "".join(f"text {i},label {i % 5}\n" for i in range(1000)))

    whole = load_user_data(path, "sequence-classification", seed=1)
    some, again, other = (
        load_user_data(path, "sequence-classification", seed=seed, max_examples=200) for seed in (1, 1, 2)
    )

    assert len(whole.train) + len(whole.held_out) == 1000
    assert (len(some.train), len(some.held_out)) == (170, 30)
    assert set(some.train) <= set(whole.train)
    assert set(some.held_out) <= set(whole.held_out)
    assert some == again
    assert some.train != other.train
    assert some.said[-1] == "kept 170 training and 30 held-out rows of 1000, drawn by chance"
    assert load_user_data(path, "sequence-classification", seed=1, max_examples=1000) == whole
    with pytest.raises(PartitionError, match="at least 2 examples, got 1"):
        load_user_data(path, "sequence-classification", seed=1, max_examples=1)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the real data sets at {SHARED}")
@pytest.mark.parametrize(("name", "task"), [("banking77", "sequence-classification"), ("e2e", "causal-lm")])
def test_real_data_reaches_the_silos(
    tmp_path: Path, name: str, task: Literal["sequence-classification", "causal-lm"]
) -> None:
    dataset = load_user_data(SHARED / name, task, seed=0, max_examples=1000)

    silos = write_silos(tmp_path, divide(dataset, 0.5, SIZES, seed=0), NAMES)

    assert sum(silo.train_examples for silo in silos) == 850
    assert sum(silo.held_out_examples for silo in silos) == 150
    for silo in silos:
        read = load_dataset(DatasetSource(path=silo.path), task)
        assert len(read.train) == silo.train_examples
        assert set(read.labels) <= set(dataset.labels)
