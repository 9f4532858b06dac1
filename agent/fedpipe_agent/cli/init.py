"""`fedpipe-agent init`: make this agent's keys, and the request to be enrolled with."""

from pathlib import Path
from typing import Annotated

import typer

from fedpipe_agent import key_folder
from fedpipe_agent.cli.options import Config, RequestFile, say_request
from fedpipe_agent.config import load_agent_settings
from fedpipe_agent.durable import write_durably
from fedpipe_agent.errors import unusable
from fedpipe_agent.requesting import FILE_NAME, template, write_request
from fedpipe_profiles.settings_file import SettingsError
from fedpipe_wire.topics import check_name


def init(
    name: Annotated[str, typer.Argument(help="This agent's name in the federation.")],
    config: Config = Path("agent.toml"),
    request: RequestFile = None,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Make new keys in place of those that are there; they must be enrolled.")
    ] = False,
) -> None:
    """Make this agent's keys, a settings file where there is none, and a request for the federation's owner.

    Example: fedpipe-agent init north
    """
    check_name(name, "agent name")
    if not config.exists():
        try:
            config.parent.mkdir(parents=True, exist_ok=True)
            write_durably(config, template(name))
        except OSError as error:
            raise SettingsError(config, [f"cannot be written: {error.strerror}"]) from None
        typer.echo(f"settings:    {config}")
    settings = load_agent_settings(config)
    if settings.name != name:
        raise SettingsError(config, [f'name = "{settings.name}": expected "{name}", as this command was given'])
    current = settings.state / key_folder.CURRENT
    try:
        key_folder.recover(settings.state)
        fresh = force or not key_folder.has_keys(current)
        if fresh:
            keys = key_folder.make_keys(settings.state, key_folder.CURRENT)
            key_folder.forget_next(settings.state)
        else:
            keys = key_folder.read_keys(current)
    except OSError as error:
        raise unusable(settings.state, error) from error
    path = request or config.absolute().parent / FILE_NAME
    typer.echo(f"keys:        {current} ({'made' if fresh else 'there already'}; they stay on this machine)")
    say_request(path, write_request(path, name, keys), "fedpipe-agent join BUNDLE --fingerprint FINGERPRINT")
