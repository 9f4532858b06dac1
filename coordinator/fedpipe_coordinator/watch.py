"""Following a run of a coordinator that is another process, in the terminal."""

import json
from pathlib import Path
from typing import Any

from fedpipe_coordinator.consoles import progress_console
from fedpipe_coordinator.control import ControlError, ask
from fedpipe_coordinator.errors import CliError
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.view import RunView

OVER = ("done", "failed", "stopped")


def watch_run(home: Home, name: str, folder: Path | None = None) -> dict[str, Any]:
    """Show a run until it ends and return its summary.

    Raises:
        CliError: if the run fails or is stopped, its folder does not take its records, or the coordinator goes away.
    """
    view = RunView(progress_console())
    for event in ask(home.path, {"op": "watch", "run": name}, timeout_s=None):
        if "error" in event:
            raise CliError(event["error"], ExitCode.RUN_FAILED)
        view.show(event)
    path = (folder or home.run(name)) / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if summary.get("phase") not in OVER:
        raise _untold(home, name)
    if summary["phase"] != "done":
        raise _ended_early(name, summary)
    return summary


def _ended_early(name: str, told: dict[str, Any]) -> CliError:
    few = told.get("failure") == "not-enough-agents"
    code = ExitCode.NOT_ENOUGH_AGENTS if few else ExitCode.RUN_FAILED
    return CliError(f"run {name} {told['phase']}: {told['note']}", code)


def _untold(home: Home, name: str) -> CliError:
    """Why the run's folder does not say how it ended: its folder does not take it, or the coordinator is gone."""
    try:
        runs = next(ask(home.path, {"op": "status"}), {}).get("runs", ())
    except ControlError:
        runs = ()
    told = next((run for run in runs if run["run"] == name and run["phase"] in OVER), None)
    if told is None:
        return CliError(
            f"the coordinator went away while run {name} was open: start it again with 'fedpipe up {home.path}', "
            "it takes the run up by itself; 'fedpipe status' shows how far it is",
            ExitCode.COORDINATOR_NOT_RUNNING,
        )
    if told["phase"] != "done":
        return _ended_early(name, told)
    return CliError(
        f"run {name} is done, and its records are not written yet: {told['note']}. The coordinator goes on trying; "
        "'fedpipe status' shows when they are",
        ExitCode.STORE_UNUSABLE,
    )
