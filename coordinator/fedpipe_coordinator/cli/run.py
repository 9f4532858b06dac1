"""`fedpipe run`: give a job to the running coordinator, and watch it if asked."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedpipe_coordinator.cli.options import FormatOption, HomeOption, OutputFormat, find_home
from fedpipe_coordinator.config import load_job
from fedpipe_coordinator.control import ask
from fedpipe_coordinator.errors import CliError
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.watch import watch_run


def run(
    job: Annotated[Path, typer.Argument(help="The job file.")],
    override: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Override a key, as in rounds.number=10; repeatable.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show what happens until the run ends.")] = False,  # noqa: FBT002  # a flag on the command line
    out: Annotated[Path | None, typer.Option(help="The run's folder; under the federation's when left out.")] = None,
    home: HomeOption = None,
    output: FormatOption = OutputFormat.TABLE,
) -> None:
    """Start a run of a job.

    Example: fedpipe run job.toml -s rounds.number=10 --watch
    """
    place = find_home(home)
    settings = load_job(job, override or ())
    request = {"op": "run", "job": settings.model_dump(mode="json")}
    reply = next(ask(place.path, request | ({"folder": str(out.resolve())} if out else {})), {})
    if "error" in reply:
        raise CliError(reply["error"], ExitCode.RUN_FAILED)
    name = reply["run"]
    if not watch:
        typer.echo(json.dumps(reply) if output is OutputFormat.JSON else name)
        return
    summary = watch_run(place, name, folder=out)
    if output is OutputFormat.JSON:
        typer.echo(json.dumps(summary))
    else:
        typer.echo(str(out or place.run(name)))
