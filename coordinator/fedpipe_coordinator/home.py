"""A federation's folder: what lies where in it.

Owns the names only; whoever writes a file owns what is in it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Party = Literal["broker", "login", "signing"]
"""Whose key: the broker's, or the coordinator's for logging in or for signing."""
_FOLDERS: dict[Party, str] = {"broker": "broker", "login": "keys", "signing": "keys"}


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

    @property
    def agents(self) -> Path:
        """Enrolment records, one file for each agent."""
        return self.path / "agents"

    @property
    def authority_key(self) -> Path:
        """The key that issues every certificate: who has it can be anybody in this federation."""
        return self.path / "ca" / "ca.key"

    @property
    def authority_certificate(self) -> Path:
        """The federation's own certificate."""
        return self.path / "ca" / "ca.crt"

    @property
    def revocations(self) -> Path:
        """The list of revoked certificates, for the broker."""
        return self.path / "ca" / "crl.pem"

    def key(self, party: Party) -> Path:
        """A private key of this side."""
        return self.path / _FOLDERS[party] / f"{party}.key"

    def certificate(self, party: Party) -> Path:
        """The certificate of that key."""
        return self.path / _FOLDERS[party] / f"{party}.crt"

    @property
    def access(self) -> Path:
        """Who may read and write which topic, for the broker."""
        return self.broker / "acl"

    def run(self, run: str) -> Path:
        """The folder of one run."""
        return self.path / "runs" / run
