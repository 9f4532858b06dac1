"""Reading rows: the three formats agree, and errors tell file, line and what to do, never the content."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from fedpipe_data.errors import (
    DataError,
    EmptyError,
    EncodingError,
    MalformedError,
    MissingFileError,
    UnknownFormatError,
)
from fedpipe_data.tables import read_rows

SECRET = "Zaphod"
ROWS: list[dict[str, object]] = [
    {"text": "one, with a comma", "label": "a"},
    {"text": 'two "quoted"\nover two lines', "label": "b"},
    {"text": "três ünïcode \u2028 日本", "label": "a"},
    {"text": "", "label": "c"},
]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")


def write_csv(path: Path) -> None:
    def quoted(value: object) -> str:
        return '"' + str(value).replace('"', '""') + '"'

    lines = [",".join(map(quoted, row.values())) for row in ROWS]
    path.write_text("text,label\n" + "\n".join(lines), encoding="utf-8")


def write_parquet(path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS), path)


WRITERS: dict[str, Callable[[Path], None]] = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}


@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    WRITERS[ending](path)

    assert [row.values for row in read_rows(path)] == ROWS


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    WRITERS[ending](path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert [row.values for row in read_rows(path)] == ROWS


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"a": 1}\r\n  \n{"a": 2}')

    assert [(row.line, row.values) for row in read_rows(path)] == [(2, {"a": 1}), (4, {"a": 2})]


def test_a_csv_row_is_told_by_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"over\ntwo lines",a\n\nnext,b\n')

    assert [row.line for row in read_rows(path)] == [2, 5]


def test_a_csv_text_may_be_longer_than_the_librarys_limit(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "x" * 200_000 + ",a\n")

    assert len(str(next(read_rows(path)).values["text"])) == 200_000


def test_the_given_format_wins_over_the_ending(tmp_path: Path) -> None:
    path = tmp_path / "rows.dat"
    write_jsonl(path)

    assert [row.values for row in read_rows(path, "jsonl")] == ROWS


def test_rows_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\nnot json\n')
    rows = read_rows(path)

    assert [next(rows).values["a"], next(rows).values["a"]] == [1, 2]
    with pytest.raises(MalformedError, match="line 3"):
        next(rows)


def test_a_folder_is_read_file_by_file_in_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("text\n2\n")
    (tmp_path / "a.jsonl").write_text('{"text": "1"}\n')
    (tmp_path / "notes.txt").write_text(SECRET)

    assert [row.values["text"] for row in read_rows(tmp_path)] == ["1", "2"]


S = SECRET.encode()
BAD: dict[str, tuple[str, bytes, type[DataError], str]] = {
    "no rows": ("a.jsonl", b"\n \n", EmptyError, "no rows"),
    "header only": ("a.csv", b"text,label\n", EmptyError, "no rows"),
    "unknown ending": ("a.txt", S, UnknownFormatError, "set `format`"),
    "cut off": ("a.jsonl", b'{"a": 1}\n{"a": "' + S, MalformedError, r"line 2: not JSON \(Unterminated"),
    "two values": ("a.jsonl", b'{"a": 1} "' + S + b'"', MalformedError, "line 1.*Extra data at column 10"),
    "a bare word": ("a.jsonl", S, MalformedError, "line 1"),
    "a list": ("a.jsonl", b'["' + S + b'"]', MalformedError, "expected a JSON object, got a list"),
    "too deep": ("a.jsonl", b'{"a":' + b"[" * 200_000, MalformedError, "deeply"),
    "long number": ("a.jsonl", b'{"a":' + b"7" * 5000 + b"}", MalformedError, "number too long"),
    "latin-1": ("a.jsonl", b'{"a": 1}\n{"a": "' + S + b'\xe9"}', EncodingError, "line 2.*byte 14"),
    "latin-1 csv": ("a.csv", b"text\n" + S + b"\xe9\n", EncodingError, "line 2.*byte 7"),
    "column too many": ("a.csv", b"text,label\na,b\nc," + S + b",d\n", MalformedError, "line 3: expected 2.*got 3"),
    "column too few": ("a.csv", b"text,label\n" + S + b"\n", MalformedError, "line 2: expected 2.*got 1"),
    "open quote": ("a.csv", b'text,label\n"' + S + b",b\nc,d\n", MalformedError, "line 2: not CSV"),
    "quote inside": ("a.csv", b'text,label\n"' + S + b'"x,b\n', MalformedError, "line 2: not CSV"),
    "semicolons": ("a.csv", b"text;label\n" + S + b";b\n", MalformedError, "semicolons"),
    "column twice": ("a.csv", b"text,text\n" + S + b",b\n", MalformedError, "same name"),
    "not parquet": ("a.parquet", S * 40, MalformedError, "not a sound parquet"),
    "cut parquet": ("a.parquet", b"PAR1" + S, MalformedError, "not a sound parquet"),
    "empty parquet": ("a.parquet", b"", MalformedError, "not a sound parquet"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_told_without_their_content(tmp_path: Path, case: str) -> None:
    name, content, error, says = BAD[case]
    (tmp_path / name).write_bytes(content)

    with pytest.raises(error, match=says) as caught:
        list(read_rows(tmp_path / name))

    assert name in str(caught.value)
    assert SECRET not in str(caught.value)
    assert str(tmp_path) not in caught.value.outward
    assert str(caught.value).endswith(caught.value.outward)


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_data.tables.MAX_LINE_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + SECRET * 100 + '"}')

    with pytest.raises(MalformedError, match="line 2: longer than 100 bytes"):
        list(read_rows(path))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file or folder; correct `path`"):
        next(read_rows(tmp_path / "none.jsonl"))


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MissingFileError, match=r"Permission denied.*this user may read"):
        next(read_rows(path))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path)
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type] # handed through as it came

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnknownFormatError, match=r"fedpipe\[agent\]"):
        next(read_rows(path))
