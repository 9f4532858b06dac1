"""A federation's folder: making it, and opening what is in it for the commands that enrol and revoke."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from fedpipe_coordinator.audit.federation_audit import FederationAudit
from fedpipe_coordinator.broker.config import Guard, external_config
from fedpipe_coordinator.errors import CliError
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.federation_config import Federation, load_federation
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.records.run_folder import write_atomically
from fedpipe_coordinator.security.authority import AGENT_DAYS, Authority
from fedpipe_coordinator.security.credentials import (
    load_authority,
    load_authority_certificate,
    load_party,
    make_credentials,
)
from fedpipe_coordinator.security.enrolling import Door, Enrolled, enrol, enrolled_entry
from fedpipe_coordinator.security.owned_files import make_folder, write_owned
from fedpipe_coordinator.security.publication import publish
from fedpipe_coordinator.security.roster import Register, RosterFiles
from fedpipe_wire.enrolment import Request, request_fingerprint
from fedpipe_wire.topics import check_name

SECURE_PORT, INSECURE_PORT = 8883, 1883
EXTERNAL = Path("/etc/mosquitto/fedpipe")
"""Where the text for a broker of its owner's expects the files; its owner may put them elsewhere."""
_TEMPLATE = """\
federation = "{name}"

[broker]
host = {host}
port = {port}
# true: `fedpipe up` starts and stops a Mosquitto of its own on this port.
# false: it connects to the broker that you run there.
managed = {managed}
{insecure}"""


_INSECURE = """\
# No TLS, no keys, no signatures: whoever reaches this port may read and write everything.
insecure = true
"""


@dataclass(frozen=True, slots=True)
class Office:
    """A federation's folder opened by its owner: settings, authority and records."""

    home: Home
    settings: Federation
    authority: Authority
    files: RosterFiles

    def door(self, now: datetime) -> Door:
        """What every bundle says of the broker and the coordinator.

        Raises:
            OwnedFileError: if the coordinator's certificate is missing.
            CertificateError: if it does not count.
        """
        broker = self.settings.broker
        name = self.settings.federation
        certificate = load_party(self.home, self.authority.certificate, name, "signing", now)
        return Door(broker.host, broker.port, certificate)

    def let_in(self, request: Request, now: datetime, *, days: float = AGENT_DAYS, replace: bool = False) -> Enrolled:
        """Enrol or renew an agent, tell the broker, and record it; asked again, what was cut short is finished.

        Raises:
            EnrolmentError: if the request is not to be granted.
            OwnedFileError, CertificateError: as `door` and `publish`.
            AuditError: if it cannot be recorded.
        """
        done = enrol(request, self.files, self.authority, self.door(now), now, days=days, replace=replace)
        self.publish(now)
        FederationAudit(self.home.path).append(*enrolled_entry(done, request_fingerprint(request)))
        return done

    def publish(self, now: datetime) -> None:
        """Bring the broker's files up to date with the records.

        Raises:
            OwnedFileError: if the disk does not take them.
        """
        with self.files.lock():
            publish(self.home, self.authority, self.files.read(), now)


def create_federation(
    folder: Path,
    *,
    name: str,
    host: str,
    port: int,
    managed: bool,
    insecure: bool = False,
    now: datetime | None = None,
) -> Home:
    """Make a folder with a federation.toml and, unless it is insecure, all keys; readable by its owner only.

    Args:
        folder: where.
        name: the federation's name.
        host: where agents find the broker.
        port: its port.
        managed: whether this side runs it.
        insecure: no keys, no TLS; on loopback only.
        now: UTC; needed unless it is insecure.

    Raises:
        TopicError: if the name cannot stand in a topic.
        CliError: if there is a federation.toml already, or the folder cannot be made.
        SettingsError: if a value is out of its range.
        OwnedFileError: if there are keys already, or the disk does not take them.
    """
    check_name(name, "federation name")
    home = Home(folder.resolve())
    if home.settings.exists():
        raise CliError(f"{home.settings} exists already: edit it, or name another folder", ExitCode.BAD_SETTINGS)
    text = _TEMPLATE.format(
        name=name,
        host=json.dumps(host),
        port=port,
        managed=str(managed).lower(),
        insecure=_INSECURE if insecure else "",
    )
    draft = home.path / ".federation.toml.draft"
    try:
        make_folder(home.path)
        write_atomically(draft, text)
        settings = load_federation(draft)
        if not insecure:
            assert now is not None
            _make_keys(home, settings, now)
        write_atomically(home.settings, text)  # last: a folder that has it is whole
    except OSError as error:
        raise CliError(f"{home.path} cannot be made: {error.strerror}", ExitCode.STORE_UNUSABLE) from error
    finally:
        draft.unlink(missing_ok=True)
    return home


def open_office(home: Home, settings: Federation, now: datetime) -> Office:
    """What the commands work on that enrol, revoke and renew.

    Raises:
        CliError: if the federation was made without keys.
        OwnedFileError: if a file is missing or open to others.
        CertificateError: if the authority's files do not count.
    """
    if settings.broker.insecure:
        raise CliError(
            f"{home.path} was made with --insecure: it has no keys, and everybody on this machine may take part. "
            "Make a federation with keys in another folder with `fedpipe init`",
            ExitCode.BAD_SETTINGS,
        )
    authority = load_authority(home, settings.federation, now)
    return Office(home, settings, authority, RosterFiles(home, authority.certificate, settings.federation))


def open_files(home: Home, settings: Federation, now: datetime) -> RosterFiles:
    """The records alone, for who only reads them; needs no private key.

    Raises:
        OwnedFileError: if the authority's certificate is missing.
        CertificateError: if it does not count.
    """
    ca = load_authority_certificate(home, settings.federation, now)
    return RosterFiles(home, ca, settings.federation)


def guard_of(home: Home) -> Guard:
    """The files that the managed broker is guarded by."""
    return Guard(
        home.authority_certificate, home.certificate("broker"), home.key("broker"), home.revocations, home.access
    )


def broker_hosts(settings: Federation) -> tuple[str, ...]:
    """What the broker's certificate holds for."""
    listen = settings.broker.listen
    return (settings.broker.host, *([listen] if listen not in (None, "*") else []))


def _make_keys(home: Home, settings: Federation, now: datetime) -> x509.Certificate:
    authority = make_credentials(home, settings.federation, broker_hosts(settings), now)
    publish(home, authority, Register(), now)
    if not settings.broker.managed:
        guard = Guard(*(EXTERNAL / path.name for path in _parts(guard_of(home))))
        text = external_config(settings.broker.port, guard, settings.broker.limits())
        write_owned(home.broker / "external.conf", text.encode())
    return authority.certificate


def _parts(guard: Guard) -> tuple[Path, ...]:
    return guard.authority, guard.certificate, guard.key, guard.revocations, guard.access
