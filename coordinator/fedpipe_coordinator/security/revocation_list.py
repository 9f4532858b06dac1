"""The list of revoked certificates as a file: reading it, and what is on it.

What this federation once signed as revoked stays revoked, whatever becomes of the records it was made from.
"""

from collections.abc import Mapping
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from fedpipe_coordinator.home import Home
from fedpipe_coordinator.security.owned_files import OwnedFileError, read_limited

MAX_LIST_BYTES = 64 << 20


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
    return set(revoked_since(found))


def revoked_since(found: x509.CertificateRevocationList | None) -> Mapping[int, datetime]:
    """Numbers of the certificates on a list, with the time of each; nothing where there is no list."""
    return {} if found is None else {entry.serial_number: entry.revocation_date_utc for entry in found}
