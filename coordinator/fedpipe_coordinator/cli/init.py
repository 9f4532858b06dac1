"""`fedpipe init`: make a federation's folder."""

from pathlib import Path
from typing import Annotated

import typer

from fedpipe_coordinator.consoles import progress_console
from fedpipe_coordinator.federation import create_federation


def init(
    folder: Annotated[Path, typer.Argument(help="Where to make it; must be empty or missing.")],
    name: Annotated[str, typer.Option(help="The federation's name, part of every topic.")] = "fedpipe",
    host: Annotated[str, typer.Option(help="The broker's address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The broker's port.", min=1, max=65535)] = 1883,
    managed: Annotated[bool, typer.Option(help="Whether `fedpipe up` runs the broker itself.")] = True,  # noqa: FBT002  # typer makes --managed/--no-managed of it
    insecure: Annotated[  # noqa: FBT002  # a flag
        bool, typer.Option("--insecure", help="No TLS, no keys, no signatures; on loopback only.")
    ] = False,
) -> None:
    """Make a federation's folder with its federation.toml.

    Example: fedpipe init my-federation --name hospitals
    """
    home = create_federation(folder, name=name, host=host, port=port, managed=managed, insecure=insecure)
    console = progress_console()
    console.print(f"Made the federation {name!r} in {home.path}", markup=False)
    console.print(f"Next: fedpipe up {home.path}", markup=False)
