"""All of a running coordinator's security put together: its keys, whom it listens to, and the watch over both.

Owns the order: what is due is renewed before anything is loaded, and the broker's files stand before it starts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from fedpipe_coordinator.audit.federation_audit import AuditError, FederationAudit
from fedpipe_coordinator.federation import broker_hosts, open_office
from fedpipe_coordinator.federation_config import Federation
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.security.credentials import Credentials, load_credentials
from fedpipe_coordinator.security.enrolment_watch import EnrolmentWatch
from fedpipe_coordinator.security.roster import Roster
from fedpipe_wire.sealing import COORDINATOR


@dataclass(frozen=True, slots=True)
class Security:
    """What a coordinator with keys works with.

    Attributes:
        credentials: Its own keys.
        roster: Whom it listens to.
        watch: Follows what commands change meanwhile; to be called at every tick.
    """

    credentials: Credentials
    roster: Roster
    watch: EnrolmentWatch


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def open_security(
    home: Home,
    settings: Federation,
    expel: Callable[[str], None],
    log: Callable[[str], None],
    clock: Callable[[], datetime] = utc_now,
) -> Security:
    """Open a federation's keys and records for a coordinator.

    Args:
        home: the federation's folder.
        settings: its federation.toml.
        expel: is told of an agent that is not let in any more.
        log: takes lines for people.
        clock: UTC.

    Raises:
        OwnedFileError: if a file is missing or open to others.
        CertificateError: if one does not count.
    """
    office = open_office(home, settings, clock())
    roster = Roster(office.files, clock, log)

    def record(kind: str, text: str) -> None:
        try:
            FederationAudit(home.path, clock).append(kind, COORDINATOR, text)
        except AuditError as error:
            log(str(error))

    watch = EnrolmentWatch(
        home,
        office.authority,
        roster,
        office.files,
        hosts=broker_hosts(settings),
        expel=expel,
        log=log,
        clock=clock,
        record=record,
    )
    watch.begin()
    return Security(load_credentials(home, settings.federation, clock()), roster, watch)
