"""Options that several verbs have, and what they print alike."""

from pathlib import Path
from typing import Annotated

import typer

from fedpipe_wire.enrolment import Request, request_fingerprint

Config = Annotated[Path, typer.Option("--config", "-c", help="The agent's settings.")]
RequestFile = Annotated[
    Path | None, typer.Option("--request", help="Where to write the request; beside the settings when left out.")
]


def say_request(path: Path, request: Request, command: str) -> None:
    """Print where a request is, its fingerprint, and what to do with it."""
    typer.echo(f"request:     {path}")
    typer.echo(f"fingerprint: {request_fingerprint(request)}")
    typer.echo(
        f"\nNext: give {path.name} to the federation's owner, who runs `fedpipe enroll {path.name}`, and compare the\n"
        f"fingerprint with what that shows, by telephone or face to face. Then, with the bundle that comes back:\n"
        f"  {command}"
    )
