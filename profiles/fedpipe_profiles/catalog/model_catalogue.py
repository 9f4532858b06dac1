"""The catalogue of models: the published figures of well-known ones, for where neither hub nor cache can be reached.

Owns the form of `models/*.json`: the names a model goes by, where the figures are from, and the keys of its config.json
that its shape needs. Nothing in it says how good a model is, nor under which licence it may be used.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from pydantic import Field

from fedpipe_profiles.values import Settings

_FOLDER = "models"


class CataloguedModel(Settings):
    """One file of the catalogue; the first of its `hub_ids` is where the figures are from."""

    hub_ids: tuple[str, ...] = Field(min_length=1)
    source: str = Field(min_length=8, max_length=300)
    config: dict[str, str | int | float | bool | None]


def catalogued_model(hub_id: str) -> Mapping[str, object] | None:
    """The figures of a well-known model as its config.json has them, or None; upper and lower case are alike."""
    found = _by_name().get(hub_id.casefold())
    return None if found is None else MappingProxyType(found.config)


def names() -> tuple[str, ...]:
    """All hub ids that the catalogue knows, sorted."""
    return tuple(sorted(hub_id for model in catalogue() for hub_id in model.hub_ids))


@cache
def catalogue() -> tuple[CataloguedModel, ...]:
    """All models, by file name."""
    folder = files(__package__) / _FOLDER
    found = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return tuple(CataloguedModel.model_validate(json.loads(file.read_text("utf-8"))) for file in found)


@cache
def _by_name() -> Mapping[str, CataloguedModel]:
    return {hub_id.casefold(): model for model in catalogue() for hub_id in model.hub_ids}
