"""The folder rule: which files train, which are held out."""

from pathlib import Path

import pytest

from fedpipe_data.errors import EmptyError
from fedpipe_data.files import find_files

CASES: dict[str, tuple[list[str], list[str], list[str], list[str]]] = {
    # name: files there, training, held out, unused
    "train, dev and test": (
        ["dev.jsonl", "test.jsonl", "train.jsonl"],
        ["train.jsonl"],
        ["dev.jsonl"],
        ["test.jsonl"],
    ),
    "train and test": (["test.csv", "train.csv", "LICENSE"], ["train.csv"], ["test.csv"], []),
    "shards": (
        ["train-0.parquet", "train-1.parquet", "validation-0.parquet", "extra.parquet"],
        ["train-0.parquet", "train-1.parquet"],
        ["validation-0.parquet"],
        ["extra.parquet"],
    ),
    "the silo's own layout": (["held_out.jsonl", "train.jsonl"], ["train.jsonl"], ["held_out.jsonl"], []),
    "capitals": (["TRAIN.CSV", "Dev.csv"], ["TRAIN.CSV"], ["Dev.csv"], []),
    "no training file": (["2023.csv", "2024.csv"], ["2023.csv", "2024.csv"], [], []),
    "others beside a held-out file": (["claims.csv", "test.csv"], ["claims.csv"], ["test.csv"], []),
    "a held-out file alone": (["test.csv"], ["test.csv"], [], []),
    "hidden files": ([".train.csv.swp", ".train.csv", "a.csv"], ["a.csv"], [], []),
}


@pytest.mark.parametrize("case", CASES)
def test_the_folder_rule(tmp_path: Path, case: str) -> None:
    there, train, held_out, unused = CASES[case]
    for name in there:
        (tmp_path / name).write_text("text\na\n")

    files = find_files(tmp_path)

    assert [[f.name for f in part] for part in (files.train, files.held_out, files.unused)] == [
        train,
        held_out,
        unused,
    ]


def test_a_given_format_leaves_other_files_alone(tmp_path: Path) -> None:
    for name in ("train.csv", "train.jsonl"):
        (tmp_path / name).write_text("text\na\n")

    assert [file.name for file in find_files(tmp_path, "csv").train] == ["train.csv"]


def test_a_given_format_reads_files_without_an_ending(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        (tmp_path / name).write_text("text\na\n")

    files = find_files(tmp_path, "csv")
    assert [file.name for file in (*files.train, *files.held_out)] == ["train", "dev"]


def test_a_folder_without_data_says_what_would_be(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing")

    with pytest.raises(EmptyError, match=r"\.jsonl, \.ndjson, \.csv, \.parquet"):
        find_files(tmp_path)
