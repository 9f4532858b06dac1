"""The federation's authority: its own certificate, and those that it issues. Keys and lifetimes are decided here.

Pure but for the random numbers of keys and serials; `credentials.py` keeps the files. All times are UTC.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedpipe_wire.certificates import SIGNING_PURPOSE, Purpose

AUTHORITY_DAYS = 3650
BROKER_DAYS = 397
AGENT_DAYS = 365
CANARY_SERIAL = 1
"""Never given to anybody and always revoked: a certificate of this number tells whether a broker heeds the list."""
BACKDATED = timedelta(hours=1)
"""Clocks of machines that are set by hand differ."""
_PURPOSES: dict[Purpose, x509.ObjectIdentifier] = {
    "login": ExtendedKeyUsageOID.CLIENT_AUTH,
    "broker": ExtendedKeyUsageOID.SERVER_AUTH,
    "signing": SIGNING_PURPOSE,
}
LoginKey = ec.EllipticCurvePrivateKey
SigningKey = ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


def new_login_key() -> LoginKey:
    """A key of P-256, for TLS."""
    return ec.generate_private_key(ec.SECP256R1())


def new_signing_key() -> SigningKey:
    """A key of Ed25519, for messages."""
    return ed25519.Ed25519PrivateKey.generate()


@dataclass(frozen=True, slots=True)
class Authority:
    """A federation's own certificate with its key; makes every other certificate."""

    federation: str
    key: LoginKey
    certificate: x509.Certificate

    def issue(
        self,
        name: str,
        key: PublicKey,
        purpose: Purpose,
        now: datetime,
        days: float,
        *,
        hosts: Sequence[str] = (),
        serial: int | None = None,
    ) -> x509.Certificate:
        """A certificate for a name and a public key.

        Args:
            name: the agent's name, `COORDINATOR`, or what the broker is called.
            key: whose holder it names.
            purpose: the one thing that it is good for.
            now: when it begins, but for `BACKDATED`.
            days: how long it lasts; never longer than the authority itself.
            hosts: names and addresses of a broker.
            serial: its number; left out, a random one.
        """
        end = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject_of(self.federation, name))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number() if serial is None else serial)
            .not_valid_before(max(now - BACKDATED, self.certificate.not_valid_before_utc))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_PURPOSES[purpose]]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(_issuer(self.key), critical=False)
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([general_name(host) for host in hosts]), critical=False
            )
        return builder.sign(self.key, hashes.SHA256())

    def revocations(
        self, serials: Iterable[tuple[int, datetime]], now: datetime, after: datetime | None = None
    ) -> x509.CertificateRevocationList:
        """The list of revoked certificates, by serial number and time.

        It lasts as long as the authority: whoever revokes hands the new list to the broker at once, and a list that ran
        out would lock everybody out.

        Args:
            serials: what is revoked, and since when.
            now: its date, but for `BACKDATED`.
            after: the date of the list before it. OpenSSL keeps both when a broker reloads, and goes by the later one;
                dates count whole seconds.
        """
        dated = max(now - BACKDATED, self.certificate.not_valid_before_utc)
        if after is not None:
            dated = max(dated, after + timedelta(seconds=1))
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(dated)
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(_issuer(self.key), critical=False)
            .add_extension(x509.CRLNumber(int(dated.timestamp())), critical=False)
        )
        for serial, at in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, hashes.SHA256())


def new_authority(federation: str, now: datetime, days: int = AUTHORITY_DAYS) -> Authority:
    """The authority of a new federation, with a key of its own."""
    key = new_login_key()
    name = subject_of(federation, f"{federation} authority")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(federation, key, certificate)


def subject_of(federation: str, name: str) -> x509.Name:
    """Whom a certificate of a federation names; the authority itself is named `<federation> authority`."""
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def _issuer(key: LoginKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def general_name(host: str) -> x509.GeneralName:
    """A broker's name or address as it stands in its certificate."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
