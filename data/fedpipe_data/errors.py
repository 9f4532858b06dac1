"""What can be wrong with a silo's files: one exception tree.

Messages name files, lines, columns and types, never a value: rows are private, and a message may be logged or sent.
"""

import re
from collections.abc import Iterable
from pathlib import Path

_NAME = re.compile(r"[^\W\d][\w.\-]{0,39}")


class DataError(Exception):
    """Something is wrong with a dataset.

    Args:
        what: What is wrong, with no row's content in it.
        do: What the person can do about it.
        path: The file, where one is to blame.
        line: Line of the file (row, for parquet), counted from 1.

    Attributes:
        outward: The message without the path, fit to leave the silo.
    """

    def __init__(self, what: str, do: str, *, path: Path | None = None, line: int | None = None) -> None:
        place = "" if line is None else f"line {line}"
        self.what, self.do, self.path, self.line = what, do, path, line
        self.outward = f"{place + ': ' if place else ''}{what}; {do}"
        where = ", ".join(part for part in ("" if path is None else str(path), place) if part)
        super().__init__(f"{where + ': ' if where else ''}{what}; {do}")


class MissingFileError(DataError):
    """A file or folder is not there, or cannot be opened."""


class EmptyError(DataError):
    """A file, a folder or one side of the split has nothing in it."""


class MalformedError(DataError):
    """A line or a file does not follow its format."""


class EncodingError(DataError):
    """A text is not UTF-8."""


class UnknownFormatError(DataError):
    """The file's ending does not say its format, or reading it needs a library that is not installed."""


class MissingFieldError(DataError):
    """A row has no such field."""


class AmbiguousFieldsError(DataError):
    """Which column is what cannot be told from the columns' names."""


class WrongValueError(DataError):
    """A value has the wrong type or size for its field."""


def name_columns(columns: Iterable[str]) -> str:
    """Columns as a person reads them.

    Names that do not look like a name are told by position only: where a CSV file lacks its header, the first row's
    values stand where the names should.
    """
    shown = (
        name if _NAME.fullmatch(name) else f"(column {position}, its name is not shown)"
        for position, name in enumerate(columns, start=1)
    )
    return ", ".join(shown) or "none"
