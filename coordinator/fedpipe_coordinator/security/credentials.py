"""The federation's keys and certificates as files: made once, loaded with every check, renewed before they run out.

Owns the files below `ca/`, `keys/` and the broker's pair. Lifetimes and contents are `authority.py`'s. A renewed
certificate is for the key that is there: the pair cannot come apart however a renewal ends.
"""

import hashlib
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedpipe_coordinator.home import Home, Party
from fedpipe_coordinator.security.authority import (
    AUTHORITY_DAYS,
    BROKER_DAYS,
    Authority,
    LoginKey,
    SigningKey,
    general_name,
    new_authority,
    new_login_key,
    new_signing_key,
    subject_of,
)
from fedpipe_coordinator.security.owned_files import OwnedFileError, make_folder, read_limited, write_owned
from fedpipe_wire.certificates import (
    MAX_PEM_BYTES,
    CertificateError,
    check_authority,
    check_issued,
    load_certificate,
    load_login_key,
    load_signing_key,
    private_pem,
    to_pem,
)
from fedpipe_wire.sealing import COORDINATOR, Sealer
from fedpipe_wire.tls import client_context

PARTIES: tuple[Party, ...] = ("broker", "login", "signing")
RENEWED: tuple[Party, ...] = ("broker", "login")
"""The signing certificate lasts as long as the authority: every agent has it in its bundle."""
RENEW_AT = 1 / 3
"""The part of its life that is left when a certificate is renewed."""
_DAYS: dict[Party, float] = {"broker": BROKER_DAYS, "login": BROKER_DAYS, "signing": AUTHORITY_DAYS}
_ALWAYS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a running coordinator needs of its keys.

    Attributes:
        home: Where the files of its login are read anew at each connection.
        federation: The federation's name.
        signing: Signs its messages.
    """

    home: Home
    federation: str
    signing: Ed25519PrivateKey

    def context(self) -> ssl.SSLContext:
        """A TLS context of the certificate that is there at this moment.

        Raises:
            CertificateError: if the files do not fit.
        """
        home = self.home
        return client_context(home.authority_certificate, home.certificate("login"), home.key("login"))

    def sealer(self, next_counter: Callable[[], int]) -> Sealer:
        """Seals the coordinator's messages."""
        return Sealer(COORDINATOR, next_counter, self.signing)

    @property
    def client_id(self) -> str:
        """What the broker knows this coordinator by.

        A broker throws a session out when another logs in with its identifier, whoever that is: no agent may guess it.
        """
        secret = hashlib.sha256(b"fedpipe client identifier\0" + self.signing.private_bytes_raw()).hexdigest()
        return f"fedpipe-{self.federation}-coordinator-{secret[:32]}"


def make_credentials(home: Home, federation: str, hosts: Sequence[str], now: datetime) -> Authority:
    """Make a new federation's authority and this side's keys.

    Raises:
        OwnedFileError: if there is an authority already, or the disk does not take the files.
    """
    if home.authority_key.exists():
        raise OwnedFileError(
            f"{home.authority_key} exists already, and every agent relies on it: restore the federation.toml that "
            "belongs to it, or name another folder"
        )
    authority = new_authority(federation, now)
    for folder in (home.path, home.authority_key.parent, home.key("login").parent, home.broker, home.agents):
        make_folder(folder)
    for party in PARTIES:
        make_pair(home, authority, party, hosts, now)
    write_owned(home.authority_certificate, to_pem(authority.certificate).encode())
    write_owned(home.authority_key, private_pem(authority.key))
    return authority


def make_pair(home: Home, authority: Authority, party: Party, hosts: Sequence[str], now: datetime) -> x509.Certificate:
    """Issue a certificate to the key of a party; make the key first where there is none.

    Raises:
        OwnedFileError: if a file cannot be read or written.
        CertificateError: if the key that is there is none.
    """
    if home.key(party).exists():
        key = _load_key(home, party)
    else:
        key = new_signing_key() if party == "signing" else new_login_key()
        write_owned(home.key(party), private_pem(key))
    name = authority.federation + " broker" if party == "broker" else COORDINATOR
    certificate = authority.issue(
        name, key.public_key(), party, now, _DAYS[party], hosts=hosts_of(*hosts) if party == "broker" else ()
    )
    write_owned(home.certificate(party), to_pem(certificate).encode())
    return certificate


def hosts_of(*hosts: str) -> tuple[str, ...]:
    """All names and addresses that a broker's certificate holds for; on its own machine it is always known."""
    return tuple(dict.fromkeys([*(host for host in hosts if host), *_ALWAYS]))


