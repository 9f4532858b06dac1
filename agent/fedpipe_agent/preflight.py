"""What must be in place before an agent connects: better said at once than in the first run.

Pure but for looking at the disk. Reads no row of a dataset and imports no library.
"""

from collections.abc import Callable
from importlib.util import find_spec

from fedpipe_agent.config import AgentSettings

TRAINING_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "pyarrow")


class PreflightError(Exception):
    """Something that every run needs is missing on this machine."""


class DatasetMissingError(PreflightError):
    """A dataset's file or folder is not there."""


class ModelMissingError(PreflightError):
    """A model's folder is not there."""


class LibrariesMissingError(PreflightError):
    """The training libraries are not installed."""


def check(settings: AgentSettings, installed: Callable[[str], bool] = lambda name: find_spec(name) is not None) -> None:
    """Look whether datasets, models and training libraries are there.

    Raises:
        PreflightError: naming all that is missing of the first kind that misses something.
    """
    paths = [(f"datasets.{name}.path", source.path) for name, source in settings.datasets.items()]
    paths += [
        (f"datasets.{name}.held_out_path", source.held_out_path)
        for name, source in settings.datasets.items()
        if source.held_out_path is not None
    ]
    missing = [f"{key} = {path}" for key, path in paths if not path.exists()]
    if missing:
        raise DatasetMissingError(f"not there: {'; '.join(missing)}. Put the data there, or correct agent.toml")
    folders = [f"models.{name} = {path}" for name, path in settings.models.items() if not path.is_dir()]
    if folders:
        raise ModelMissingError(f"no such folder: {'; '.join(folders)}. Put the model there, or correct agent.toml")
    libraries = [name for name in TRAINING_LIBRARIES if not installed(name)]
    if libraries:
        raise LibrariesMissingError(f"not installed: {', '.join(libraries)}. Run: pip install 'fedpipe[agent]'")
