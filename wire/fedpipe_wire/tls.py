"""TLS to the broker: client contexts that show a certificate and trust one federation's authority alone.

Owns the versions and checks of TLS; which files hold keys and certificates is their owner's matter.
"""

import ssl
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedpipe_wire.certificates import CertificateError

Host = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9:._%-]+$")]
"""A name or an address, as it may stand in a log, a certificate and a broker's settings."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
"""Where a broker without TLS may listen: nobody else reaches it."""


def client_context(authority: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """A context for one connection: TLS 1.2 or newer, both sides with certificates of this federation.

    Raises:
        CertificateError: if a file cannot be read, or key and certificate do not fit together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(authority)
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise CertificateError(
            f"cannot log in with {certificate} and {key}, trusting {authority}: {error.strerror or error}"
        ) from None
    return context


def check_insecure(host: str, *, insecure: bool) -> None:
    """Check that a broker without TLS is one that no other machine reaches.

    Raises:
        ValueError: if it is not on loopback.
    """
    if insecure and host not in LOOPBACK:
        raise ValueError(
            f"is for a broker on {', '.join(sorted(LOOPBACK))} only, not on {host}: enrol the agents instead"
        )
