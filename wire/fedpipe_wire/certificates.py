"""X.509 as FedPipe uses it: names, purposes, fingerprints, and the checks that a certificate of a federation passes.

Owns what a certificate must say to count. Issuing them is the coordinator's (`authority.py`); each side makes its own
private keys and keeps them.

Every party has two keys: one of P-256 to log in to the broker by TLS, and one of Ed25519 to sign messages. A signing
certificate is of no use for TLS, nor the other way round.
"""

import hashlib
import re
from datetime import datetime
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

MAX_PEM_BYTES = 16_384
UNREADABLE = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.AttributeNotFound,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises at what a stranger wrote into a certificate, a request or a key; often only when a part of
it is looked at."""
SIGNING_PURPOSE = ObjectIdentifier("1.3.6.1.5.5.7.3.36")
"""id-kp-documentSigning (RFC 9336): not a purpose that TLS accepts."""
_PURPOSES = {
    "login": ExtendedKeyUsageOID.CLIENT_AUTH,
    "broker": ExtendedKeyUsageOID.SERVER_AUTH,
    "signing": SIGNING_PURPOSE,
}
_GROUP = 4
_SEPARATORS = re.compile(r"[\s:.-]+")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

Purpose = Literal["login", "broker", "signing"]


class CertificateError(ValueError):
    """A certificate, key or fingerprint that does not count here; the message says why and what to do."""


class CertificateTimeError(CertificateError):
    """A certificate whose time has not come, or is over, by this machine's clock."""


def load_certificate(pem: str, what: str) -> x509.Certificate:
    """Read one certificate from PEM.

    Raises:
        CertificateError: if it is too large or is none; `what` names it in the message.
    """
    if len(pem) > MAX_PEM_BYTES:
        raise CertificateError(f"{what} has {len(pem)} characters, at most {MAX_PEM_BYTES} are read")
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except UNREADABLE as error:
        raise CertificateError(f"{what} is not a certificate in PEM: {str(error)[:200]}") from None


def to_pem(certificate: x509.Certificate) -> str:
    """The certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, for people to compare: 16 groups of 4 hexadecimal digits."""
    digest = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()
    return show_fingerprint(digest)


def show_fingerprint(digest: str) -> str:
    """64 hexadecimal digits in groups."""
    return "-".join(digest[start : start + _GROUP] for start in range(0, len(digest), _GROUP))


def read_fingerprint(text: str) -> str:
    """What a person typed, as `fingerprint` writes it; case and separators do not matter.

    Raises:
        CertificateError: if it is not 64 hexadecimal digits.
    """
    digits = _SEPARATORS.sub("", text.strip().lower())
    if _FINGERPRINT.fullmatch(digits) is None:
        raise CertificateError(
            f"{text[:100]!r} is not a fingerprint: it has 64 hexadecimal digits, in groups or not. "
            "Ask the federation's owner for it, by another way than the bundle came"
        )
    return show_fingerprint(digits)


def name_of(certificate: x509.Certificate) -> str:
    """The common name; empty where there is none or more than one."""
    return _only(certificate, NameOID.COMMON_NAME)


def federation_of(certificate: x509.Certificate) -> str:
    """The organisation, which is the federation's name; empty where there is none or more than one."""
    return _only(certificate, NameOID.ORGANIZATION_NAME)


def _only(certificate: x509.Certificate, part: x509.ObjectIdentifier) -> str:
    try:
        found = certificate.subject.get_attributes_for_oid(part)
    except UNREADABLE:
        return ""
    return str(found[0].value) if len(found) == 1 else ""


def check_authority(ca: x509.Certificate, now: datetime) -> None:
    """Check a federation's own certificate.

    Raises:
        CertificateError: if it is not one that may sign others, or its time is over.
    """
    try:
        constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
        ca.verify_directly_issued_by(ca)
    except UNREADABLE as error:
        raise CertificateError(f"the federation's certificate does not stand for itself: {error}") from None
    if not constraints.ca:
        raise CertificateError("the federation's certificate may not sign others: make the bundle anew")
    _check_time(ca, now, "the federation's certificate")


def check_issued(
    certificate: x509.Certificate, ca: x509.Certificate, *, purpose: Purpose, federation: str, name: str, now: datetime
) -> None:
    """Check that a federation issued this certificate to this name, for this purpose, and that it is in its time.

    Raises:
        CertificateError: naming the first of these that does not hold, with both values.
    """
    what = f"the {purpose} certificate of {name}"
    try:
        certificate.verify_directly_issued_by(ca)
    except UNREADABLE:
        raise CertificateError(f"{what} was not issued by this federation ({fingerprint(ca)[:19]}…)") from None
    if federation_of(certificate) != federation:
        raise CertificateError(f"{what} is of federation {federation_of(certificate)!r}, expected {federation!r}")
    if name_of(certificate) != name:
        raise CertificateError(f"{what} is for {name_of(certificate)!r}")
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except UNREADABLE as error:
        raise CertificateError(f"{what} names no purpose: {error}") from None
    if list(usage) != [_PURPOSES[purpose]]:
        raise CertificateError(f"{what} is for another purpose")
    _check_time(certificate, now, what)


def _check_time(certificate: x509.Certificate, now: datetime, what: str) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        raise CertificateTimeError(
            f"{what} is valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, and this machine's clock says "
            f"{now:%Y-%m-%d %H:%M}: set the clock, or have it renewed"
        )


def signing_key_of(certificate: x509.Certificate) -> ed25519.Ed25519PublicKey:
    """The Ed25519 key of a signing certificate.

    Raises:
        CertificateError: if its key is of another kind.
    """
    try:
        key = certificate.public_key()
    except UNREADABLE as error:
        raise CertificateError(f"the key of a signing certificate is not readable: {str(error)[:200]}") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise CertificateError("a signing certificate must hold an Ed25519 key")
    return key


def private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    """A private key in PEM (PKCS #8), not encrypted: the file's rights protect it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_signing_key(pem: bytes, what: str) -> ed25519.Ed25519PrivateKey:
    """Read an Ed25519 private key.

    Raises:
        CertificateError: if it is none; `what` names it in the message.
    """
    key = _load_private(pem, what)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise CertificateError(f"{what} is not an Ed25519 key")
    return key


def load_login_key(pem: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    """Read a P-256 private key.

    Raises:
        CertificateError: if it is none; `what` names it in the message.
    """
    key = _load_private(pem, what)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError(f"{what} is not a P-256 key")
    return key


def _load_private(pem: bytes, what: str) -> object:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except UNREADABLE as error:
        raise CertificateError(f"{what} is not a private key in PEM: {str(error)[:200]}") from None
