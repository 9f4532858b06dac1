"""`fedpipe up`: run the broker and the coordinator in the foreground."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from fedpipe_coordinator.cli.options import find_home
from fedpipe_coordinator.consoles import progress_console
from fedpipe_coordinator.federation_config import load_federation
from fedpipe_coordinator.serve import Server
from fedpipe_profiles.plain_text import plain


def up(
    home: Annotated[
        Path | None, typer.Argument(help="The federation's folder; $FEDPIPE_HOME or here if left out.")
    ] = None,
) -> None:
    """Run the coordinator, and its broker if that is managed, until Ctrl-C or SIGTERM.

    Example: fedpipe up my-federation
    """
    place = find_home(home)
    console = progress_console()

    def log(text: str) -> None:
        console.print(plain(text), markup=False)  # agents write some of it

    with Server(place, load_federation(place.settings), log=log) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.request_stop())
        server.serve()
