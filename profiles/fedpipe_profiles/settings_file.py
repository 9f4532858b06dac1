"""Reads a TOML file that a person wrote into a `Settings` type, with overrides from a command line.

Which keys there are and what they may hold is each `Settings` type's own matter, and the wording of
problems that of `settings_report.py`. Nothing is guessed: an unknown key is a problem, never ignored,
and a value of another type ("10" for 10) is a problem, never converted.
"""

import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from fedpipe_profiles.plain_text import plain
from fedpipe_profiles.settings_report import Key, SettingsReport, dotted, shown
from fedpipe_profiles.values import Settings

MAX_FILE_BYTES = 1 << 18
MAX_DEPTH = 16
"""Tables and lists in one another; what settings there are needs four."""
MAX_VALUES = 20_000
"""Labels are what there may be most of."""
MAX_LINES, MAX_LINE = 50, 1000
"""Of a report, and characters of each; nobody reads more at once."""
_LONG_KEY = re.compile(r"""(?<![\w"'-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){%d}""" % MAX_DEPTH)  # noqa: UP031  # braces are the pattern's own
_TOO_DEEP = f"not TOML that can be read: values are nested too deeply, more than {MAX_DEPTH} levels"
S = TypeVar("S", bound=Settings)


class SettingsError(ValueError):
    """A settings file cannot be used. `problems` holds one line for each thing to put right."""

    def __init__(self, path: Path, problems: Sequence[str]) -> None:
        """Keep both parts; `str()` shows them as one report."""
        self.path = path
        self.problems = tuple(plain(problem, MAX_LINE) for problem in problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        more = [f"and {len(self.problems) - MAX_LINES} more"] if len(self.problems) > MAX_LINES else []
        lines = (f"  {line}" for line in (*self.problems[:MAX_LINES], *more))
        super().__init__("\n".join([f"{plain(str(path))}: {count}", *lines]))


def load_settings(path: Path, model: type[S], overrides: Sequence[str] = ()) -> S:
    """Read `path`, apply `overrides`, check all of it against `model`.

    A relative path in the file means: relative to the file's folder. So it does in an override.

    Args:
        path: A TOML file in UTF-8.
        model: The type that says which keys there are.
        overrides: Each `dotted.key=value`, as in `rounds.number=10`. The value is read as TOML, and
            as plain text where it is not TOML, so that `job.name=night` needs no quotes.

    Raises:
        SettingsError: with every problem of the file and of the overrides.
    """
    tables = _parse(path)
    overridden, problems = _override(tables, overrides)
    _check_extent(path, tables)
    # JSON in strict mode lets pydantic take a list for a tuple and text for a path, and nothing else.
    text = json.dumps(tables, default=str)
    try:
        settings = model.model_validate_json(text, strict=True)
    except ValidationError as error:
        problems += SettingsReport(model, tables, overridden).lines(error)
        raise SettingsError(path, problems) from None
    folder = path.absolute().parent
    resolved = _resolve(settings, folder, (), problems)
    if problems:
        raise SettingsError(path, problems)
    assert isinstance(resolved, model)
    return resolved


def _parse(path: Path) -> dict[str, Any]:
    data = _read(path)
    try:
        # Editors on Windows put a byte order mark first; TOML knows none.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"not UTF-8: byte 0x{data[error.start]:02x} on line {line}; save the file as UTF-8"
        raise SettingsError(path, [problem]) from None
    if _LONG_KEY.search(text):  # tomllib needs time and memory by the square of a key's parts
        raise SettingsError(path, [_TOO_DEEP])
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise SettingsError(path, [f"not TOML: {error}"]) from None
    except RecursionError:
        raise SettingsError(path, [_TOO_DEEP]) from None


def _check_extent(path: Path, tables: dict[str, Any]) -> None:
    """Refuse what is nested too deeply or holds too much before anything recurses into it or lists it all."""
    layer: list[Any] = [tables]
    found = 0
    for _ in range(MAX_DEPTH):
        inner = [each for value in layer for each in (value.values() if isinstance(value, dict) else value)]
        found += len(inner)
        if found > MAX_VALUES:
            raise SettingsError(path, [f"more than {MAX_VALUES} values; no settings file has so many"])
        layer = [each for each in inner if isinstance(each, dict | list)]
    if layer:
        raise SettingsError(path, [_TOO_DEEP])


def _read(path: Path) -> bytes:
    try:
        # A pipe that nobody writes to would be waited for without end.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SettingsError(path, ["is no file, but a device or a pipe; name the TOML file"])
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise SettingsError(path, ["no such file; check the path"]) from None
    except IsADirectoryError:
        raise SettingsError(path, ["is a folder; name the TOML file in it"]) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SettingsError(
            path, [f"cannot be read: {reason}; check the owner and the mode of file and folder"]
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError(
            path,
            [f"larger than {MAX_FILE_BYTES} bytes; no settings file is: is this the right one?"],
        )
    return data


def _override(tables: dict[str, Any], overrides: Sequence[str]) -> tuple[set[Key], list[str]]:
    """Put `overrides` into `tables`; returns the keys set and the problems met."""
    done: set[Key] = set()
    problems: list[str] = []
    for override in overrides:
        name, equals, text = override.partition("=")
        key = _dotted_key(name)
        if not equals or key is None:
            problems.append(f"override {override!r}: should be KEY=VALUE, as in rounds.number=10")
            continue
        table: Any = tables
        for depth, part in enumerate(key[:-1], start=1):
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                problems.append(f"override {override!r}: {dotted(key[:depth])} is a value, not a table")
                break
        else:
            table[key[-1]] = _toml_value(text)
            done.add(key)
    return done, problems


def _dotted_key(text: str) -> Key | None:
    """The parts of a TOML key, quoted ones included; None if `text` is no key."""
    try:
        node: Any = tomllib.loads(f"{text.strip()} = 0")
    except ValueError:
        return None
    parts: list[str] = []
    while isinstance(node, dict) and len(node) == 1:
        ((part, node),) = node.items()
        parts.append(part)
    return tuple(parts) if node == 0 else None


def _toml_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if table.keys() == {"value"} else text


def _resolve(value: Any, folder: Path, key: Key, problems: list[str]) -> Any:
    """`value` with every relative path in it put under `folder`."""
    if isinstance(value, Path):
        if value.parts[:1] and value.parts[0].startswith("~"):
            # A daemon has another home folder than the person who writes its file.
            problems.append(f"{dotted(key)} = {shown(str(value))}: ~ is not expanded; write the whole path")
        if "\0" in str(value):
            problems.append(f"{dotted(key)} = {shown(str(value))}: no path holds a zero byte")
        return folder / value
    if isinstance(value, Settings):
        changed = {
            name: _resolve(getattr(value, name), folder, (*key, name), problems) for name in type(value).model_fields
        }
        return value.model_copy(update=changed)
    if isinstance(value, Mapping):
        return {name: _resolve(item, folder, (*key, str(name)), problems) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_resolve(item, folder, key, problems) for item in value)
    return value
