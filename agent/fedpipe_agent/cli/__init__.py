"""The command line `fedpipe-agent`: one module per verb.

Errors that a user can cause end with one message and a documented exit code, never with a traceback.
"""

import logging
import sys

import typer

from fedpipe_agent.cli import audit, fingerprint, init, join, probe, renew, run
from fedpipe_agent.errors import (
    AuditError,
    ExpiredError,
    ForeignBundleError,
    InUseError,
    KeyFilesError,
    NotJoinedError,
    StateFolderError,
    TurnedAwayError,
    WrongFingerprintError,
)
from fedpipe_agent.exit_codes import ExitCode
from fedpipe_agent.preflight import DatasetMissingError, LibrariesMissingError, ModelMissingError
from fedpipe_agent.probe import ProbeError
from fedpipe_agent.train.errors import ModelError
from fedpipe_profiles.plain_text import plain_lines
from fedpipe_profiles.settings_file import SettingsError
from fedpipe_wire.topics import TopicError
from fedpipe_wire.transport import TransportError

app = typer.Typer(
    name="fedpipe-agent",
    help="The agent of one silo: measures this machine, trains on its private data, sends what it learned.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("init")(init.init)
app.command("join")(join.join)
app.command("renew")(renew.renew)
app.command("run")(run.run)
app.command("probe")(probe.probe)
app.command("fingerprint")(fingerprint.fingerprint)
app.add_typer(audit.app, name="audit")

_CODES: tuple[tuple[type[Exception], ExitCode], ...] = (
    (SettingsError, ExitCode.BAD_AGENT_FILE),
    (TopicError, ExitCode.BAD_AGENT_FILE),
    (TransportError, ExitCode.BROKER_UNREACHABLE),
    (InUseError, ExitCode.IDENTITY_IN_USE),
    (TurnedAwayError, ExitCode.IDENTITY_IN_USE),
    (StateFolderError, ExitCode.STATE_FOLDER_UNUSABLE),
    (DatasetMissingError, ExitCode.DATASET_UNUSABLE),
    (ModelMissingError, ExitCode.MODEL_UNUSABLE),
    (ModelError, ExitCode.MODEL_UNUSABLE),
    (LibrariesMissingError, ExitCode.TRAINER_CANNOT_START),
    (ProbeError, ExitCode.INTERNAL_ERROR),
    (NotJoinedError, ExitCode.NOT_JOINED),
    (WrongFingerprintError, ExitCode.WRONG_FINGERPRINT),
    (ExpiredError, ExitCode.CERTIFICATE_EXPIRED),
    (KeyFilesError, ExitCode.KEYS_UNUSABLE),
    (ForeignBundleError, ExitCode.FOREIGN_BUNDLE),
    (AuditError, ExitCode.AUDIT_BROKEN),
)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # the last border before the user: known errors speak for themselves
        code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
        if code is None:
            logging.getLogger("fedpipe").exception("unexpected error")
            sys.exit(ExitCode.INTERNAL_ERROR)
        typer.secho(f"fedpipe-agent: {plain_lines(str(error))}", err=True, fg=typer.colors.RED)
        typer.secho(f"  (exit code {int(code)}: {code.help})", err=True, dim=True)
        sys.exit(code)
