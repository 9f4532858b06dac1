"""Federations with keys for tests: made in a folder, with agents whose keys the test holds.

Owns making them; nothing here starts a process.
"""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fedpipe_coordinator.federation import Office, create_federation, open_office
from fedpipe_coordinator.federation_config import load_federation
from fedpipe_coordinator.security.authority import new_login_key, new_signing_key
from fedpipe_coordinator.security.enrolling import Enrolled, enrol
from fedpipe_wire.certificates import private_pem
from fedpipe_wire.enrolment import Request, encode, make_request
from fedpipe_wire.tls import client_context

NOW = datetime(2030, 4, 1, 9, 30, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Keys:
    """An agent's two keys."""

    login: ec.EllipticCurvePrivateKey
    signing: ed25519.Ed25519PrivateKey

    def request(self, name: str, renewed: "Keys | None" = None) -> Request:
        """What the agent asks."""
        return make_request(name, self.login, self.signing, None if renewed is None else renewed.signing)


def new_keys() -> Keys:
    """Keys that nobody had before."""
    return Keys(new_login_key(), new_signing_key())


def new_office(folder: Path, now: datetime = NOW, *, name: str = "tests", port: int = 8883) -> Office:
    """A federation in `folder`, opened by its owner."""
    home = create_federation(folder, name=name, host="127.0.0.1", port=port, managed=True, now=now)
    return open_office(home, load_federation(home.settings), now)


def let_in(
    office: Office,
    name: str,
    keys: Keys,
    now: datetime = NOW,
    *,
    days: float = 365,
    replace: bool = False,
    renewed: Keys | None = None,
) -> Enrolled:
    """What `fedpipe enroll` does once its question was answered."""
    request = keys.request(name, renewed)
    done = enrol(request, office.files, office.authority, office.door(now), now, days=days, replace=replace)
    office.publish(now)
    return done


def write_request(path: Path, name: str, keys: Keys) -> Path:
    """The file that an agent's owner sends."""
    path.write_bytes(encode(keys.request(name)))
    return path


@dataclass(frozen=True, slots=True)
class Agent:
    """An enrolled agent's files."""

    folder: Path

    def context(self) -> ssl.SSLContext:
        """What it logs in with."""
        return client_context(self.folder / "ca.crt", self.folder / "login.crt", self.folder / "login.key")


def write_agent(folder: Path, keys: Keys, done: Enrolled) -> Agent:
    """Lay out what an agent keeps of its bundle."""
    folder.mkdir(exist_ok=True)
    (folder / "ca.crt").write_text(done.bundle.authority)
    (folder / "login.crt").write_text(done.bundle.login)
    (folder / "login.key").write_bytes(private_pem(keys.login))
    return Agent(folder)


def later(days: float) -> datetime:
    """Some days after `NOW`."""
    return NOW + timedelta(days=days)
