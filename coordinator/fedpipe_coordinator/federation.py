"""Making a federation's folder."""

from pathlib import Path

from fedpipe_coordinator.config import load_federation
from fedpipe_coordinator.errors import CliError
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
{insecure}"""


_INSECURE = """\
# No TLS, no keys, no signatures: whoever reaches this port may read and write everything.
insecure = true
"""


def create_federation(folder: Path, *, name: str, host: str, port: int, managed: bool, insecure: bool = False) -> Home:
    """Make a folder with a federation.toml, readable by its owner only.

    Raises:
        TopicError: if the name cannot stand in a topic.
        CliError: if there is a federation.toml already, or the folder cannot be made.
        SettingsError: if a value is out of its range.
    """
    check_name(name, "federation name")
    home = Home(folder.resolve())
    if home.settings.exists():
        raise CliError(f"{home.settings} exists already: edit it, or name another folder", ExitCode.BAD_SETTINGS)
    try:
        home.path.mkdir(parents=True, exist_ok=True)
        home.path.chmod(0o700)
        text = _TEMPLATE.format(
            name=name, host=host, port=port, managed=str(managed).lower(), insecure=_INSECURE if insecure else ""
        )
        write_atomically(home.settings, text)
    except OSError as error:
        raise CliError(f"{home.path} cannot be made: {error.strerror}", ExitCode.STORE_UNUSABLE) from error
    load_federation(home.settings)
    return home
