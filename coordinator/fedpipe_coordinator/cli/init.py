"""`fedpipe init`: make a federation's folder."""

from pathlib import Path
from typing import Annotated

import typer

from fedpipe_coordinator.consoles import progress_console
from fedpipe_coordinator.federation import EXTERNAL, INSECURE_PORT, SECURE_PORT, create_federation
from fedpipe_coordinator.federation_config import load_federation
from fedpipe_coordinator.security.assembly import utc_now
from fedpipe_coordinator.security.credentials import load_authority_certificate
from fedpipe_wire.certificates import fingerprint


def init(
    folder: Annotated[Path, typer.Argument(help="Where to make it; must be empty or missing.")],
    name: Annotated[str, typer.Option(help="The federation's name, part of every topic.")] = "fedpipe",
    host: Annotated[str, typer.Option(help="The broker's name or address, as agents find it.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="The broker's port; 8883, or 1883 with --insecure.", min=1, max=65535)
    ] = None,
    managed: Annotated[bool, typer.Option(help="Whether `fedpipe up` runs the broker itself.")] = True,  # noqa: FBT002  # typer makes --managed/--no-managed of it
    insecure: Annotated[  # noqa: FBT002  # a flag
        bool, typer.Option("--insecure", help="No TLS, no keys, no signatures; on loopback only.")
    ] = False,
) -> None:
    """Make a federation's folder: its authority, all keys, and federation.toml.

    Example: fedpipe init my-federation --name hospitals --host broker.example.org
    """
    now = utc_now()
    chosen = port if port is not None else INSECURE_PORT if insecure else SECURE_PORT
    home = create_federation(folder, name=name, host=host, port=chosen, managed=managed, insecure=insecure, now=now)
    lines = [f"Made the federation {name!r} in {home.path}"]
    if insecure:
        lines += [
            "INSECURE: no TLS, no keys, no signatures. Nothing private belongs near it.",
            f"Next: fedpipe up {home.path}",
        ]
    else:
        ca = load_authority_certificate(home, load_federation(home.settings).federation, now)
        lines += [
            f"Its fingerprint, for the agents' owners to compare: {fingerprint(ca)}",
            f"Back up {home.path / 'ca'} now, and keep the copy as safe as the keys of a house.",
            *(
                []
                if managed
                else [f"Set up your broker with {home.broker / 'external.conf'} and its files in {EXTERNAL}"]
            ),
            f"Next: fedpipe up {home.path}",
            f"Then, for each request that an agent's owner sends: fedpipe enroll REQUEST --home {home.path}",
        ]
    console = progress_console()
    for line in lines:
        console.print(line, markup=False, soft_wrap=True, highlight=False)
