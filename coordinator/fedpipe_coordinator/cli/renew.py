"""`fedpipe renew`: new certificates for the broker and the coordinator."""

import sys

from fedpipe_coordinator.audit.federation_audit import FederationAudit
from fedpipe_coordinator.cli.options import HomeOption, find_home
from fedpipe_coordinator.federation import broker_hosts, open_office
from fedpipe_coordinator.federation_config import load_federation
from fedpipe_coordinator.home_lock import holder
from fedpipe_coordinator.security.assembly import utc_now
from fedpipe_coordinator.security.credentials import load_party, renew_due
from fedpipe_wire.sealing import COORDINATOR


def renew(home: HomeOption = None) -> None:
    """Renew the certificates of the broker and of the coordinator's login, for the keys that they have.

    `fedpipe up` does so by itself when less than a third of their life is left. A running managed broker takes them up
    without dropping a connection. Where a key was lost or stolen, remove key and certificate first.

    Example: fedpipe renew --home my-federation
    """
    place = find_home(home)
    settings = load_federation(place.settings)
    now = utc_now()
    office = open_office(place, settings, now)
    with office.files.lock():
        renewed = renew_due(place, office.authority, broker_hosts(settings), now, every=True)
    for party in renewed:
        certificate = load_party(place, office.authority.certificate, settings.federation, party, now)
        until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        FederationAudit(place.path).append("renewed", COORDINATOR, f"the certificate {party} was renewed until {until}")
        sys.stdout.write(f"{party} {until}\n")
    if not settings.broker.managed:
        sys.stderr.write(f"Copy {place.certificate('broker')} to your broker and let it read it again.\n")
    elif holder(place.path) is not None:
        sys.stderr.write("The running broker takes them up by itself.\n")
