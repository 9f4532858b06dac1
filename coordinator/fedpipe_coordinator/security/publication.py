"""What the broker is told of enrolments: the list of revoked certificates and the access list, made from the records.

Owns when either is written anew. Both follow from the records alone, so whoever comes first after a change writes them,
a command or a running coordinator, and nothing is lost where one is killed in the middle.
"""

from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from fedpipe_coordinator.home import Home
from fedpipe_coordinator.security.access import access_text
from fedpipe_coordinator.security.authority import CANARY_SERIAL, Authority
from fedpipe_coordinator.security.owned_files import OwnedFileError, read_limited, write_owned
from fedpipe_coordinator.security.roster import Register

MAX_LIST_BYTES = 64 << 20


def publish(home: Home, authority: Authority, register: Register, now: datetime) -> bool:
    """Bring both files up to date; whether one was written. Call it with the records locked.

    Raises:
        OwnedFileError: if the disk does not take them.
    """
    written = False
    before = read_revocations(home, authority.certificate)
    wanted = {CANARY_SERIAL: authority.certificate.not_valid_before_utc, **dict(register.serials())}
    if before is None or revoked_in(before) != set(wanted):
        after = None if before is None else before.last_update_utc
        found = authority.revocations(sorted(wanted.items()), now, after)
        write_owned(home.revocations, found.public_bytes(serialization.Encoding.PEM))
        written = True
    text = access_text(authority.federation, register.revoked()).encode()
    if read_or_nothing(home, text) != text:
        write_owned(home.access, text)
        written = True
    return written


def read_revocations(home: Home, ca: x509.Certificate) -> x509.CertificateRevocationList | None:
    """The list that is there; None where there is none of this federation."""
    try:
        found = x509.load_pem_x509_crl(read_limited(home.revocations, MAX_LIST_BYTES))
        valid = found.is_signature_valid(ca.public_key())  # type: ignore[arg-type]  # an authority's key is of P-256
    except (OwnedFileError, ValueError, TypeError, InvalidSignature):
        return None
    return found if valid else None


def revoked_in(found: x509.CertificateRevocationList) -> set[int]:
    """Numbers of the certificates on a list."""
    return {entry.serial_number for entry in found}


def read_or_nothing(home: Home, expected: bytes) -> bytes:
    """The access list that is there; nothing where it cannot be read."""
    try:
        return read_limited(home.access, len(expected) + (1 << 20))
    except OwnedFileError:
        return b""
