"""The demo's silos on disk: each one's own folder with a training and a held-out file.

Owns the folders' layout; never decides what a silo's machine can carry, and starts nothing.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedpipe_coordinator.demo.partition import (
    Partition,
    PartitionError,
    dirichlet_partition,
    matching_partition,
    random_partition,
)
from fedpipe_data.examples import (
    ClassificationExample,
    Dataset,
    Example,
    load_dataset,
)
from fedpipe_data.fields import Task
from fedpipe_data.source import DatasetSource, Fields
from fedpipe_data.write import write_jsonl

HELD_OUT_FRACTION: Final = 0.15
MIN_EXAMPLES: Final = 2
"""One to train on and one to measure with."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@dataclass(frozen=True, slots=True)
class SiloData:
    """What one silo got. `path` is the folder to set as its dataset; the counts are of both files."""

    name: str
    folder: Path
    path: Path
    train_examples: int
    held_out_examples: int
    label_counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shares:
    """One silo's examples."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]


def hold_out(
    examples: Sequence[Example],
    partition: Partition,
    seed: int,
    fraction: float = HELD_OUT_FRACTION,
) -> list[Shares]:
    """Hold a part of every silo's examples out, drawn by chance.

    Args:
        examples: All examples, no two alike.
        partition: Each silo's indices into them, at least two.
        seed: Decides which are held out.
        fraction: Share to hold out; at least one example, and never all.

    Raises:
        PartitionError: if a silo has fewer than two examples.
    """
    shares = []
    for silo, indices in enumerate(partition):
        if len(indices) < MIN_EXAMPLES:
            raise PartitionError(
                f"silo {silo} has {len(indices)} examples, and needs {MIN_EXAMPLES}: one to train on, one to hold out"
            )
        count = min(max(1, round(fraction * len(indices))), len(indices) - 1)
        out = set(random.Random(f"{seed}:{silo}").sample(indices, count))
        shares.append(
            Shares(
                train=tuple(examples[i] for i in indices if i not in out),
                held_out=tuple(examples[i] for i in indices if i in out),
            )
        )
    return shares


def divide(dataset: Dataset[Example], alpha: float, sizes: Sequence[float], seed: int) -> list[Shares]:
    """Divide both parts of a dataset over silos: by label where there are labels, else by chance.

    Args:
        dataset: Training and held-out pool; a silo's held-out part has its training part's mix of labels.
        alpha: How alike the silos' labels are; see `dirichlet_partition`.
        sizes: The silos' sizes relative to each other, one each.
        seed: Decides everything that is left to chance.

    Raises:
        PartitionError: if there are too few examples, or a number is out of range.
    """
    if dataset.labels:
        labels = _labels(dataset.train)
        train = dirichlet_partition(labels, len(sizes), alpha, sizes, seed)
        like = [Counter(labels[index] for index in indices) for indices in train]
        held_out = matching_partition(_labels(dataset.held_out), like, seed)
    else:
        train = random_partition(len(dataset.train), len(sizes), sizes, seed)
        held_out = random_partition(len(dataset.held_out), len(sizes), sizes, seed)
    return [
        Shares(
            train=tuple(dataset.train[index] for index in mine),
            held_out=tuple(dataset.held_out[index] for index in out),
        )
        for mine, out in zip(train, held_out, strict=True)
    ]


def write_silos(folder: Path, shares: Sequence[Shares], names: Sequence[str]) -> list[SiloData]:
    """Write every silo's examples to `silo-<name>/data/{train,held_out}.jsonl`, readable by the owner only.

    Files that are there already are replaced.

    Args:
        folder: Where the silos' folders go; made if it is not there.
        shares: Each silo's examples.
        names: Each silo's name: small letters, digits and hyphens.

    Raises:
        PartitionError: if names and shares differ in number, or a name is twice there or not a name.
        OSError: if the folder may not be written or the disk is full.
    """
    if len(names) != len(shares) or len(set(names)) != len(names):
        raise PartitionError(f"expected a different name for each of {len(shares)} silos, got {', '.join(names)}")
    if wrong := [name for name in names if not _NAME.fullmatch(name)]:
        raise PartitionError(f"expected names of small letters, digits and hyphens, got {', '.join(wrong)}")
    return [_write_silo(folder / f"silo-{name}", name, share) for name, share in zip(names, shares, strict=True)]


def load_user_data(
    path: Path,
    task: Task,
    *,
    seed: int,
    fields: Fields | None = None,
    max_examples: int | None = None,
) -> Dataset[Example]:
    """Read data that the user brings: a file, or a folder with a training and a held-out file.

    Args:
        path: The file or folder; without a held-out file, a part of the rows is held out by a hash of their content.
        task: What the examples are for.
        seed: Chooses the examples to keep.
        fields: Which column is what; found by the columns' names when None.
        max_examples: Keep at most so many of both parts together, drawn by chance; None keeps all.

    Raises:
        DataError: if the data cannot be read.
        PartitionError: if `max_examples` is below two.
    """
    source = DatasetSource(path=path, fields=fields or Fields(), held_out_fraction=HELD_OUT_FRACTION)
    dataset = load_dataset(source, task)
    total = len(dataset.train) + len(dataset.held_out)
    if max_examples is None or total <= max_examples:
        return dataset
    if max_examples < MIN_EXAMPLES:
        raise PartitionError(f"expected at least {MIN_EXAMPLES} examples, got {max_examples}")
    out = min(len(dataset.held_out), max(1, round(HELD_OUT_FRACTION * max_examples)))
    mine = min(len(dataset.train), max_examples - out)
    train = _sample(dataset.train, mine, f"{seed}:train")
    held_out = _sample(dataset.held_out, out, f"{seed}:held-out")
    return Dataset(
        train,
        held_out,
        tuple(sorted({e.label for e in (*train, *held_out) if isinstance(e, ClassificationExample)})),
        (*dataset.said, f"kept {mine} training and {out} held-out rows of {total}, drawn by chance"),
    )


def _sample(examples: Sequence[Example], count: int, seed: str) -> tuple[Example, ...]:
    """That many examples in their own order."""
    return tuple(examples[i] for i in sorted(random.Random(seed).sample(range(len(examples)), count)))


def _labels(examples: Sequence[Example]) -> list[str]:
    return [example.label for example in examples if isinstance(example, ClassificationExample)]


def _write_silo(folder: Path, name: str, share: Shares) -> SiloData:
    path = folder / "data"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    train = write_jsonl(path / "train.jsonl", share.train)
    held_out = write_jsonl(path / "held_out.jsonl", share.held_out)
    counts = Counter(_labels((*share.train, *share.held_out)))
    return SiloData(name, folder, path, train, held_out, dict(sorted(counts.items())))
