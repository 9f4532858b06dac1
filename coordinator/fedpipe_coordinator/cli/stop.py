"""`fedpipe stop`: end a run."""

from typing import Annotated

import typer

from fedpipe_coordinator.cli.options import HomeOption, find_home
from fedpipe_coordinator.control import ask
from fedpipe_coordinator.errors import CliError
from fedpipe_coordinator.exit_codes import ExitCode


def stop(run: Annotated[str, typer.Argument(help="The run's name.")], home: HomeOption = None) -> None:
    """End an open run. Its record is kept; nothing is exported.

    Example: fedpipe stop claims-20300401-093000-7f3a
    """
    reply = next(ask(find_home(home).path, {"op": "stop", "run": run}), {})
    if "error" in reply:
        raise CliError(reply["error"], ExitCode.USAGE)
    typer.echo(run)
