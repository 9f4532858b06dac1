"""Examples made of rows, and the part of them that is held out.

A row without a text is dropped and counted; nothing else is changed, and nothing is deduplicated. Everything that was
decided on the way is said in `Dataset.said`, in words that hold no row's content.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar, overload

import numpy as np

from fedpipe_data.errors import DataError, EmptyError, MissingFieldError, WrongValueError, name_columns
from fedpipe_data.fields import FieldChoice, Task, find_fields
from fedpipe_data.files import DataFiles, find_files
from fedpipe_data.source import DatasetSource, Format
from fedpipe_data.tables import Row, read_rows

MAX_LABEL_CHARACTERS: Final = 200
MAX_LABELS: Final = 10_000
"""What a message between agent and coordinator can carry."""

FREE_TEXT_ROWS: Final = (100, 1000)
"""Labels leave the silo, free text must not. From the second number of rows on, labels of which more than half differ
are taken for free text; from the first on, those of which more than nine in ten differ."""


@dataclass(frozen=True, slots=True)
class ClassificationExample:
    """A text and its label."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class CausalExample:
    """A prompt and the text to be written after it; a plain corpus has empty prompts."""

    prompt: str
    target: str


Example = ClassificationExample | CausalExample
E = TypeVar("E", bound=Example)
E_co = TypeVar("E_co", bound=Example, covariant=True)


@dataclass(frozen=True, slots=True)
class Dataset(Generic[E_co]):
    """Examples to train on and examples to measure with; no content is in both unless the files say so."""

    train: tuple[E_co, ...]
    held_out: tuple[E_co, ...]
    labels: tuple[str, ...]
    """Sorted, of both parts; empty for causal-lm."""
    said: tuple[str, ...]
    """What was decided while reading, one sentence each."""


@overload
def load_dataset(source: DatasetSource, task: Literal["sequence-classification"]) -> Dataset[ClassificationExample]: ...
@overload
def load_dataset(source: DatasetSource, task: Literal["causal-lm"]) -> Dataset[CausalExample]: ...
@overload
def load_dataset(source: DatasetSource, task: Task) -> Dataset[Example]: ...
def load_dataset(source: DatasetSource, task: Task) -> Dataset[Example]:
    """Read a dataset.

    The held-out part is the given file, or the folder's own (see `find_files`), or else a part of about
    `held_out_fraction` that is chosen by a hash of the content: the same content always falls on the same side.

    Raises:
        DataError: at the first thing that is wrong; see its subclasses.
    """
    files = _without_held_out(find_files(source.path, source.format), source)
    reader = _Reader(source, task)
    train = reader.read(files.train, "training")
    if source.held_out_path is not None:
        held_out = reader.read((source.held_out_path,), "held-out")
        said = f"held-out part: {len(held_out)} rows of the given {source.held_out_path.name}"
    elif files.held_out:
        held_out = reader.read(files.held_out, "held-out")
        said = f"held-out part: {len(held_out)} rows of {', '.join(f.name for f in files.held_out)}"
    else:
        train, held_out = split_by_content(train, source.held_out_fraction)
        said = f"held-out part: {len(held_out)} of {len(train) + len(held_out)} rows, by a hash of their content"
    if files.unused:
        said += f"; not used: {', '.join(file.name for file in files.unused)}"
    return Dataset(tuple(train), tuple(held_out), reader.labels(), (*reader.said, said))


def split_by_content(examples: Sequence[E], fraction: float) -> tuple[list[E], list[E]]:
    """Split into a training and a held-out part by a hash of the content.

    Content is the text for classification, and prompt and target for causal-lm, with whitespace folded; so rows that
    are alike never come to lie on both sides, and a row stays on its side when others come or go. Only where one side
    would be empty, the content nearest to the border is moved there.

    Args:
        examples: In any order, which both parts keep.
        fraction: Share of the contents to hold out, between 0 and 1.

    Returns:
        The training part and the held-out part, neither empty.

    Raises:
        EmptyError: if there are fewer than two different contents.
    """
    keys = np.fromiter((_content_hash(example) for example in examples), np.uint64, count=len(examples))
    if len(keys) == 0 or keys.min() == keys.max():
        raise EmptyError(
            f"{len(keys)} rows with fewer than two different texts cannot be split in two parts",
            "give more rows, or a file of held-out examples in held_out_path",
        )
    held = keys < np.uint64(int(fraction * 2**64))
    if not held.any():
        held = keys == keys.min()
    elif held.all():
        held = keys != keys.max()
    flags: list[bool] = held.tolist()
    return (
        [example for example, out in zip(examples, flags, strict=True) if not out],
        [example for example, out in zip(examples, flags, strict=True) if out],
    )


