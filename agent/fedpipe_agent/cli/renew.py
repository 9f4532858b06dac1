"""`fedpipe-agent renew`: make new keys beside those in use, and the request to have them certified."""

from datetime import UTC, datetime
from pathlib import Path

import typer

from fedpipe_agent import key_folder
from fedpipe_agent.cli.options import Config, RequestFile, say_request
from fedpipe_agent.config import load_agent_settings
from fedpipe_agent.credentials import load_credentials
from fedpipe_agent.errors import ExpiredError, unusable
from fedpipe_agent.requesting import FILE_NAME, write_request


def renew(config: Config = Path("agent.toml"), request: RequestFile = None) -> None:
    """Make new keys and a request that the present ones consent to; a running agent goes on with the present ones.

    Example: fedpipe-agent renew
    """
    settings = load_agent_settings(config)
    try:
        load_credentials(settings.state, settings.name, datetime.now(UTC))
    except ExpiredError as error:  # the federation's owner may still consent
        typer.echo(f"note: {error}", err=True)
    current, coming = settings.state / key_folder.CURRENT, settings.state / key_folder.NEXT
    present = key_folder.read_keys(current)
    try:
        made = key_folder.has_keys(coming)
        keys = key_folder.read_keys(coming) if made else key_folder.make_keys(settings.state, key_folder.NEXT)
    except OSError as error:
        raise unusable(settings.state, error) from error
    path = request or config.absolute().parent / FILE_NAME
    typer.echo(f"new keys:    {coming} (those in use stay until the bundle is joined)")
    say_request(path, write_request(path, settings.name, keys, present), "fedpipe-agent join BUNDLE")
