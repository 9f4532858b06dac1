"""A state folder whose machine's clock says nothing: message numbers begin where the folder's own count ends."""

from pathlib import Path

from fedpipe_agent.state_folder import StateFolder


def clockless(path: Path) -> StateFolder:
    return StateFolder(path, wall_us=lambda: 0)
