"""Which of a dataset's files are for training and which are held out: the folder rule.

Looks at names only; never opens a file.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedpipe_data.errors import DataError, EmptyError, MissingFileError
from fedpipe_data.source import Format

_ENDINGS: Final[dict[str, Format]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
_HELD_OUT_NAMES: Final = (("held_out", "dev", "valid"), ("test",))


@dataclass(frozen=True, slots=True)
class DataFiles:
    """Which files of a dataset are for training, which are held out, and which are left alone."""

    train: tuple[Path, ...]
    held_out: tuple[Path, ...] = ()
    unused: tuple[Path, ...] = ()


def format_of(path: Path) -> Format | None:
    """The format that a file's ending stands for, or None."""
    return _ENDINGS.get(path.suffix.lower())


def find_files(path: Path, format: Format | None = None) -> DataFiles:  # noqa: A002 - the setting's name
    """The files of a dataset.

    A file is for training. In a folder, files named train* are for training, and dev*, valid* and held_out* (else
    test*) are held out. Without any train*, all others are for training; where there are no others, all files are.
    Hidden files, subfolders and files of other endings are not looked at.

    Raises:
        MissingFileError: if there is nothing at the path.
        EmptyError: if a folder has no data file.
    """
    if path.is_file():
        return DataFiles(train=(path,))
    if not path.is_dir():
        raise MissingFileError("there is no such file or folder", "correct `path`, or put the data there", path=path)
    found = _data_files(path, format)
    train = _named(found, ("train",))
    held_out = next((files for names in _HELD_OUT_NAMES if (files := _named(found, names))), ())
    if not train:
        reserved = {file for names in _HELD_OUT_NAMES for file in _named(found, names)}
        train = tuple(file for file in found if file not in reserved)
    if not train:
        return DataFiles(train=found)
    used = {*train, *held_out}
    return DataFiles(train, held_out, tuple(file for file in found if file not in used))


def _data_files(folder: Path, wanted: Format | None) -> tuple[Path, ...]:
    try:
        files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    except OSError as error:
        raise unreadable(folder, error) from None
    found = tuple(f for f in files if (format_of(f) == wanted if wanted else format_of(f)))
    if not found and wanted:
        found = tuple(f for f in files if format_of(f) is None)
    if not found:
        raise EmptyError(
            "the folder has no data file",
            f"put files there that end in {', '.join(_ENDINGS)}",
            path=folder,
        )
    return found


def _named(files: tuple[Path, ...], beginnings: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(file for file in files if file.name.lower().startswith(beginnings))


def unreadable(path: Path, error: OSError) -> DataError:
    """The error to raise for what the operating system said."""
    return MissingFileError(
        f"cannot be read ({error.strerror or type(error).__name__})",
        "check that it is there and that this user may read it",
        path=path,
    )
