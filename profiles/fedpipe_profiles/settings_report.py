"""Words what is wrong with a settings file: the key, the value, what is allowed, what was meant.

Owns the wording only; `settings_file.py` reads the file.
"""

import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from pydantic import BaseModel, ValidationError

_SHOWN_CHARACTERS = 80
_WORDED = 200
"""Problems of which each gets words; to look for what was meant takes time."""
_ANY_NAME = "*"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SUBJECT = re.compile(r"^[A-Z][a-z]+ (?=should )")

Key = tuple[str, ...]


class SettingsReport:
    """Words pydantic's errors as lines, in the order of the type's keys."""

    def __init__(self, model: type[BaseModel], tables: Mapping[str, Any], overridden: AbstractSet[Key]) -> None:
        self._known = tuple(known_keys(model))
        self._tables = tables
        self._overridden = overridden

    def lines(self, error: ValidationError) -> list[str]:
        """One line per key that has a problem; the alternatives of one key are joined."""
        allowed: dict[Key, list[str]] = {}
        details = error.errors(include_url=False)[:_WORDED]
        with_inner = {detail["loc"][:depth] for detail in details for depth in range(len(detail["loc"]))}
        for detail in details:
            if detail["type"] == "too_short" and detail["loc"] in with_inner:
                continue  # it has too few items only because some have problems of their own
            location = tuple(str(part) for part in detail["loc"])
            match detail["type"]:
                case "default_factory_not_called":
                    continue  # it depends on another key, whose own problem is in the list
                case "missing":
                    allowed[location] = ["missing; it has no default"]
                case "extra_forbidden":
                    allowed[location] = [self._unknown(location)]
                case _:
                    allowed.setdefault(self._in_file(location), []).append(_wording(detail["msg"]))
        return [self._line(key, texts) for key, texts in allowed.items()]

    def _in_file(self, location: Key) -> Key:
        """The part of `location` that the file has: pydantic appends the alternatives it tried."""
        node: Any = self._tables
        for depth, part in enumerate(location):
            if isinstance(node, dict) and part in node:
                node = node[part]
            elif isinstance(node, list) and part.isdigit():
                node = node[int(part)]
            else:
                return location[:depth]
        return location

    def _line(self, key: Key, texts: Sequence[str]) -> str:
        first, *others = dict.fromkeys(texts)
        text = " or ".join([first, *(other.removeprefix("should be ") for other in others)])
        given, value = self._value(key)
        start = dotted(key) or "the file"
        if given and not isinstance(value, dict):
            start += f" = {shown(value)}"
        by_override = any(key[: len(override)] == override for override in self._overridden)
        return f"{start}{' (set by an override)' if by_override else ''}: {text}"

    def _value(self, key: Key) -> tuple[bool, Any]:
        node: Any = self._tables
        for part in key:
            if isinstance(node, dict) and part in node:
                node = node[part]
            elif isinstance(node, list) and part.isdigit():
                node = node[int(part)]
            else:
                return False, None
        return True, node

    def _unknown(self, key: Key) -> str:
        name = key[-1]
        here = [known for known in self._known if len(known) == len(key) and _fits(known[:-1], key[:-1])]
        names = [known[-1] for known in here if known[-1] != _ANY_NAME]
        elsewhere = [known for known in self._known if known not in here and known[-1] != _ANY_NAME]
        same = [known for known in elsewhere if known[-1] == name]
        if same:
            return f"unknown key here; it belongs to {dotted(_named(same[0], key))}"
        if close := difflib.get_close_matches(name, names, n=1):
            return f"unknown key; did you mean {dotted((*key[:-1], close[0]))}?"
        if close := difflib.get_close_matches(name, [known[-1] for known in elsewhere], n=1, cutoff=0.8):
            other = next(known for known in elsewhere if known[-1] == close[0])
            return f"unknown key; did you mean {dotted(_named(other, key))}?"
        return f"unknown key; known here: {', '.join(names)}"


def known_keys(model: type[BaseModel], prefix: Key = ()) -> Iterator[Key]:
    """Every key that `model` knows, tables included; `*` stands for a name of the person's choice."""
    for name, field in model.model_fields.items():
        key = (*prefix, name)
        yield key
        yield from _keys_under(field.annotation, key)


def _keys_under(annotation: Any, key: Key) -> Iterator[Key]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from known_keys(annotation, key)
    elif typing.get_origin(annotation) is dict:
        yield (*key, _ANY_NAME)
        yield from _keys_under(typing.get_args(annotation)[1], (*key, _ANY_NAME))
    elif typing.get_origin(annotation) in (types.UnionType, typing.Union):
        for alternative in typing.get_args(annotation):
            yield from _keys_under(alternative, key)


def _fits(pattern: Key, key: Key) -> bool:
    return all(known in (_ANY_NAME, part) for known, part in zip(pattern, key, strict=True))


def _named(pattern: Key, key: Key) -> Key:
    """`pattern` with the names that `key` already gave in place of `*`, and NAME for the others."""
    parts = list(pattern)
    shared = 0
    while shared < min(len(pattern), len(key)) and _fits(pattern[shared : shared + 1], key[shared : shared + 1]):
        parts[shared] = key[shared]
        shared += 1
    return tuple("NAME" if part == _ANY_NAME else part for part in parts)


def _wording(message: str) -> str:
    """What is allowed, in TOML's words."""
    text = _SUBJECT.sub("", message.removeprefix("Value error, "))
    for theirs, ours in (
        ("a valid array", "a list"),
        ("an object", "a table"),
        ("a valid string", "text in quotes"),
    ):
        text = text.replace(theirs, ours)
    return text


def shown(value: Any) -> str:
    """A value much as TOML writes it, cut where it is long."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def dotted(key: Key) -> str:
    """A key as TOML writes it, with quotes where a part needs them; endless parts are cut."""
    parts = (part if _BARE_KEY.fullmatch(part) else json.dumps(part, ensure_ascii=False) for part in key)
    return ".".join(part if len(part) <= _SHOWN_CHARACTERS else f"{part[:_SHOWN_CHARACTERS]}..." for part in parts)
