"""`fedpipe-agent join`: take a bundle, and with it the federation that this agent trusts from then on."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fedpipe_agent.address import address_of
from fedpipe_agent.cli.options import Config
from fedpipe_agent.config import load_agent_settings
from fedpipe_agent.credentials import join as join_federation
from fedpipe_agent.errors import WrongFingerprintError
from fedpipe_wire.certificates import CertificateError, fingerprint, read_fingerprint


def join(
    bundle: Annotated[Path, typer.Argument(help="What the federation's owner has made from this agent's request.")],
    expected: Annotated[
        str | None,
        typer.Option(
            "--fingerprint", help="The federation's, as its owner says it; asked for at a terminal when left out."
        ),
    ] = None,
    config: Config = Path("agent.toml"),
) -> None:
    """Join a federation, or take renewed certificates of the one that was joined.

    Example: fedpipe-agent join bundle.json --fingerprint 0a1b-2c3d-...
    """
    settings = load_agent_settings(config)

    def meant(found: str, known: bool) -> None:  # noqa: FBT001 -- the signature of a callback
        if expected is not None:
            _compare(found, expected)
        elif not known:
            _compare(found, _ask(found))

    membership = join_federation(settings.state, settings.name, settings.federation, bundle, meant, datetime.now(UTC))
    found = fingerprint(membership.authority)
    address = address_of(settings, membership.bundle)
    typer.echo(f"agent:       {settings.name}")
    typer.echo(f"federation:  {address.federation}")
    typer.echo(f"fingerprint: {found}")
    typer.echo(f"broker:      {address.host}:{address.port}, by TLS; the only address that this agent connects to")


def _ask(found: str) -> str:
    if not sys.stdin.isatty():
        raise WrongFingerprintError(
            "the bundle may be anybody's: give the federation's fingerprint, as its owner says it, with --fingerprint"
        )
    typer.echo(f"The bundle's federation has the fingerprint\n  {found}", err=True)
    typer.echo("Ask its owner for it by another way than the bundle came: by telephone, or face to face.", err=True)
    answer = str(typer.prompt("Are all 64 digits the same? yes, or the fingerprint that you were told", err=True))
    return found if answer.strip().lower() == "yes" else answer


def _compare(found: str, expected: str) -> None:
    try:
        wanted = read_fingerprint(expected)
    except CertificateError as error:
        raise WrongFingerprintError(str(error)) from None
    if found != wanted:
        raise WrongFingerprintError(
            f"the bundle is of another federation: its fingerprint is {found}, expected {wanted}. "
            "Ask the federation's owner for both again, and do not use this bundle"
        )