def load_authority(home: Home, federation: str, now: datetime) -> Authority:
    """The authority, with its key.

    Raises:
        OwnedFileError: if a file is missing or open to others.
        CertificateError: if they do not belong together, or its time is over.
    """
    certificate = load_authority_certificate(home, federation, now)
    key = load_login_key(read_limited(home.authority_key, MAX_PEM_BYTES, private=True), str(home.authority_key))
    _check_fit(key, certificate, home.authority_key, home.authority_certificate)
    return Authority(federation, key, certificate)


def load_authority_certificate(home: Home, federation: str, now: datetime) -> x509.Certificate:
    """The federation's own certificate.

    Raises:
        OwnedFileError: if there is none.
        CertificateError: if it is not this federation's, or its time is over.
    """
    path = home.authority_certificate
    if not path.exists():
        raise OwnedFileError(
            f"{path} is missing: restore the folder from a backup, or, if it was made with --insecure, make a "
            "federation with keys in another folder with `fedpipe init`"
        )
    certificate = _load_certificate(path)
    check_authority(certificate, now)
    if certificate.subject != subject_of(federation, f"{federation} authority"):
        raise CertificateError(
            f"{path} is of {certificate.subject.rfc4514_string()[:200]}, not of federation {federation!r}: put the "
            "name in federation.toml right"
        )
    return certificate


def load_party(home: Home, ca: x509.Certificate, federation: str, party: Party, now: datetime) -> x509.Certificate:
    """The certificate of a party, checked together with its key.

    Raises:
        OwnedFileError: if a file is missing or open to others.
        CertificateError: if they do not fit, or were not issued here for this, or their time is over.
    """
    key = _load_key(home, party)
    certificate = _load_certificate(home.certificate(party))
    _check_fit(key, certificate, home.key(party), home.certificate(party))
    name = f"{federation} broker" if party == "broker" else COORDINATOR
    check_issued(certificate, ca, purpose=party, federation=federation, name=name, now=now)
    return certificate


def load_credentials(home: Home, federation: str, now: datetime) -> Credentials:
    """The coordinator's keys, with every check.

    Raises:
        OwnedFileError: if a file is missing, unreadable or open to others.
        CertificateError: if something does not fit or is out of its time.
    """
    ca = load_authority_certificate(home, federation, now)
    for party in ("login", "signing"):
        load_party(home, ca, federation, party, now)
    signing = _load_key(home, "signing")
    assert isinstance(signing, Ed25519PrivateKey)
    return Credentials(home, federation, signing)


def is_due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether it is time to renew: less than a third of its life is left."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return end - now < RENEW_AT * (end - begin)


def renew_due(
    home: Home, authority: Authority, hosts: Sequence[str], now: datetime, *, every: bool = False
) -> tuple[Party, ...]:
    """Renew what is due of the broker's and the coordinator's login certificates; which ones it were.

    A pair of which the certificate is missing is made anew, and one whose names are not the broker's any more.

    Args:
        home: the federation's folder.
        authority: issues them.
        hosts: what the broker is called.
        now: UTC.
        every: renew all, due or not.

    Raises:
        OwnedFileError: if a file cannot be read or written.
        CertificateError: if one that is there is none.
    """
    renewed: list[Party] = []
    for party in RENEWED:
        path = home.certificate(party)
        stands = path.exists() and home.key(party).exists()
        if stands and not every:
            certificate = _load_certificate(path)
            named = party != "broker" or _hosts_in(certificate) >= {general_name(host) for host in hosts_of(*hosts)}
            stands = named and not is_due(certificate, now)
        if not stands or every:
            make_pair(home, authority, party, hosts, now)
            renewed.append(party)
    return tuple(renewed)


def _hosts_in(certificate: x509.Certificate) -> set[x509.GeneralName]:
    try:
        return set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (x509.ExtensionNotFound, ValueError):
        return set()


def _load_key(home: Home, party: Party) -> LoginKey | SigningKey:
    path = home.key(party)
    pem = read_limited(path, MAX_PEM_BYTES, private=True)
    return load_signing_key(pem, str(path)) if party == "signing" else load_login_key(pem, str(path))


def _load_certificate(path: Path) -> x509.Certificate:
    return load_certificate(read_limited(path, MAX_PEM_BYTES).decode(errors="replace"), str(path))


def _check_fit(key: LoginKey | SigningKey, certificate: x509.Certificate, key_path: Path, path: Path) -> None:
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise CertificateError(
            f"{path} is not the certificate of {key_path}: restore both from the same backup, or, for the broker or "
            "the coordinator's login, remove both and run `fedpipe renew`"
        )
