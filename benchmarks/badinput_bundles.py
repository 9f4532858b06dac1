"""Bundles that no agent should join by, given to `fedpipe-agent join` with the fingerprint that its owner was told.

Owns the agent that is given them, and the bundles: each is a good one but for what its name says.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.badinput_cases import Case
from benchmarks.badinput_commands import Commands, Make, clear, device, loop, pipe, text
from fedpipe_agent import key_folder
from fedpipe_agent.exit_codes import ExitCode
from fedpipe_coordinator.security.authority import Authority, new_authority
from fedpipe_wire.certificates import Purpose, fingerprint, to_pem
from fedpipe_wire.enrolment import encode, make_request
from fedpipe_wire.sealing import COORDINATOR

KIND = "bundle"
FILE = "bundle.json"
AGENT, FEDERATION = "south", "f"
ESCAPE = "\x1b]0;owned\x07\x1b[2J"
LONG_AGO = timedelta(days=500)
REFUSED = (ExitCode.FOREIGN_BUNDLE, ExitCode.CERTIFICATE_EXPIRED, ExitCode.WRONG_FINGERPRINT)


@dataclass(frozen=True, slots=True)
class Mint:
    """Issues whatever a case wants, by the federation that the agent's owner means, for the agent's keys or others.

    Attributes:
        authority: The federation's; more than a year old.
        keys: The agent's.
        now: The time of all this.
    """

    authority: Authority
    keys: key_folder.Keys
    now: datetime

    def issue(
        self,
        purpose: Purpose,
        *,
        name: str = AGENT,
        key: Any = None,
        by: Authority | None = None,
        begin: timedelta = timedelta(),
        days: float = 30,
    ) -> str:
        """A certificate in PEM."""
        public = key or (self.keys.login if purpose == "login" else self.keys.signing).public_key()
        issued = (by or self.authority).issue(name, public, purpose, self.now + begin, days)
        return to_pem(issued)

    def bundle(self, **changes: Any) -> Make:
        """A good bundle with other fields; None takes one away."""
        coordinator = self.issue("signing", name=COORDINATOR)
        good: dict[str, Any] = {
            "schema": 1,
            "kind": "fedpipe-bundle",
            "federation": FEDERATION,
            "agent": AGENT,
            "host": "127.0.0.1",
            "port": 8883,
            "authority": to_pem(self.authority.certificate),
            "login": self.issue("login"),
            "signing": self.issue("signing"),
            "coordinator": coordinator,
        }
        whole = {name: value for name, value in {**good, **changes}.items() if value is not None}
        return text(json.dumps(whole))

    def of_another(self) -> Make:
        """A whole bundle of a federation that calls itself the same."""
        other = Mint(new_authority(FEDERATION, self.now), self.keys, self.now)
        return other.bundle()

    def request(self) -> Make:
        """The agent's own request."""
        return text(encode(make_request(AGENT, self.keys.login, self.keys.signing)))


FORM, ISSUED = "not a bundle of FedPipe", "was not issued by this federation"


def _flipped(pem: str) -> str:
    at = len(pem) // 2
    return pem[:at] + ("A" if pem[at] != "A" else "B") + pem[at + 1 :]