def _content_hash(example: Example) -> int:
    match example:
        case ClassificationExample(text=text):
            content = " ".join(text.split())
        case CausalExample(prompt=prompt, target=target):
            content = " ".join(prompt.split()) + "\0" + " ".join(target.split())
    return int.from_bytes(blake2b(content.encode(), digest_size=8).digest(), "big")


def _without_held_out(files: DataFiles, source: DatasetSource) -> DataFiles:
    """Training files that are not also the given held-out file; the folder's own held-out part gives way to it."""
    if source.held_out_path is None:
        return files
    given = source.held_out_path.resolve()
    train = tuple(file for file in files.train if file.resolve() != given)
    if not train:
        raise EmptyError(
            "held_out_path is the only file there is to train on",
            "give another file, or leave held_out_path out to hold a part of it out",
            path=source.path,
        )
    left = (file for file in (*files.held_out, *files.unused) if file.resolve() != given)
    return DataFiles(train, unused=tuple(left))


class _Reader:
    """Rows to examples with one choice of fields, which the first row decides."""

    def __init__(self, source: DatasetSource, task: Task) -> None:
        self._source, self._task = source, task
        self._choice: FieldChoice | None = None
        self._seen: dict[str, str] = {}
        self._rows = 0
        self.said: list[str] = []

    def labels(self) -> tuple[str, ...]:
        return tuple(sorted(self._seen))

    def read(self, files: Iterable[Path], part: str) -> list[Example]:
        examples: list[Example] = []
        dropped = 0
        for row in _rows_of(files, self._source.format):
            example = self._example(row)
            if example is None:
                dropped += 1
            else:
                examples.append(example)
        if not examples:
            raise EmptyError(
                f"the {part} part has {dropped} rows, none with a text",
                "check which column holds the text, and set it in `fields`",
                path=self._source.path,
            )
        if dropped:
            self.said.append(f"{part} part: {dropped} rows dropped, their text is empty")
        self._rows += len(examples)
        self._check_labels()
        return examples

    def _example(self, row: Row) -> Example | None:
        if self._choice is None:
            self._choice = self._choose(row)
            self.said.append(self._choice.sentence)
        choice = self._choice
        if self._task == "sequence-classification":
            text = _text(row, choice.text)
            if not text.strip():
                return None
            label = _label(row, choice.label)
            # One string object per label: a million rows share a few dozen.
            return ClassificationExample(text, self._seen.setdefault(label, label))
        prompt = _text(row, choice.prompt) if choice.prompt else ""
        target = _text(row, choice.target or choice.text)
        return CausalExample(prompt, target) if target.strip() else None

    def _choose(self, row: Row) -> FieldChoice:
        try:
            return find_fields(tuple(row.values), self._source.fields, self._task)
        except DataError as error:
            raise type(error)(error.what, error.do, path=row.path) from None

    def _check_labels(self) -> None:
        count, (few, many) = len(self._seen), FREE_TEXT_ROWS
        if count > MAX_LABELS:
            what = f"{count} different labels, at most {MAX_LABELS} are possible"
        elif self._rows >= few and count > self._rows * (0.5 if self._rows >= many else 0.9):
            what = f"{count} different labels in {self._rows} rows: that is free text, and labels leave the silo"
        else:
            return
        raise WrongValueError(what, "check which column is the label, and set fields.label", path=self._source.path)


def _rows_of(files: Iterable[Path], wanted: Format | None) -> Iterator[Row]:
    for file in files:
        yield from read_rows(file, wanted)


def _value(row: Row, column: str | None) -> object:
    if column is None or column not in row.values:
        raise MissingFieldError(
            f"no field '{column}'; there are {name_columns(row.values)}",
            "give every row the same fields, or correct `fields`",
            path=row.path,
            line=row.line,
        )
    return row.values[column]


def _text(row: Row, column: str | None) -> str:
    value = _value(row, column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong(row, f"field '{column}' must be text, got {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _wrong(row, f"field '{column}' has half a surrogate pair, which is no character") from None
    return value


def _label(row: Row, column: str | None) -> str:
    value = _value(row, column)
    if isinstance(value, float) and value.is_integer():
        # A column of whole numbers with a gap becomes floats on its way through some tools.
        value = int(value)
    if isinstance(value, int):
        value = str(value)
    elif not isinstance(value, str):
        raise _wrong(row, f"label '{column}' must be text or a whole number, got {type(value).__name__}")
    else:
        value = _text(row, column).strip()
    if not value:
        raise _wrong(row, f"label '{column}' is empty")
    if len(value) > MAX_LABEL_CHARACTERS:
        raise _wrong(row, f"label '{column}' has {len(value)} characters, at most {MAX_LABEL_CHARACTERS} are possible")
    return value


def _wrong(row: Row, what: str, do: str = "correct the row or take it away") -> WrongValueError:
    return WrongValueError(what, do, path=row.path, line=row.line)
