"""A running coordinator follows its folder: who was enrolled or revoked, and which certificates are renewed.

Owns what is done about a change, and when: the broker reads its files again where somebody may come in, and ends every
connection where somebody may not stay. Called in the main thread, at every tick.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from fedpipe_coordinator.broker.errors import BrokerError
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.security.access import denied_in
from fedpipe_coordinator.security.authority import Authority
from fedpipe_coordinator.security.credentials import renew_due
from fedpipe_coordinator.security.owned_files import LockBusyError, OwnedFileError
from fedpipe_coordinator.security.publication import publish, read_access
from fedpipe_coordinator.security.revocation_list import read_revocations, revoked_in
from fedpipe_coordinator.security.roster import Roster, RosterFiles
from fedpipe_wire.certificates import CertificateError

RENEW_EVERY_S = 3600.0
RETRY_S = 5.0


class Broker(Protocol):
    """What is told of changes."""

    def reload(self) -> None:
        """Let it read its files again."""
        ...

    def restart(self) -> None:
        """End every connection as well."""
        ...


@dataclass(frozen=True, slots=True)
class Told:
    """What the broker's files said when it read them."""

    serials: frozenset[int]
    denied: frozenset[str]
    files: tuple[bytes, ...]


class EnrolmentWatch:
    """Call `look` every now and then.

    Args:
        home: the federation's folder.
        authority: issues certificates and the list of revoked ones.
        roster: whom the coordinator listens to.
        files: the records that it is made of.
        hosts: what the broker is called.
        expel: is told of an agent that was revoked.
        log: takes lines for people.
        clock: UTC.
        record: takes a kind and a text for the federation's record.
    """

    def __init__(  # noqa: PLR0913  # it joins all of them
        self,
        home: Home,
        authority: Authority,
        roster: Roster,
        files: RosterFiles,
        *,
        hosts: Sequence[str],
        expel: Callable[[str], None],
        log: Callable[[str], None],
        clock: Callable[[], datetime],
        record: Callable[[str, str], None],
    ) -> None:
        self._home, self._authority, self._roster, self._files = home, authority, roster, files
        self._hosts, self._expel, self._log, self._clock = tuple(hosts), expel, log, clock
        self._record = record
        self._told: Told | None = None
        self._present: set[str] = set()
        self._stale = False
        self._retry_at = self._renew_at = 0.0
        self._said = ""
        self.broker: Broker | None = None

    def begin(self) -> None:
        """Bring everything up to date before the broker starts.

        Raises:
            OwnedFileError: if a file cannot be read or written.
            CertificateError: if a certificate that is there is none.
        """
        self._renew()
        with self._files.lock():
            self._roster.refresh()
            publish(self._home, self._authority, self._roster.register, self._clock())
        self._present = self._roster.present()
        self._told = self._read()

    def look(self, now: float) -> None:
        """Follow what changed; `now` in monotonic seconds."""
        if now < self._retry_at:
            return
        try:
            self._follow(now)
        except LockBusyError:
            return  # a command is at it: the next tick sees what it did
        except (OwnedFileError, CertificateError, BrokerError) as error:
            self._retry_at = now + RETRY_S
            if str(error) != self._said:
                self._said = str(error)
                self._log(f"enrolments are not followed at this moment: {error}")
        else:
            self._said = ""

    def _follow(self, now: float) -> None:
        if now >= self._renew_at:
            self._renew_at = now + RENEW_EVERY_S
            self._renew()
        self._stale = self._roster.refresh() or self._stale
        self._expel_the_absent()
        if self._stale:
            with self._files.lock(0.0):
                self._roster.refresh()  # a command may have been at it since: its revocations must not be taken back
                publish(self._home, self._authority, self._roster.register, self._clock())
            self._stale = False
            self._expel_the_absent()
        self._tell(self._read())

    def _expel_the_absent(self) -> None:
        present = self._roster.present()
        for name in sorted(self._present - present):
            self._log(f"not listened to any more: {self._roster.refused(name)}")
            self._expel(name)
        # Time alone lets somebody out, and a clock that is set back lets somebody in: the access list says so too.
        self._stale = self._stale or present != self._present
        self._present = present

    def _tell(self, found: Told) -> None:
        before = self._told
        if before == found:
            return
        if self.broker is not None:
            if before is None or found.serials - before.serials or found.denied - before.denied:
                self.broker.restart()
                self._log("the broker ended every connection, and lets in who is not revoked")
            else:
                self.broker.reload()
                self._log("the broker reads its certificates and access list again")
        elif before is not None:
            self._log(
                "certificates or access list changed: copy them to your broker and let it read them again, see "
                "docs/external-broker.md"
            )
        self._told = found

    def _read(self) -> Told:
        home = self._home
        revocations = read_revocations(home, self._authority.certificate)
        serials = frozenset() if revocations is None else frozenset(revoked_in(revocations))
        paths = (home.access, home.certificate("broker"), home.key("broker"))
        files = tuple(_content(path) for path in paths)
        return Told(serials, frozenset(denied_in(read_access(home))), files)

    def _renew(self) -> None:
        for party in renew_due(self._home, self._authority, self._hosts, self._clock()):
            whose = "the broker's" if party == "broker" else "the coordinator's login"
            self._log(f"{whose} certificate was renewed")
            self._record("renewed", f"{whose} certificate was renewed")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OwnedFileError(f"{path} cannot be read: {error.strerror}. Restore it from a backup") from error
