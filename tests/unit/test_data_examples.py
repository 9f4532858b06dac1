"""Examples of rows: what is kept, dropped and counted, where the held-out part comes from, and what is refused."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from fedpipe_data.errors import (
    AmbiguousFieldsError,
    DataError,
    EmptyError,
    MissingFieldError,
    MissingFileError,
    WrongValueError,
)
from fedpipe_data.examples import CausalExample, ClassificationExample, load_dataset, split_by_content
from fedpipe_data.source import DatasetSource, Fields
from fedpipe_data.write import write_jsonl

SECRET = "Zaphod"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def write(path: Path, rows: Iterable[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(count: int, classes: int = 3) -> list[dict[str, object]]:
    return [{"text": f"text {i}", "label": f"class {i % classes}"} for i in range(count)]


def test_a_folder_with_its_own_held_out_part(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"text": "b", "label": "x"}, {"text": "a", "label": "y"}])
    write(tmp_path / "dev.jsonl", [{"text": "c", "label": "z"}])
    write(tmp_path / "test.jsonl", [{"text": SECRET, "label": "w"}])

    dataset = load_dataset(DatasetSource(path=tmp_path), "sequence-classification")

    assert dataset.train == (ClassificationExample("b", "x"), ClassificationExample("a", "y"))
    assert dataset.held_out == (ClassificationExample("c", "z"),)
    assert dataset.labels == ("x", "y", "z")
    assert dataset.said[-1] == "held-out part: 1 rows of dev.jsonl; not used: test.jsonl"


def test_a_given_held_out_file_wins_and_is_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}])
    write(tmp_path / "dev.jsonl", [{"text": "b", "label": "x"}])
    mine = write(tmp_path / "mine.jsonl", [{"text": "c", "label": "x"}])

    dataset = load_dataset(DatasetSource(path=tmp_path, held_out_path=mine), "sequence-classification")

    assert [example.text for example in dataset.train] == ["a"]
    assert [example.text for example in dataset.held_out] == ["c"]
    assert "not used: dev.jsonl" in dataset.said[-1]


def test_the_held_out_file_alone_is_nothing_to_train_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", labelled(4))

    with pytest.raises(EmptyError, match="held_out_path is the only file"):
        load_dataset(DatasetSource(path=path, held_out_path=path), "sequence-classification")


def test_empty_texts_are_dropped_and_counted_even_without_a_label(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [*labelled(10), {"text": " \n", "label": "x"}, {"text": None, "label": None}]

    dataset = load_dataset(DatasetSource(path=write(tmp_path / "a.jsonl", rows)), "sequence-classification")

    assert len(dataset.train) + len(dataset.held_out) == 10
    assert "training part: 2 rows dropped, their text is empty" in dataset.said
    assert "x" not in dataset.labels


def test_the_split_keeps_every_row_and_says_how_many(tmp_path: Path) -> None:
    rows = labelled(1000)

    dataset = load_dataset(
        DatasetSource(path=write(tmp_path / "a.jsonl", rows), held_out_fraction=0.2), "sequence-classification"
    )

    texts = [example.text for example in (*dataset.train, *dataset.held_out)]
    assert sorted(texts) == sorted(str(row["text"]) for row in rows)
    assert 150 < len(dataset.held_out) < 250
    assert dataset.said[-1].startswith(f"held-out part: {len(dataset.held_out)} of 1000 rows")


def test_labels_of_other_types_become_text(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"text": f"text {i}", "label": label} for i, label in enumerate([3, 10, True, 2.0, " spaced "])
    ]

    dataset = load_dataset(DatasetSource(path=write(tmp_path / "a.jsonl", rows)), "sequence-classification")

    assert dataset.labels == ("10", "2", "3", "True", "spaced")


def test_prompts_and_targets(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"mr": "m", "ref": "r"}, {"mr": "", "ref": "s"}, {"mr": "n", "ref": ""}])
    write(tmp_path / "dev.jsonl", [{"ref": "t", "mr": "o"}])

    dataset = load_dataset(DatasetSource(path=tmp_path), "causal-lm")

    assert dataset.train == (CausalExample("m", "r"), CausalExample("", "s"))
    assert dataset.held_out == (CausalExample("o", "t"),)
    assert dataset.labels == ()


def test_a_plain_corpus_has_empty_prompts(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\nhello,1\n")
    (tmp_path / "test.csv").write_text("label,text\n1,world\n")

    dataset = load_dataset(DatasetSource(path=tmp_path), "causal-lm")

    assert dataset.train == (CausalExample("", "hello"),)
    assert dataset.held_out == (CausalExample("", "world"),)


LONG = SECRET * 40
BAD: dict[str, tuple[list[dict[str, object]], type[DataError], str]] = {
    "field gone": (
        [*labelled(2), {"text": SECRET, "lable": SECRET}],
        MissingFieldError,
        "line 3: no field 'label'; there are text, lable; give every row",
    ),
    "text is a number": ([{"text": 7, "label": SECRET}], WrongValueError, "line 1: field 'text' must be text, got int"),
    "text is a list": ([{"text": [SECRET], "label": "a"}], WrongValueError, "got list"),
    "label is a list": ([{"text": SECRET, "label": [SECRET]}], WrongValueError, "whole number, got list"),
    "label is missing": ([{"text": SECRET, "label": None}], WrongValueError, "got NoneType"),
    "label is a fraction": ([{"text": SECRET, "label": 0.5}], WrongValueError, "got float"),
    "label is empty": ([{"text": SECRET, "label": " "}], WrongValueError, "line 1: label 'label' is empty"),
    "label is long": ([{"text": "a", "label": LONG}], WrongValueError, "has 240 characters, at most 200"),
    "label is a long number": ([{"text": "a", "label": 10**300}], WrongValueError, "has 301 characters"),
    "half a character": ([{"text": SECRET + "\ud800", "label": "a"}], WrongValueError, "surrogate"),
    "half a character in the label": ([{"text": "a", "label": SECRET + "\ud800"}], WrongValueError, "surrogate"),
    "no text at all": ([{"text": "", "label": SECRET}] * 3, EmptyError, "has 3 rows, none with a text"),
    "one text": ([{"text": SECRET, "label": "a"}] * 3, EmptyError, "3 rows with fewer than two different"),
    "free text for labels": (
        [{"text": f"text {i}", "label": f"{SECRET} {i}"} for i in range(120)],
        WrongValueError,
        "120 different labels in 120 rows: that is free text",
    ),
    "two texts": ([{"text": SECRET, "body": SECRET, "label": "a"}], AmbiguousFieldsError, "text, body"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_told_without_their_content(tmp_path: Path, case: str) -> None:
    rows, error, says = BAD[case]
    path = write(tmp_path / "a.jsonl", rows)

    with pytest.raises(error, match=says) as caught:
        load_dataset(DatasetSource(path=path), "sequence-classification")

    assert SECRET not in str(caught.value)


def test_many_labels_are_no_free_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", labelled(150, classes=77))

    assert len(load_dataset(DatasetSource(path=path), "sequence-classification").labels) == 77


def test_more_labels_than_a_message_carries(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", labelled(30_000, classes=10_001))

    with pytest.raises(WrongValueError, match="10001 different labels, at most 10000"):
        load_dataset(DatasetSource(path=path), "sequence-classification")


def test_a_held_out_file_without_the_field(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", labelled(4))
    other = write(tmp_path / "b.jsonl", [{"text": SECRET}])

    with pytest.raises(MissingFieldError, match=r"b\.jsonl, line 1: no field 'label'"):
        load_dataset(DatasetSource(path=path, held_out_path=other), "sequence-classification")
    with pytest.raises(MissingFileError, match=r"c\.jsonl"):
        load_dataset(DatasetSource(path=path, held_out_path=tmp_path / "c.jsonl"), "sequence-classification")


def test_written_examples_are_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    first = [ClassificationExample("a", "x"), ClassificationExample("b", "y")]

    assert write_jsonl(path, first) == 2
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()

    def broken() -> Iterable[ClassificationExample]:
        yield ClassificationExample("c", "z")
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write_jsonl(path, broken())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["train.jsonl"]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the real data sets at {SHARED}")
@pytest.mark.parametrize(
    ("name", "label", "train", "held_out", "labels", "dropped"),
    [("banking77", "category", 10_003, 3_080, 77, []), ("20news", "label_text", 11_290, 7_507, 20, ["24", "25"])],
)
def test_real_classification_data(
    name: str, label: str, train: int, held_out: int, labels: int, dropped: list[str]
) -> None:
    dataset = load_dataset(DatasetSource(path=SHARED / name), "sequence-classification")

    # Only numbers are compared: a failing test must not print the texts.
    assert (len(dataset.train), len(dataset.held_out), len(dataset.labels)) == (train, held_out, labels)
    assert f"label is column '{label}'" in dataset.said[0]
    assert [said.split()[2] for said in dataset.said if "dropped" in said] == dropped


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the real data sets at {SHARED}")
def test_real_causal_data() -> None:
    dataset = load_dataset(DatasetSource(path=SHARED / "e2e", fields=Fields()), "causal-lm")

    assert (len(dataset.train), len(dataset.held_out)) == (42_061, 4_672)
    assert dataset.train[0].prompt.startswith("name[")
    assert not dataset.train[0].target.startswith("name[")


def test_texts_that_differ_in_spaces_only_stay_together() -> None:
    examples = [ClassificationExample(f"text{space}{i}", "a") for i in range(50) for space in (" ", "  ", "\n")]

    train, held_out = split_by_content(examples, 0.3)

    assert len(train) % 3 == len(held_out) % 3 == 0
    assert not {e.text.split()[1] for e in train} & {e.text.split()[1] for e in held_out}
