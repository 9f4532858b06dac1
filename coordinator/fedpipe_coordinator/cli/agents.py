"""`fedpipe agents`: who is there, with what."""

import json

import typer

from fedpipe_coordinator.cli.options import FormatOption, HomeOption, OutputFormat, find_home
from fedpipe_coordinator.consoles import result_console
from fedpipe_coordinator.control import ask
from fedpipe_coordinator.view import agents_table


def agents(home: HomeOption = None, output: FormatOption = OutputFormat.TABLE) -> None:
    """Show the federation's agents and what their machines can do.

    Example: fedpipe agents --format json
    """
    reply = next(ask(find_home(home).path, {"op": "agents"}), {})
    if output is OutputFormat.JSON:
        typer.echo(json.dumps(reply))
    else:
        result_console().print(agents_table(reply["agents"]))
