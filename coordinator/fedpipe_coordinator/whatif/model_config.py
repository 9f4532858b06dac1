"""Where a model's config.json is found: a folder, the hub's cache on disk, the catalogue, or the hub itself.

Owns the order and the limits. What the figures mean is the architectures' work; no tensor is ever read.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedpipe_coordinator.whatif.errors import ModelConfigError
from fedpipe_coordinator.whatif.small_files import UnreadableError, named, read_json
from fedpipe_profiles.plain_text import plain

CONFIG = "config.json"
MAX_CONFIG_BYTES = 4 << 20
"""Configurations have some kilobytes; long lists of labels make a few hundred."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)

Config = Mapping[str, object]
Fetch = Callable[[str], Config]
"""Downloads the config.json of a hub id.

Raises:
    ModelConfigError: if it cannot.
"""
Catalogue = Callable[[str], Config | None]


@dataclass(frozen=True, slots=True)
class FoundConfig:
    """A configuration, and where it was found."""

    config: Config
    origin: str


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look: `folders` that relative names may be in, the hub's `cache` folders, then the two functions."""

    folders: tuple[Path, ...]
    caches: tuple[Path, ...]
    catalogue: Catalogue
    fetch: Fetch


def cache_folders(environment: Mapping[str, str], home: Path) -> tuple[Path, ...]:
    """Where the hub's library keeps what it has downloaded, as its documentation says."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(variable):
            return (Path(environment[variable]),)
    if environment.get("HF_HOME"):
        return (Path(environment["HF_HOME"]) / "hub",)
    cache = Path(environment["XDG_CACHE_HOME"]) if environment.get("XDG_CACHE_HOME") else home / ".cache"
    return (cache / "huggingface" / "hub",)


def find_config(model: str, given: Path | None, places: Places) -> FoundConfig:
    """The configuration of a job's model, or the one that was given in its place.

    Raises:
        ModelConfigError: if there is none, or it cannot be read.
    """
    if given is not None:
        path = given / CONFIG if given.is_dir() else given
        return FoundConfig(_read(path), named(path))
    for folder in places.folders:
        path = folder / model
        if _is_folder(path):
            return FoundConfig(_read(path / CONFIG), named(path / CONFIG))
    if not _HUB_ID.fullmatch(model) or ".." in model:
        raise ModelConfigError(
            f"job.model is {plain(model, 100)!r}: there is no such folder, and a hub id looks like "
            "meta-llama/Llama-3.1-8B. Give the model's config.json with --config"
        )
    for cache in places.caches:
        snapshot = _snapshot(cache, model)
        if snapshot is not None:
            return FoundConfig(_read(snapshot), f"the hub's cache, {named(snapshot)}")
    known = places.catalogue(model)
    if known is not None:
        return FoundConfig(known, "the catalogue of models")
    return FoundConfig(places.fetch(model), "the hub")


def _snapshot(cache: Path, model: str) -> Path | None:
    """The config.json that the cache holds of a model: of its branch `main`, else of the newest snapshot."""
    folder = cache / f"models--{model.replace('/', '--')}"
    try:
        main = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        main = ""
    try:
        if re.fullmatch(r"[0-9a-f]{6,64}", main) and (folder / "snapshots" / main / CONFIG).is_file():
            return folder / "snapshots" / main / CONFIG
        found = [path / CONFIG for path in (folder / "snapshots").iterdir() if (path / CONFIG).is_file()]
        return max(found, key=lambda path: (path.stat().st_mtime, path.parent.name), default=None)
    except OSError:
        return None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _read(path: Path) -> Config:
    try:
        value = read_json(path, MAX_CONFIG_BYTES)
    except UnreadableError as error:
        raise ModelConfigError(
            f"the model's configuration cannot be used: {error}. Name its folder, or its config.json with --config"
        ) from None
    if not isinstance(value, dict):
        raise ModelConfigError(
            f"{named(path)} holds a {type(value).__name__} and no configuration, which is a table: is it a config.json?"
        )
    return value
