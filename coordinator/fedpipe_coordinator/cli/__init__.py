"""The command line `fedpipe`: one module per verb.

Errors that a user can cause end with one message and a documented exit code, never with a traceback.
"""

import logging
import sys

import typer

from fedpipe_coordinator.cli import (
    agents,
    audit,
    demo,
    doctor,
    enroll,
    export,
    init,
    plan,
    renew,
    revoke,
    run,
    status,
    stop,
    up,
)
from fedpipe_coordinator.errors import exit_code_of
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_profiles.plain_text import plain_lines

app = typer.Typer(
    name="fedpipe",
    help="Fine-tune one language model across silos that may not share their data and whose machines differ.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command("init")(init.init)
app.command("enroll")(enroll.enroll)
app.command("revoke")(revoke.revoke)
app.command("renew")(renew.renew)
app.command("doctor")(doctor.doctor)
app.command("up")(up.up)
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("status")(status.status)
app.command("agents")(agents.agents)
app.command("stop")(stop.stop)
app.command("export")(export.export)
app.command("demo")(demo.demo)
app.add_typer(audit.app, name="audit")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # the last border before the user: known errors speak for themselves
        code = exit_code_of(error)
        if code is None:
            logging.getLogger("fedpipe").exception("unexpected error")
            sys.exit(ExitCode.INTERNAL_ERROR)
        typer.secho(f"fedpipe: {plain_lines(str(error))}", err=True, fg=typer.colors.RED)
        typer.secho(f"  (exit code {int(code)}: {code.help})", err=True, dim=True)
        sys.exit(code)
