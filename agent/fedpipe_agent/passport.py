"""What an agent shows and trusts while it runs: renewed keys and certificates count without a restart.

Owns noticing new files and telling the owner of certificates that end soon. Where the federation was made without keys,
`Unsigned` stands in its place.
"""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedpipe_agent.credentials import Credentials, load_credentials
from fedpipe_agent.errors import MembershipError, StateFolderError
from fedpipe_agent.key_folder import AUTHORITY, BUNDLE, CURRENT, LOGIN_CERTIFICATE, LOGIN_KEY
from fedpipe_wire.certificates import CertificateTimeError
from fedpipe_wire.enrolment import Bundle
from fedpipe_wire.sealing import COORDINATOR, Keys
from fedpipe_wire.tls import client_context

WARN_BEFORE = timedelta(days=30)
WARN_EVERY = timedelta(days=1)


class Passport(Protocol):
    """What the daemon needs of either kind."""

    @property
    def signing(self) -> Ed25519PrivateKey | None:
        """Signs this agent's messages now; None where nothing is signed."""
        ...

    @property
    def keys(self) -> Callable[[str], Keys | None] | None:
        """As an `Inspector` takes them."""
        ...

    def renewed(self) -> bool:
        """Look for new files, and warn of what ends; whether new keys or certificates count from now on."""
        ...


class Unsigned:
    """For a broker on loopback: no keys on any side."""

    bundle = None
    signing = None
    keys = None

    def renewed(self) -> bool:
        """Never."""
        return False


class Enrolled:
    """The passport of an agent that has joined. Used by the daemon's thread, but for `context`.

    Args:
        state: the agent's state folder.
        name: of the agent.
        log: takes one line for the owner.
        now: the wall clock, with its zone.

    Raises:
        MembershipError: if it has not joined, or its files cannot be used.
        StateFolderError: if the folder cannot be used.
    """

    def __init__(
        self,
        state: Path,
        name: str,
        log: Callable[[str], None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._state, self._name, self._log, self._now = state, name, log, now
        self._seen = self._stamp()
        self.credentials: Credentials = load_credentials(state, name, now())
        self._warned: datetime | None = None

    @property
    def bundle(self) -> Bundle:
        """What was joined."""
        return self.credentials.membership.bundle

    @property
    def signing(self) -> Ed25519PrivateKey | None:
        """Signs this agent's messages now."""
        return self.credentials.signing

    @property
    def keys(self) -> Callable[[str], Keys | None] | None:
        """Whose messages count: the coordinator's, while its certificate lasts."""
        return self._keys

    def _keys(self, sender: str) -> Keys | None:
        if sender != COORDINATOR:
            return None
        return self.credentials.membership.coordinator_keys if self._now() <= self.credentials.until else {}

    def context(self) -> ssl.SSLContext:
        """The context of one connection, from the files as they are now.

        Raises:
            CertificateError: if they cannot be used, or their time is over.
        """
        now, until = self._now(), self.credentials.until
        if now > until:
            raise CertificateTimeError(
                f"this agent's certificates ended at {until:%Y-%m-%d %H:%M} UTC, and this machine's clock says "
                f"{now:%Y-%m-%d %H:%M}: set the clock, or run fedpipe-agent renew and join the bundle that comes back"
            )
        folder = self._state / CURRENT
        return client_context(folder / AUTHORITY, folder / LOGIN_CERTIFICATE, folder / LOGIN_KEY)

    def renewed(self) -> bool:
        """Look for a bundle that was joined since, and warn of what ends soon."""
        stamp = self._stamp()
        changed = stamp is not None and stamp != self._seen and self._take(stamp)
        self._warn()
        return changed

    def _take(self, stamp: tuple[int, int]) -> bool:
        self._seen = stamp
        try:
            self.credentials = load_credentials(self._state, self._name, self._now())
        except (MembershipError, StateFolderError) as error:
            self._log(f"the new certificates are not used, the former ones are: {error}")
            return False
        self._warned = None
        self._log(f"new keys and certificates are used from now on; they last until {self.credentials.until:%Y-%m-%d}")
        return True

    def _warn(self) -> None:
        now, until = self._now(), self.credentials.until
        if until - now > WARN_BEFORE or (self._warned is not None and now - self._warned < WARN_EVERY):
            return
        self._warned = now
        when = "have ended" if now > until else f"end in {(until - now).days} days"
        self._log(
            f"WARNING: this agent's certificates {when}, at {until:%Y-%m-%d %H:%M} UTC: run fedpipe-agent renew, have "
            "the request enrolled, and join the bundle that comes back; the agent need not be stopped"
        )

    def _stamp(self) -> tuple[int, int] | None:
        """Tells one joined bundle from another; None for a moment while files are exchanged."""
        try:
            found = (self._state / CURRENT / BUNDLE).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns
