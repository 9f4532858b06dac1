"""What the broker is told of enrolments: the list of revoked certificates and the access list, made from the records.

Owns when either is written anew. Both follow from the records and from what they said before, so whoever comes first
after a change writes them, a command or a running coordinator, and nothing is lost where one is killed in the middle.
"""

from datetime import datetime

from cryptography.hazmat.primitives import serialization

from fedpipe_coordinator.home import Home
from fedpipe_coordinator.security.access import access_text, denied_in
from fedpipe_coordinator.security.authority import CANARY_SERIAL, Authority
from fedpipe_coordinator.security.owned_files import OwnedFileError, read_limited, write_owned
from fedpipe_coordinator.security.revocation_list import MAX_LIST_BYTES, read_revocations, revoked_in, revoked_since
from fedpipe_coordinator.security.roster import Register


def publish(home: Home, authority: Authority, register: Register, now: datetime) -> bool:
    """Bring both files up to date; whether one was written. Call it with the records locked.

    Nothing is taken back because a record was lost, torn or restored older: what the list before this one revokes stays
    revoked, and a name that was denied stays so until a record lets it in with a certificate that is not on the list.

    Raises:
        OwnedFileError: if the disk does not take them.
    """
    written = False
    before = read_revocations(home, authority.certificate)
    wanted = {
        **revoked_since(before),
        CANARY_SERIAL: authority.certificate.not_valid_before_utc,
        **dict(register.serials()),
    }
    if before is None or revoked_in(before) != set(wanted):
        after = None if before is None else before.last_update_utc
        found = authority.revocations(sorted(wanted.items()), now, after)
        write_owned(home.revocations, found.public_bytes(serialization.Encoding.PEM))
        written = True
    told = read_access(home)
    denied = register.denied(now) | (denied_in(told) - set(register.records))
    text = access_text(authority.federation, denied)
    if told != text:
        write_owned(home.access, text.encode())
        written = True
    return written


def read_access(home: Home) -> str:
    """The access list that is there; nothing where it cannot be read."""
    try:
        return read_limited(home.access, MAX_LIST_BYTES).decode()
    except (OwnedFileError, UnicodeDecodeError):
        return ""
