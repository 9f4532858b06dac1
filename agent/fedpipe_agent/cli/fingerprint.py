"""`fedpipe-agent fingerprint`: what a base model is made of, as one hash that a job may name."""

from pathlib import Path
from typing import Annotated

import typer

from fedpipe_agent.config import load_agent_settings
from fedpipe_agent.train.errors import ModelError
from fedpipe_agent.train.fingerprint import fingerprint as fingerprint_of


def fingerprint(
    model: Annotated[str, typer.Argument(help="A folder, or a name that [models] of the settings maps to one.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Settings whose [models] count; none when left out.")
    ] = None,
) -> None:
    """Print the SHA-256 of a base model's tensors; as `job.model_sha256`, agents with other files refuse the job.

    Example: fedpipe-agent fingerprint models/small-model
    """
    folder = Path(model if config is None else load_agent_settings(config).model_location(model))
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder: name the model's folder, or map it in [models] of agent.toml")
    typer.echo(fingerprint_of(folder))
