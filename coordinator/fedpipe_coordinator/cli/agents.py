"""`fedpipe agents`: who is enrolled, who is there, and with what."""

import json
from datetime import datetime
from typing import Any

import typer

from fedpipe_coordinator.cli.options import FormatOption, HomeOption, OutputFormat, find_home
from fedpipe_coordinator.consoles import result_console
from fedpipe_coordinator.control import ControlBusyError, ControlError, ask
from fedpipe_coordinator.federation import open_files
from fedpipe_coordinator.federation_config import load_federation
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.security.assembly import utc_now
from fedpipe_coordinator.security.enrolment_view import describe_enrolments, enrolments_table
from fedpipe_coordinator.view import agents_table


def agents(home: HomeOption = None, output: FormatOption = OutputFormat.TABLE) -> None:
    """Show who is enrolled until when, and the agents that are there with what their machines can do.

    Example: fedpipe agents --format json
    """
    place = find_home(home)
    enrolled = _enrolled(place, utc_now())
    reply: dict[str, Any]
    try:
        reply = next(ask(place.path, {"op": "agents"}), {})
    except ControlBusyError:
        raise
    except ControlError:
        if enrolled is None:
            raise
        reply = {"agents": {}, "running": False}
    else:
        reply = {**reply, "running": True}
    if output is OutputFormat.JSON:
        typer.echo(json.dumps({**reply, "enrolled": enrolled or {}}))
        return
    console = result_console()
    if enrolled is not None:
        console.print(enrolments_table(enrolled))
    if reply["running"]:
        console.print(agents_table(reply["agents"]))
    else:
        console.print("The coordinator does not run: who is there cannot be told.")


def _enrolled(place: Home, now: datetime) -> dict[str, dict[str, Any]] | None:
    """Who is enrolled; None where the federation was made without keys."""
    settings = load_federation(place.settings)
    if settings.broker.insecure:
        return None
    return describe_enrolments(open_files(place, settings, now).read(), now)
