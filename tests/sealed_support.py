"""A federation with keys for tests: its authority, its coordinator's seals, its agents' state folders, a TLS broker."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from mosquitto_support import mosquitto_or_skip

from fedpipe_agent import credentials, key_folder
from fedpipe_agent.key_folder import CURRENT
from fedpipe_coordinator.broker.managed import find_mosquitto, free_port
from fedpipe_coordinator.security.authority import (
    AGENT_DAYS,
    Authority,
    SigningKey,
    new_authority,
    new_login_key,
    new_signing_key,
)
from fedpipe_wire.certificates import private_pem, to_pem
from fedpipe_wire.enrolment import Bundle, Request, check_request, encode, make_request
from fedpipe_wire.sealing import COORDINATOR, Sealer
from fedpipe_wire.tls import client_context

FEDERATION = "f"
HOST, PORT = "127.0.0.1", 8883


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class SealedFederation:
    """What its owner has; `issued` are the serial numbers of login certificates, by agent."""

    authority: Authority = field(default_factory=lambda: new_authority(FEDERATION, now() - timedelta(days=100)))
    signing: SigningKey = field(default_factory=new_signing_key)
    issued: dict[str, int] = field(default_factory=dict)
    counter: "count[int]" = field(default_factory=lambda: count(1))

    def bundle(
        self,
        request: Request,
        *,
        host: str = HOST,
        port: int = PORT,
        days: int = AGENT_DAYS,
        at: datetime | None = None,
    ) -> Bundle:
        """What `fedpipe enroll` makes of a request."""
        when = at or now()
        csr, signing = check_request(request)
        login = self.authority.issue(request.agent, csr.public_key(), "login", when, days)  # type: ignore[arg-type]  # P-256, as was checked
        self.issued[request.agent] = login.serial_number
        signed = self.authority.issue(request.agent, signing, "signing", when, days)
        own = self.authority.issue(COORDINATOR, self.signing.public_key(), "signing", now(), AGENT_DAYS)
        return Bundle(
            federation=FEDERATION,
            agent=request.agent,
            host=host,
            port=port,
            authority=to_pem(self.authority.certificate),
            login=to_pem(login),
            signing=to_pem(signed),
            coordinator=to_pem(own),
        )

    def enroll(self, state: Path, name: str, *, host: str = HOST, port: int = PORT, days: int = AGENT_DAYS) -> None:
        """All of init, enroll and join, for a state folder that has no keys."""
        keys = key_folder.make_keys(state, CURRENT)
        bundle = self.bundle(make_request(name, keys.login, keys.signing), host=host, port=port, days=days)
        path = state / "bundle.json"
        path.write_bytes(encode(bundle))
        credentials.join(state, name, None, path, lambda _found, _known: None, now())
        path.unlink()

    def sealer(self) -> Sealer:
        """The coordinator's."""
        return Sealer(COORDINATOR, self.counter.__next__, self.signing)


@dataclass
class TlsBroker:
    """Mosquitto that lets in only who shows a certificate of the federation. Used in a `with` block of `tls_broker`."""

    federation: SealedFederation
    folder: Path
    host: str
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    def certify(
        self, *, hosts: tuple[str, ...] = (HOST, "localhost"), by: Authority | None = None, days: int = 30
    ) -> None:
        """Give the broker a certificate; it counts from its next start on."""
        authority = by or self.federation.authority
        key = new_login_key()
        at = now() if days > 0 else now() + timedelta(days=days - 1)
        certificate = authority.issue("broker", key.public_key(), "broker", at, abs(days), hosts=hosts)
        (self.folder / "broker.key").write_bytes(private_pem(key))
        (self.folder / "broker.crt").write_text(to_pem(certificate))

    def revoke(self, *names: str) -> None:
        """Have these agents' certificates refused, at once."""
        serials = [(self.federation.issued[name], now()) for name in names]
        crl = self.federation.authority.revocations(serials, now())
        (self.folder / "crl.pem").write_bytes(crl.public_bytes(Encoding.PEM))

    def start(self) -> None:
        """Start it, and wait until its port is open."""
        (self.folder / "ca.crt").write_text(to_pem(self.federation.authority.certificate))
        (self.folder / "acl").write_text(_ACL)
        (self.folder / "acl").chmod(0o600)
        config = self.folder / "mosquitto.conf"
        config.write_text(_CONFIG.format(folder=self.folder, host=self.host, port=self.port))
        with (self.folder / "log").open("ab") as log:
            command = [str(find_mosquitto()), "-c", str(config)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 15
        while True:
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 0.2):
                return
            ended = self.process.poll() is not None
            assert not ended, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def coordinator_context(self) -> ssl.SSLContext:
        """What the coordinator connects with."""
        key = new_login_key()
        certificate = self.federation.authority.issue(COORDINATOR, key.public_key(), "login", now(), 1)
        (self.folder / "c.key").write_bytes(private_pem(key))
        (self.folder / "c.crt").write_text(to_pem(certificate))
        return client_context(self.folder / "ca.crt", self.folder / "c.crt", self.folder / "c.key")


@contextlib.contextmanager
def tls_broker(folder: Path, federation: SealedFederation, host: str = HOST) -> Iterator[TlsBroker]:
    """A running broker; skips the test without Mosquitto."""
    mosquitto_or_skip()
    folder.mkdir(mode=0o700, parents=True)
    broker = TlsBroker(federation, folder, host, free_port(host))
    broker.certify(hosts=(host, "localhost"))
    broker.revoke()
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()
        shutil.rmtree(folder, ignore_errors=True)


_ACL = f"""\
user {COORDINATOR}
topic readwrite fedpipe/{FEDERATION}/#

pattern write fedpipe/{FEDERATION}/agents/%u/up/#
pattern read fedpipe/{FEDERATION}/agents/%u/down/#
pattern read fedpipe/{FEDERATION}/broadcast/#
"""
_CONFIG = """\
user root
listener {port} {host}
allow_anonymous false
cafile {folder}/ca.crt
certfile {folder}/broker.crt
keyfile {folder}/broker.key
crlfile {folder}/crl.pem
require_certificate true
use_identity_as_username true
tls_version tlsv1.2
acl_file {folder}/acl
max_packet_size 2000000
max_queued_messages 20000
persistence false
log_dest stderr
"""
