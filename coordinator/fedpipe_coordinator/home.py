"""A federation's folder: what lies where in it.

Owns the names only; whoever writes a file owns what is in it.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """The folder that `fedpipe init` makes and `fedpipe up` works in."""

    path: Path

    @property
    def settings(self) -> Path:
        """federation.toml."""
        return self.path / "federation.toml"

    @property
    def store(self) -> Path:
        """The coordinator's SQLite file."""
        return self.path / "coordinator.db"

    @property
    def blobs(self) -> Path:
        """Global adapters and updates, named by content."""
        return self.path / "blobs"

    @property
    def broker(self) -> Path:
        """What the managed broker needs: configuration, database, log."""
        return self.path / "broker"

    @property
    def log(self) -> Path:
        """The coordinator's log."""
        return self.path / "coordinator.log"

    def run(self, run: str) -> Path:
        """The folder of one run."""
        return self.path / "runs" / run
