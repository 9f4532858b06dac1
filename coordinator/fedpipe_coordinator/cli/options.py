"""Options that several verbs share, and what they mean."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedpipe_coordinator.errors import CliError
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.home import Home


class OutputFormat(StrEnum):
    """How a command prints its result."""

    TABLE = "table"
    JSON = "json"


HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="The federation's folder; $FEDPIPE_HOME or the current folder when left out."),
]
FormatOption = Annotated[OutputFormat, typer.Option("--format", help="table for people, json for programs.")]


def find_home(path: Path | None) -> Home:
    """The federation's folder that a command works on.

    Raises:
        CliError: if there is no federation.toml in it.
    """
    chosen = path or Path(os.environ.get("FEDPIPE_HOME", "."))
    home = Home(chosen.resolve())
    if not home.settings.is_file():
        raise CliError(
            f"{home.path} is no federation's folder, it has no federation.toml: make one with 'fedpipe init DIR', "
            "or name it with --home",
            ExitCode.BAD_SETTINGS,
        )
    return home


def confirmed(question: str, *, yes: bool) -> None:
    """Go on only where a person says yes, at a terminal or by an option.

    Raises:
        CliError: if nobody can be asked, or the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise CliError(
            "nobody can be asked here, standard input is no terminal: give --yes once what it would ask is true: "
            f"{question}",
            ExitCode.USAGE,
        )
    if not typer.confirm(question, err=True):
        raise CliError("nothing was changed", ExitCode.USAGE)
