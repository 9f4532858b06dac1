"""`fedpipe init`: make a federation's folder."""

from pathlib import Path
from typing import Annotated

import typer

from fedpipe_coordinator.cli.errors import CliError
from fedpipe_coordinator.cli.options import progress_console
from fedpipe_coordinator.config import load_federation
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.records import write_atomically
from fedpipe_wire.topics import check_name

_TEMPLATE = """\
federation = "{name}"

[broker]
host = "{host}"
port = {port}
# true: `fedpipe up` starts and stops a Mosquitto of its own on this port.
# false: it connects to the broker that you run there.
managed = {managed}
"""


def init(
    folder: Annotated[Path, typer.Argument(help="Where to make it; must be empty or missing.")],
    name: Annotated[str, typer.Option(help="The federation's name, part of every topic.")] = "fedpipe",
    host: Annotated[str, typer.Option(help="The broker's address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The broker's port.", min=1, max=65535)] = 1883,
    managed: Annotated[bool, typer.Option(help="Whether `fedpipe up` runs the broker itself.")] = True,  # noqa: FBT002  # typer makes --managed/--no-managed of it
) -> None:
    """Make a federation's folder with its federation.toml.

    Example: fedpipe init my-federation --name hospitals
    """
    check_name(name, "federation name")
    home = Home(folder.resolve())
    if home.settings.exists():
        raise CliError(f"{home.settings} exists already: edit it, or name another folder", ExitCode.BAD_SETTINGS)
    home.path.mkdir(parents=True, exist_ok=True)
    home.path.chmod(0o700)
    text = _TEMPLATE.format(name=name, host=host, port=port, managed=str(managed).lower())
    write_atomically(home.settings, text)
    load_federation(home.settings)
    console = progress_console()
    console.print(f"Made the federation {name!r} in {home.path}", markup=False)
    console.print(f"Next: fedpipe up {home.path}", markup=False)