def _files(mint: Mint) -> dict[str, tuple[Make, str]]:
    foreign = new_authority(FEDERATION, mint.now)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    curve = ec.generate_private_key(ec.SECP384R1()).public_key()
    login, signing = mint.issue("login"), mint.issue("signing")
    ended = new_authority(FEDERATION, mint.now - LONG_AGO, days=100)
    leaf = mint.issue("login", name=FEDERATION)
    return {
        "not there": (lambda _: None, "cannot be read"),
        "a folder": (lambda path: path.mkdir(), "Is a directory"),
        "a FIFO that nobody writes to": (pipe, "is no file"),
        "/dev/zero": (device, "is no file"),
        "a loop of links": (loop, "cannot be read"),
        "empty": (text(""), FORM),
        "10 MB": (text("x" * 10_000_000), "at most 131072 are read"),
        "not JSON": (text("PK\3\4"), FORM),
        "not UTF-8": (text(b'{"agent": "\xff"}'), FORM),
        "lists 60,000 deep": (text("[" * 60_000), FORM),
        "a request": (mint.request(), FORM),
        "a form of the future": (mint.bundle(schema=2), FORM),
        "no coordinator": (mint.bundle(coordinator=None), FORM),
        "no authority": (mint.bundle(authority=None), FORM),
        "a name with a terminal escape": (mint.bundle(agent=ESCAPE), FORM),
        "another agent's": (mint.bundle(agent="north"), "is for agent 'north'"),
        "another federation's name": (mint.bundle(federation="g"), "is of federation"),
        "a host with a terminal escape": (mint.bundle(host=f"a{ESCAPE}"), FORM),
        "a host of two lines": (mint.bundle(host="127.0.0.1\nallow_anonymous true"), FORM),
        "an option as a host": (mint.bundle(host="-oProxyCommand=x"), FORM),
        "port 0": (mint.bundle(port=0), FORM),
        "port 65536": (mint.bundle(port=65_536), FORM),
        "login and signing swapped": (mint.bundle(login=signing, signing=login), "for another purpose"),
        "a signing certificate for the login": (mint.bundle(login=signing), "for another purpose"),
        "a login of another authority": (mint.bundle(login=mint.issue("login", by=foreign)), ISSUED),
        "a coordinator of another authority": (
            mint.bundle(coordinator=mint.issue("signing", name=COORDINATOR, by=foreign)),
            ISSUED,
        ),
        "a whole federation of the same name": (mint.of_another(), "its fingerprint is .*, expected"),
        "an agent as coordinator": (mint.bundle(coordinator=mint.issue("signing", name="north")), "is for 'north'"),
        "a login for another name": (mint.bundle(login=mint.issue("login", name="north")), "is for 'north'"),
        "a login of other keys": (mint.bundle(login=mint.issue("login", key=other)), "made for other keys"),
        "a login key of P-384": (mint.bundle(login=mint.issue("login", key=curve)), "made for other keys"),
        "a signing key of P-256": (mint.bundle(signing=mint.issue("signing", key=other)), "made for other keys"),
        "a coordinator whose key is of P-256": (
            mint.bundle(coordinator=mint.issue("signing", name=COORDINATOR, key=other)),
            "must hold an Ed25519 key",
        ),
        "a login that ran out": (
            mint.bundle(login=mint.issue("login", begin=-timedelta(days=40), days=10)),
            "is valid from",
        ),
        "a login of next week": (mint.bundle(login=mint.issue("login", begin=timedelta(days=7))), "is valid from"),
        "an authority that ran out": (mint.bundle(authority=to_pem(ended.certificate)), "is valid from"),
        "an authority that may not sign": (mint.bundle(authority=leaf), "may not sign others|stand for itself"),
        "an authority with a changed byte": (
            mint.bundle(authority=_flipped(to_pem(mint.authority.certificate))),
            "not a certificate|does not stand for itself",
        ),
        "a login with a changed byte": (mint.bundle(login=_flipped(login)), f"not a certificate|{ISSUED}"),
        "a login of rubbish": (mint.bundle(login="x" * 1000), "not a certificate in PEM"),
        "a login of 100,000 characters": (mint.bundle(login="x" * 100_000), FORM),
        "a private key for a login": (
            mint.bundle(login="-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
            "not a certificate in PEM",
        ),
    }


def _try(commands: Commands, expected: str, make: Callable[[Path], None]) -> str:
    path = commands.folder / FILE
    make(path)
    arguments = ("fedpipe_agent", "join", FILE, "--fingerprint", expected, "--config", "agent.toml")
    try:
        return commands.refusal(arguments, REFUSED, (ExitCode.OK,))
    finally:
        clear(path)


def cases(commands: Commands) -> list[Case]:
    """All of this kind; makes an agent with keys, that has joined nothing, in the folder where the commands work."""
    (commands.folder / "agent.toml").write_text(f'name = "{AGENT}"\nfederation = "{FEDERATION}"\n')
    keys = key_folder.make_keys(commands.folder / "state", key_folder.CURRENT)
    now = datetime.now(UTC)
    mint = Mint(new_authority(FEDERATION, now - LONG_AGO), keys, now)
    expected = fingerprint(mint.authority.certificate)
    return [
        Case(KIND, name, partial(_try, commands, expected, make), says) for name, (make, says) in _files(mint).items()
    ]
