"""TLS to the broker: client contexts that show a certificate and trust one federation's authority alone.

Owns the versions and checks of TLS, and what a person is told when they fail; which files hold keys and certificates is
their owner's matter.
"""

import errno
import re
import selectors
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


class _Judged(ssl.SSLSocket):
    """A socket whose handshake is over when the other side has judged this side's certificate.

    With TLS 1.3 that comes after the handshake: who sends at once is cut off, and mostly loses the alert that says why.
    Whoever is let in is given session tickets then. A handshake that fails closes the socket, which paho would forget.
    """

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 -- the signature of `ssl`
        try:
            super().do_handshake(block)
            if self.version() == "TLSv1.3":
                self._await_verdict()
        except BaseException:
            self.close()
            raise

    def _await_verdict(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            if not selector.select(VERDICT_S):
                return
        timeout = self.gettimeout()
        self.settimeout(0)
        try:
            said = self.recv(1)
        except ssl.SSLWantReadError:
            self.settimeout(timeout)
        else:
            raise ConnectionResetError(errno.ECONNRESET, "it spoke before it was asked" if said else "it hung up")


def client_context(authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """A context for one connection: TLS 1.2 or newer, both sides with certificates of this federation.

    Raises:
        CertificateError: if a file cannot be read, or key and certificate do not fit together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _Judged
    try:
        context.load_verify_locations(authority)
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise CertificateError(
            f"cannot log in with {certificate} and {key}, trusting {authority}: {error.strerror or error}"
        ) from None
    return context


VERDICT_S = 1.0
"""How long to wait for the other side's word on a certificate; one that gives no tickets says nothing."""
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
SILENT = "does not accept this machine's certificate (revoked, or not enrolled there), or is no broker with TLS"
"""What a connection that ended without an answer may mean."""


def told_tls(error: Exception, host: str, now: datetime | None = None) -> str:
    """A failure of TLS in words: what happened, and what to do.

    Args:
        error: as `ssl` raised it.
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
        return f"it ended the connection before the login: it {SILENT}. Check host and port as well"
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
