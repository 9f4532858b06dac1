"""Following a run of a coordinator that is another process, in the terminal."""

import json
from pathlib import Path
from typing import Any

from fedpipe_coordinator.consoles import progress_console
from fedpipe_coordinator.control import ask
from fedpipe_coordinator.errors import CliError
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.view import RunView


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
        few = summary.get("failure") == "not-enough-agents"
        code = ExitCode.NOT_ENOUGH_AGENTS if few else ExitCode.RUN_FAILED
        raise CliError(f"run {name} {summary['phase']}: {summary['note']}", code)
    return summary
