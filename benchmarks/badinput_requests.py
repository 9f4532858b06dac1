"""Requests to be enrolled that nobody should grant, given to `fedpipe enroll`, in a federation with some agents.

Owns the federation's folder that the requests come to, and the requests.
"""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from benchmarks.badinput_cases import Case
from benchmarks.badinput_commands import Commands, Make, clear, device, loop, pipe, text
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.federation import create_federation, open_office
from fedpipe_coordinator.federation_config import load_federation
from fedpipe_coordinator.security.enrolling import enrol, revoke
from fedpipe_wire.certificates import to_pem
from fedpipe_wire.enrolment import Request, encode, make_request

KIND = "request"
FILE = "request.json"
FEDERATION = "f"
ESCAPE = "\x1b]0;owned\x07\x1b[2J"
CsrKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Keys:
    """An agent's two keys."""

    login: ec.EllipticCurvePrivateKey
    signing: ed25519.Ed25519PrivateKey

    @classmethod
    def new(cls) -> "Keys":
        """Fresh ones."""
        return cls(ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate())


@dataclass(frozen=True, slots=True)
class Desk:
    """A federation's folder where `north` is enrolled and `gone` is revoked, with their keys, and its certificate."""

    home: Path
    north: Keys
    gone: Keys
    certificate: str


def open_desk(folder: Path) -> Desk:
    """Make the folder."""
    now = datetime.now(UTC)
    home = create_federation(folder / "home", name=FEDERATION, host="127.0.0.1", port=18883, managed=True, now=now)
    office = open_office(home, load_federation(home.settings), now)
    north, gone = Keys.new(), Keys.new()
    for name, keys in (("north", north), ("gone", gone)):
        request = make_request(name, keys.login, keys.signing)
        enrol(request, office.files, office.authority, office.door(now), now, days=30, replace=False)
    revoke("gone", office.files, now, "its machine was stolen")
    office.publish(now)
    return Desk(home.path, north, gone, to_pem(office.authority.certificate))


def csr(key: CsrKey, *names: str) -> str:
    """A PKCS #10 request in PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    built = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm)
    return built.public_bytes(serialization.Encoding.PEM).decode()


def proven(fields: Mapping[str, Any], key: ed25519.Ed25519PrivateKey) -> str:
    """The proof that a maker of such a request would give."""
    parts = [fields["agent"], fields["login_request"], fields["signing_key"], fields["renews"]]
    signed = b"fedpipe enrolment request 1\0" + json.dumps(parts).encode()
    return base64.b64encode(key.sign(signed)).decode()


def _good(keys: Keys, name: str = "south") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode(make_request(name, keys.login, keys.signing)))
    return found


def _changed(**changes: Any) -> Make:
    """A good request with other fields, its proof as it was; None takes a field away."""

    def make(path: Path) -> None:
        fields = {**_good(Keys.new()), **changes}
        path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))

    return make


def _signed(**changes: Any) -> Make:
    """A request with other fields whose proof holds."""

    def make(path: Path) -> None:
        keys = Keys.new()
        fields = {**_good(keys), **changes}
        path.write_text(json.dumps(fields | {"proof": proven(fields, keys.signing)}))

    return make


def _of(keys: Keys, name: str) -> Make:
    return lambda path: _put(path, make_request(name, keys.login, keys.signing))


def _put(path: Path, request: Request) -> None:
    path.write_bytes(encode(request))


def _half_stolen(stolen: Keys, *, login: bool) -> Make:
    """New keys, but for one of another agent's."""
    fresh = Keys.new()
    keys = Keys(stolen.login, fresh.signing) if login else Keys(fresh.login, stolen.signing)
    return _of(keys, "south")


def _flipped(path: Path) -> None:
    fields = _good(Keys.new())
    pem = fields["login_request"].splitlines()
    line = pem[2]
    pem[2] = ("B" if line[5] != "B" else "C").join((line[:5], line[6:]))
    path.write_text(json.dumps(fields | {"login_request": "\n".join(pem) + "\n"}))


def _forged_renewal(desk: Desk) -> Make:
    """Asks for north's renewal, with a consent that north did not give."""
    mine = Keys.new()
    claimed = make_request("north", mine.login, mine.signing, desk.north.signing)
    fields = json.loads(encode(claimed))
    consent = base64.b64encode(mine.signing.sign(b"north agrees")).decode()
    return text(json.dumps(fields | {"consent": consent}))


FORM, UNREADABLE = "not a request of FedPipe", "PKCS #10"


