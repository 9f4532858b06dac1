"""Hypothesis strategies for every message, read off the types themselves, so that a new field is covered by itself.

A number without a lower or an upper bound is an error here: whoever adds one must say how large it may be.
"""

import typing
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from fedpipe_profiles.values import Value
from fedpipe_wire.agent_messages import AgentMessage
from fedpipe_wire.coordinator_messages import CoordinatorMessage

AGENT_MESSAGES: tuple[type[Value], ...] = get_args(AgentMessage)
COORDINATOR_MESSAGES: tuple[type[Value], ...] = get_args(CoordinatorMessage)


def values(model: type[Value]) -> st.SearchStrategy[Any]:
    """Values of a model, within its documented limits."""
    fields = {name: _of(field.annotation, _limits(field.metadata)) for name, field in model.model_fields.items()}
    return st.fixed_dictionaries(fields).map(lambda found: model(**found))


def _limits(metadata: typing.Iterable[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in metadata:
        if isinstance(each, FieldInfo):
            found |= _limits(each.metadata)
        for name in ("ge", "gt", "lt", "le", "min_length", "max_length", "pattern"):
            if getattr(each, name, None) is not None:
                found[name] = getattr(each, name)
    return found


def _of(kind: Any, limits: dict[str, Any]) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _of(arguments[0], limits | _limits(arguments[1:]))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in {typing.Union, UnionType}:
        return st.one_of(*(_of(each, limits) for each in arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        fewest = limits.get("min_length", 0)
        return st.lists(_of(arguments[0], {}), min_size=fewest, max_size=fewest + 3).map(tuple)
    if origin is tuple:
        return st.tuples(*(_of(each, {}) for each in arguments))
    if origin is dict:
        fewest = limits.get("min_length", 0)
        return st.dictionaries(_of(arguments[0], {}), _of(arguments[1], {}), min_size=fewest, max_size=fewest + 2)
    return _plain(kind, limits)


def _plain(kind: Any, limits: dict[str, Any]) -> st.SearchStrategy[Any]:
    if kind is NoneType:
        return st.none()
    if kind is bool:
        return st.booleans()
    if kind is int:
        lowest = limits["gt"] + 1 if "gt" in limits else limits["ge"]
        return st.integers(lowest, limits["le"])
    if kind is float:
        lowest = limits.get("gt", limits.get("ge"))
        return st.floats(lowest, limits["le"], exclude_min="gt" in limits)
    if kind is str and "pattern" in limits:
        return st.from_regex(limits["pattern"], fullmatch=True)
    if kind is str:
        fewest, most = limits.get("min_length", 0), min(20, limits.get("max_length", 20))
        return st.text(st.characters(codec="utf-8"), min_size=fewest, max_size=most)
    assert issubclass(kind, Value), f"no strategy for {kind}"
    return values(kind)
