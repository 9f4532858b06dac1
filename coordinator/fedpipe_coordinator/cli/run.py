"""`fedpipe run`: give a job to the running coordinator, and watch it if asked."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpipe_coordinator.cli.errors import CliError
from fedpipe_coordinator.cli.options import FormatOption, HomeOption, OutputFormat, find_home, progress_console
from fedpipe_coordinator.config import load_job
from fedpipe_coordinator.control import ask
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.view import RunView


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


def watch_run(home: Home, name: str, folder: Path | None = None) -> dict[str, Any]:
    """Show a run until it ends and return its summary.

    Raises:
        CliError: if the run fails or is stopped, or the coordinator goes away.
    """
    view = RunView(progress_console())
    for event in ask(home.path, {"op": "watch", "run": name}, timeout_s=None):
        if "error" in event:
            raise CliError(event["error"], ExitCode.RUN_FAILED)
        view.show(event)
    path = (folder or home.run(name)) / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if summary.get("phase") not in ("done", "failed", "stopped"):
        raise CliError(
            f"the coordinator went away while run {name} was open: start it again with 'fedpipe up {home.path}', "
            "it takes the run up by itself; 'fedpipe status' shows how far it is",
            ExitCode.COORDINATOR_NOT_RUNNING,
        )
    if summary["phase"] != "done":
        raise CliError(f"run {name} {summary['phase']}: {summary['note']}", ExitCode.RUN_FAILED)
    return summary