def _files(desk: Desk) -> dict[str, tuple[Make, str]]:
    curve = ec.generate_private_key(ec.SECP384R1())
    large = rsa.generate_private_key(65537, 2048)
    return {
        "not there": (lambda _: None, "cannot be read"),
        "a folder": (lambda path: path.mkdir(), "is not a file|cannot be read"),
        "a FIFO that nobody writes to": (pipe, "is not a file"),
        "/dev/zero": (device, "is not a file"),
        "a loop of links": (loop, "cannot be read"),
        "empty": (text(""), FORM),
        "10 MB": (text("x" * 10_000_000), "more than 131072 bytes"),
        "not JSON": (text("agent = 'south'"), FORM),
        "not UTF-8": (text(b'{"agent": "\xff"}'), FORM),
        "a list": (text("[]"), FORM),
        "lists 60,000 deep": (text("[" * 60_000), FORM),
        "another kind of file": (_changed(kind="fedpipe-bundle"), FORM),
        "a form of the future": (_changed(schema=2), FORM),
        "no proof": (_changed(proof=None), FORM),
        "no keys": (_changed(login_request=None, signing_key=None), FORM),
        "a name with a terminal escape": (_signed(agent=ESCAPE), FORM),
        "a path as a name": (_signed(agent="../../etc"), FORM),
        "a wildcard as a name": (_signed(agent="+"), FORM),
        "the coordinator's name": (_signed(agent="_coordinator"), FORM),
        "a name of 10,000 characters": (_signed(agent="a" * 10_000), FORM),
        "a name of half a character": (text('{"agent": "\\ud800"}'), FORM),
        "a key of 31 bytes": (_changed(signing_key="ab" * 31), FORM),
        "a key of zeros": (_changed(signing_key="00" * 32), "not signed by its own signing key"),
        "a proof of zeros": (_changed(proof=base64.b64encode(bytes(64)).decode()), "not signed by its own signing key"),
        "another name than was proven": (_changed(agent="west"), "the login request is for"),
        "a login request of 100,000 characters": (_signed(login_request="x" * 100_000), FORM),
        "a login request of rubbish": (_signed(login_request="x" * 1000), UNREADABLE),
        "a certificate for a login request": (_signed(login_request=desk.certificate), UNREADABLE),
        "one byte changed": (_flipped, "signed by its own|PKCS #10|not of P-256"),
        "a login key of P-384": (_signed(login_request=csr(curve, "south")), "not of P-256"),
        "a login key of RSA": (_signed(login_request=csr(large, "south")), "not of P-256"),
        "a login key of Ed25519": (_signed(login_request=csr(Keys.new().signing, "south")), "not of P-256"),
        "a login request for another": (_signed(login_request=csr(Keys.new().login, "north")), "is for"),
        "a login request for nobody": (_signed(login_request=csr(Keys.new().login)), "is for"),
        "a login request for two": (_signed(login_request=csr(Keys.new().login, "south", "north")), "is for"),
        "north's login key": (_half_stolen(desk.north, login=True), "uses a key of agent north"),
        "north's signing key": (_half_stolen(desk.north, login=False), "uses a key of agent north"),
        "both of north's keys": (_of(desk.north, "south"), "uses a key of agent north"),
        "north's name": (_of(Keys.new(), "north"), "other keys without that agent's consent"),
        "north's renewal, with a forged consent": (_forged_renewal(desk), "other keys without that agent's consent"),
        "the renewal of nobody": (
            lambda path: _put(path, make_request("south", Keys.new().login, Keys.new().signing, Keys.new().signing)),
            "was never enrolled here",
        ),
        "the keys of one that was revoked": (_of(desk.gone, "gone"), "was revoked on"),
        "the name of one that was revoked": (_of(Keys.new(), "gone"), "was revoked on"),
    }


def _try(commands: Commands, make: Callable[[Path], None]) -> str:
    path = commands.folder / FILE
    make(path)
    arguments = ("fedpipe_coordinator", "enroll", FILE, "--home", "home", "--yes", "--out", "bundle.json")
    try:
        return commands.refusal(arguments, (ExitCode.ENROLMENT_REFUSED, ExitCode.CREDENTIALS_UNUSABLE), (ExitCode.OK,))
    finally:
        clear(path)


def cases(commands: Commands) -> list[Case]:
    """All of this kind; makes a federation in the folder where the commands work."""
    desk = open_desk(commands.folder)
    return [Case(KIND, name, partial(_try, commands, make), says) for name, (make, says) in _files(desk).items()]
