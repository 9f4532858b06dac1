"""`fedpipe export`: write a run's adapter, merged if asked, to a folder."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from fedpipe_coordinator.cli.options import HomeOption, find_home
from fedpipe_coordinator.errors import CliError
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.merging import ExtrasMissingError, Merger, WorkError


def export(
    run: Annotated[str, typer.Argument(help="The run's name, or its folder.")],
    to: Annotated[Path, typer.Option("--to", help="Where to write; must not exist.")],
    merge: Annotated[bool, typer.Option("--merge", help="Write the merged model instead of the adapter.")] = False,  # noqa: FBT002  # a flag on the command line
    home: HomeOption = None,
) -> None:
    """Write what a finished run learned to a folder: the PEFT adapter, or a normal checkpoint.

    Example: fedpipe export claims-20300401-093000-7f3a --to ./claims-model --merge
    """
    folder = Path(run) if (Path(run) / "summary.json").is_file() else find_home(home).run(run)
    summary_file = folder / "summary.json"
    if not (folder / "adapter").is_dir() or not summary_file.is_file():
        raise CliError(f"{folder} has no adapter: only a run that is done can be exported", ExitCode.EXPORT_FAILED)
    if to.exists():
        raise CliError(f"{to} is there already: name another folder with --to", ExitCode.USAGE)
    if not merge:
        shutil.copytree(folder / "adapter", to)
    else:
        summary = json.loads(summary_file.read_text())
        try:
            Merger().merge(folder / "adapter", summary["model"], summary["task"], to)
        except ExtrasMissingError as error:
            raise CliError(str(error), ExitCode.EXPORT_EXTRAS_MISSING) from error
        except WorkError as error:
            raise CliError(str(error), ExitCode.EXPORT_FAILED) from error
    typer.echo(str(to))
