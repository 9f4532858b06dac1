"""TLS to the broker: client contexts that show a certificate and trust one federation's authority alone.

Owns the versions and checks of TLS, and what a person is told when they fail; which files hold keys and certificates is
their owner's matter.
"""

import re
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedpipe_wire.certificates import CertificateError

Host = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9:][A-Za-z0-9.:_%-]*$")]
"""A name or an address, as it may stand in a log, a certificate and a broker's settings."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
"""Where a broker without TLS may listen: nobody else reaches it."""


class _ClosedOnFailure(ssl.SSLSocket):
    """Paho forgets a socket whose handshake fails, and would leave it open."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 -- the signature of `ssl`
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def client_context(authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """A context for one connection: TLS 1.2 or newer, both sides with certificates of this federation.

    Raises:
        CertificateError: if a file cannot be read, or key and certificate do not fit together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _ClosedOnFailure
    try:
        context.load_verify_locations(authority)
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise CertificateError(
            f"cannot log in with {certificate} and {key}, trusting {authority}: {error.strerror or error}"
        ) from None
    return context


_EXPIRED, _EARLY = 10, 9
_OTHER_NAME = frozenset({62, 64})
"""OpenSSL's X509_V_ERR of a certificate's time, and of a name or address that is not in it."""
_ALERT = re.compile(r"ALERT_([A-Z_]+)\]")
_REFUSED = "the broker refuses this machine's certificate"
_ALERTS = {
    "CERTIFICATE_REVOKED": f"{_REFUSED}: it was revoked. Ask the federation's owner; to come back, this machine needs "
    "new keys and must be enrolled with them",
    "CERTIFICATE_EXPIRED": f"{_REFUSED}: its time is over, or one of the two clocks is wrong. Have it renewed",
    "UNKNOWN_CA": f"{_REFUSED}: it is not of the broker's federation. Check the address, or enrol this machine there",
    "CERTIFICATE_REQUIRED": "the broker asks for a certificate, and this machine showed none: join the federation",
}
SILENT = (
    "before it answered the login: a broker does so that does not accept this machine's certificate (revoked, or not "
    "enrolled there), or that is not one of MQTT over TLS"
)
"""What a connection that ended without an answer may mean."""


def told_tls(error: Exception | str, host: str, now: datetime | None = None) -> str:
    """A failure of TLS in words: what happened, and what to do.

    Args:
        error: as `ssl` raised or worded it.
        host: what the broker was called.
        now: this machine's time; as its clock says when left out.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _told_check(error, host, now or datetime.now(UTC))
    alert = _ALERT.search(str(error))
    if alert is not None:
        found = _ALERTS.get(alert[1])
        return found or f"{_REFUSED} ({alert[1].lower().replace('_', ' ')}): have it renewed, or ask the broker's owner"
    if isinstance(error, ConnectionResetError):
        return "it ended the connection before TLS began: check host and port, it may speak no TLS"
    if isinstance(error, ssl.SSLError):
        return f"no TLS can be spoken with it ({error.reason or error}): check host and port"
    return str(error)


def _told_check(error: ssl.SSLCertVerificationError, host: str, now: datetime) -> str:
    if error.verify_code in (_EXPIRED, _EARLY):
        state = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
        return (
            f"its certificate {state}, and this machine's clock says {now:%Y-%m-%d %H:%M} UTC: set the clock, or have "
            "the broker's certificate renewed"
        )
    if error.verify_code in _OTHER_NAME:
        return (
            f"its certificate is not for the name {host!r}: connect by the name that it was made for, or have it made "
            "for this one too"
        )
    return (
        f"its certificate is not of this federation ({error.verify_message}): another broker answers at this address, "
        "or something between breaks TLS open. Nothing was sent to it"
    )


def check_insecure(host: str, *, insecure: bool) -> None:
    """Check that a broker without TLS is one that no other machine reaches.

    Raises:
        ValueError: if it is not on loopback.
    """
    if insecure and host not in LOOPBACK:
        raise ValueError(
            f"is for a broker on {', '.join(sorted(LOOPBACK))} only, not on {host}: enrol the agents instead"
        )
