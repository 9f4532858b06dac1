"""Fetch one config.json from the hub, by its own library where that is installed; nothing else is ever downloaded."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedpipe_coordinator.whatif.errors import ModelConfigError
from fedpipe_coordinator.whatif.model_config import CONFIG, MAX_CONFIG_BYTES
from fedpipe_profiles.plain_text import plain

TIMEOUT_S = 5.0
_ON = frozenset({"1", "on", "true", "yes"})


def fetch_config(model: str, environment: Mapping[str, str] = os.environ) -> dict[str, object]:
    """The config.json of a hub id.

    Raises:
        ModelConfigError: if the library is not there, the hub does not answer, or has no such file.
    """
    otherwise = f"give the config.json of {plain(model, 100)} with --config"
    if any(environment.get(name, "").lower() in _ON for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        raise ModelConfigError(
            f"{plain(model, 100)} is no folder, not in the hub's cache and not in the catalogue of models, and the hub "
            f"is not asked while HF_HUB_OFFLINE is set: {otherwise}"
        )
    try:
        import huggingface_hub as hub  # noqa: PLC0415  # installed with some extras only, and slow to import
    except ImportError:
        raise ModelConfigError(
            f"{plain(model, 100)} is no folder, not in the hub's cache and not in the catalogue of models, and "
            f"huggingface_hub is not installed to ask the hub: {otherwise}"
        ) from None
    try:
        return _download(hub, model)
    except ModelConfigError:
        raise
    except Exception as error:  # noqa: BLE001  # its errors are of many libraries; each means that there is no file
        first = str(error).strip().splitlines()[:1]
        why = f"{type(error).__name__}: {first[0] if first else ''}"
        raise ModelConfigError(
            f"the hub gives no {CONFIG} of {plain(model, 100)} ({plain(why, 200)}): {otherwise}"
        ) from None


def _download(hub: Any, model: str) -> dict[str, object]:
    metadata = hub.get_hf_file_metadata(hub.hf_hub_url(model, CONFIG), timeout=TIMEOUT_S)
    if metadata.size is not None and metadata.size > MAX_CONFIG_BYTES:
        raise ModelConfigError(
            f"the {CONFIG} of {plain(model, 100)} has {metadata.size} bytes, and at most {MAX_CONFIG_BYTES} are read"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = hub.hf_hub_download(model, CONFIG, local_dir=folder, etag_timeout=TIMEOUT_S)
        value = json.loads(Path(path).read_bytes())
    if not isinstance(value, dict):
        raise ModelConfigError(f"the {CONFIG} of {plain(model, 100)} is no table")
    return value
