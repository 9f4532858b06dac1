"""Reading rows from a silo's files, one at a time: JSON lines, CSV and parquet, a file or a folder of files.

Never decides what a column means, and never holds more than one row (one batch of rows, for parquet) in memory.
"""

import csv
import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedpipe_data.errors import (
    EmptyError,
    EncodingError,
    MalformedError,
    UnknownFormatError,
)
from fedpipe_data.files import find_files, format_of, unreadable
from fedpipe_data.source import Format

MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""A longer line is not a row: most likely the whole file is one JSON value or one unclosed quote."""

PARQUET_BATCH_ROWS: Final = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its values by column, and where it stands. `line` counts from 1; for parquet it is the row."""

    path: Path
    line: int
    values: dict[str, object]


def read_rows(path: Path, format: Format | None = None) -> Iterator[Row]:  # noqa: A002 - the setting's name
    """Stream the rows of a file, or of a folder's training files in order of their names.

    Args:
        path: A file or a folder.
        format: How to read it; by each file's ending when None.

    Raises:
        DataError: at the first thing that is wrong; see its subclasses.
    """
    for file in find_files(path, format).train:
        yield from _read_file(file, format)


def _read_file(path: Path, wanted: Format | None) -> Iterator[Row]:
    known = wanted or format_of(path)
    if known is None:
        raise UnknownFormatError(
            f"the ending {path.suffix!r} does not say the format",
            "set `format` to jsonl, csv or parquet",
            path=path,
        )
    rows = _READERS[known](path)
    try:
        first = next(rows, None)
        if first is None:
            raise EmptyError("the file has no rows", "put data in it, or take it away", path=path)
        yield first
        yield from rows
    except OSError as error:
        raise unreadable(path, error) from None


def _lines(path: Path) -> Generator[tuple[int, str], None, None]:
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                raise MalformedError(
                    f"longer than {MAX_LINE_BYTES} bytes, which no row is",
                    "write one row per line",
                    path=path,
                    line=number,
                )
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise EncodingError(
                    f"not UTF-8 at byte {error.start + 1} of the line",
                    "convert the file to UTF-8, for example with iconv",
                    path=path,
                    line=number,
                ) from None
            yield number, text


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise MalformedError(
                f"not JSON ({error.msg} at column {error.colno})",
                "write one JSON object per line",
                path=path,
                line=number,
            ) from None
        except (ValueError, RecursionError):
            raise MalformedError(
                "JSON with a number too long or nested too deeply",
                "write one flat JSON object per line",
                path=path,
                line=number,
            ) from None
        if not isinstance(values, dict):
            raise MalformedError(
                f"expected a JSON object, got a {type(values).__name__}",
                'write one JSON object per line, such as {"text": ..., "label": ...}',
                path=path,
                line=number,
            )
        yield Row(path, number, values)


def _read_csv(path: Path) -> Iterator[Row]:
    # The library's own limit, 128 KiB for the whole process, is shorter than some documents.
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] | None = None
    while True:
        # A row may span lines; it is told by its first.
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise MalformedError(
                f"not CSV ({error})",
                'separate by commas, put a text with commas or quotes in "...", double quotes inside',
                path=path,
                line=number,
            ) from None
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = _check_header(cells, path, number)
            continue
        if len(cells) != len(header):
            raise MalformedError(
                f"expected {len(header)} columns as in the header, got {len(cells)}",
                'put a text that holds commas or line ends in "..."',
                path=path,
                line=number,
            )
        yield Row(path, number, dict(zip(header, cells, strict=True)))


def _check_header(names: list[str], path: Path, line: int) -> list[str]:
    other = {";": "semicolons", "\t": "tabs"}
    if len(names) == 1 and (found := next((other[mark] for mark in other if mark in names[0]), None)):
        raise MalformedError(
            f"the header is one column with {found} in it",
            "separate the columns by commas",
            path=path,
            line=line,
        )
    if len(set(names)) != len(names):
        raise MalformedError(
            "two columns of the header have the same name",
            "name each column once; a CSV file begins with the columns' names",
            path=path,
            line=line,
        )
    return names


def _read_parquet(path: Path) -> Iterator[Row]:
    pa, parquet = _import_pyarrow(path)
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(path, number, values)
    except UnicodeDecodeError:
        raise EncodingError(
            f"a text after row {number} is not UTF-8", "write the file again from UTF-8 texts", path=path
        ) from None
    except (pa.lib.ArrowException, OSError, OverflowError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # Its message may quote the file's content.
        raise MalformedError(
            f"not a sound parquet file after row {number} ({type(error).__name__})",
            "write the file again with plain columns, or set `format` to what it is",
            path=path,
        ) from None


def _import_pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        # Imported here: only a dataset in parquet needs the library.
        import pyarrow as pa  # noqa: PLC0415 - see above
        from pyarrow import parquet  # noqa: PLC0415 - see above
    except ImportError:
        raise UnknownFormatError(
            "reading parquet needs pyarrow, which is not installed",
            "install fedpipe[agent], or write the data as jsonl or csv",
            path=path,
        ) from None
    return pa, parquet


_READERS: Final[dict[Format, Callable[[Path], Iterator[Row]]]] = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
