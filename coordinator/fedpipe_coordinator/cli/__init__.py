"""The command line `fedpipe`: one module per verb.

Errors that a user can cause end with one message and a documented exit code, never with a traceback.
"""

import logging
import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from fedpipe_coordinator.errors import exit_code_of
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_profiles.plain_text import plain_lines

VERBS = (
    "init",
    "enroll",
    "revoke",
    "renew",
    "doctor",
    "up",
    "run",
    "plan",
    "status",
    "agents",
    "stop",
    "export",
    "demo",
    "audit",
)
"""In the order of the help; each is a module with a function of its name, or with an `app` of further verbs."""


def make_app(verbs: Sequence[str] = VERBS) -> typer.Typer:
    """The command line with these verbs; only their modules are loaded."""
    app = typer.Typer(
        name="fedpipe",
        help="Fine-tune one language model across silos that may not share their data and whose machines differ.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_nothing)
    for verb in verbs:
        module = import_module(f"{__name__}.{verb}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb)
        else:
            app.command(verb)(getattr(module, verb))
    return app


def _nothing() -> None:
    # A command line with a callback has verbs even where it is made with one only.
    pass


def __getattr__(name: str) -> typer.Typer:
    """The whole command line, as `app`, made when it is asked for."""
    if name == "app":
        return make_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        first = sys.argv[1] if len(sys.argv) > 1 else ""
        make_app((first,) if first in VERBS else VERBS)(standalone_mode=True)
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
