"""Is this federation sound? Small checks of its files, each with what was found and what to do.

Owns the checks that need nothing but the folder; `broker_checks.py` has those that connect. A check never changes
anything.
"""

import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from fedpipe_coordinator.federation_config import Federation
from fedpipe_coordinator.home import Home, Party
from fedpipe_coordinator.security.access import access_text, denied_in
from fedpipe_coordinator.security.authority import CANARY_SERIAL
from fedpipe_coordinator.security.credentials import (
    PARTIES,
    is_due,
    load_authority,
    load_authority_certificate,
    load_party,
)
from fedpipe_coordinator.security.enrolment_view import SOON_DAYS
from fedpipe_coordinator.security.owned_files import OwnedFileError
from fedpipe_coordinator.security.publication import read_access
from fedpipe_coordinator.security.revocation_list import read_revocations, revoked_in
from fedpipe_coordinator.security.roster import Register, RosterFiles
from fedpipe_wire.certificates import CertificateError, fingerprint

State = Literal["ok", "warning", "failed", "skipped"]
_OTHERS = 0o077
_WRITTEN = "start `fedpipe up`, which writes it anew"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        check: What was looked at.
        state: `failed` where the federation does not keep a promise; `warning` where it will not for long.
        found: What was seen.
        remedy: What to do; empty where nothing.
    """

    check: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at."""

    home: Home
    settings: Federation
    now: datetime

    @property
    def name(self) -> str:
        """The federation's name."""
        return self.settings.federation


def check_files(patient: Patient) -> list[Finding]:
    """All checks of the folder."""
    if patient.settings.broker.insecure:
        return [
            Finding(
                "security",
                "failed",
                "insecure = true: no TLS, no keys, no signatures",
                "make a federation with keys with `fedpipe init` in another folder",
            ),
            check_rights(patient),
        ]
    checks: list[Callable[[Patient], Iterable[Finding]]] = [
        lambda each: [check_rights(each)],
        lambda each: [check_authority_files(each)],
        lambda each: [check_pair(each, party) for party in PARTIES],
        check_records,
        lambda each: [check_revocations(each)],
        lambda each: [check_access(each)],
    ]
    return [finding for check in checks for finding in check(patient)]


def check_rights(patient: Patient) -> Finding:
    """Nobody but the owner may enter the folder or read a key."""
    home = patient.home
    paths = [home.path, home.authority_key, *(home.key(party) for party in PARTIES)]
    open_ones = [path for path in paths if path.exists() and stat.S_IMODE(path.stat().st_mode) & _OTHERS]
    if open_ones:
        names = ", ".join(str(path) for path in open_ones)
        return Finding("rights", "failed", f"open to others: {names}", f"chmod -R go= {home.path}")
    return Finding("rights", "ok", "only this user may read the folder and its keys")


def check_authority_files(patient: Patient) -> Finding:
    """The authority's key is there, and its certificate lasts."""
    try:
        authority = load_authority(patient.home, patient.name, patient.now)
    except (OwnedFileError, CertificateError) as error:
        return Finding("authority", "failed", str(error), "restore ca/ from a backup, see docs/backup.md")
    end = authority.certificate.not_valid_after_utc
    found = f"{fingerprint(authority.certificate)}, until {end:%Y-%m-%d}"
    if is_due(authority.certificate, patient.now):
        return Finding("authority", "warning", found, "plan a new federation, and enrol every agent in it before then")
    return Finding("authority", "ok", found)


def check_pair(patient: Patient, party: Party) -> Finding:
    """A key and its certificate fit, were issued here, and last."""
    what = "broker certificate" if party == "broker" else f"coordinator's {party} certificate"
    try:
        ca = load_authority_certificate(patient.home, patient.name, patient.now)
        certificate = load_party(patient.home, ca, patient.name, party, patient.now)
    except (OwnedFileError, CertificateError) as error:
        remedy = (
            "restore it from a backup" if party == "signing" else "run `fedpipe renew`, or restore it from a backup"
        )
        return Finding(what, "failed", str(error), remedy)
    found = f"until {certificate.not_valid_after_utc:%Y-%m-%d}"
    if is_due(certificate, patient.now):
        return Finding(what, "warning", found, "run `fedpipe renew`; `fedpipe up` does so by itself")
    return Finding(what, "ok", found)


def check_records(patient: Patient) -> list[Finding]:
    """Every record can be read, and nobody's time is over unseen."""
    register = _register(patient)
    if isinstance(register, Finding):
        return [register]
    findings = [
        Finding(f"agent {name}", "failed", why, "restore the record from a backup, or enrol the agent again")
        for name, why in register.damaged.items()
    ]
    for name, record in register.records.items():
        last = record.issues[-1]
        days = (last.expires() - patient.now).days
        standing = record.standing(patient.now)
        if standing == "expired" or (standing == "enrolled" and days < SOON_DAYS):
            when = "ran out" if standing == "expired" else "runs out"
            remedy = "have its owner send a new request: `fedpipe-agent renew`, then `fedpipe enroll`"
            findings.append(Finding(f"agent {name}", "warning", f"{when} on {last.expires():%Y-%m-%d}", remedy))
    if not findings:
        counts = [record.standing(patient.now) for record in register.records.values()]
        found = f"{counts.count('enrolled')} enrolled, {counts.count('revoked')} revoked"
        findings.append(Finding("agents", "ok", found))
    return findings


def check_revocations(patient: Patient) -> Finding:
    """The list of revoked certificates names all of them."""
    register = _register(patient)
    if isinstance(register, Finding):
        return Finding("revocation list", "skipped", "the records cannot be read")
    ca = load_authority_certificate(patient.home, patient.name, patient.now)
    found = read_revocations(patient.home, ca)
    wanted = {CANARY_SERIAL, *(serial for serial, _ in register.serials())}
    missing = len(wanted) if found is None else len(wanted - revoked_in(found))
    if missing:
        return Finding("revocation list", "failed", f"{missing} certificates are not on it", _WRITTEN)
    return Finding("revocation list", "ok", f"{len(wanted) - 1} certificates are on it")


def check_access(patient: Patient) -> Finding:
    """The access list is the one that follows from the records."""
    register = _register(patient)
    if isinstance(register, Finding):
        return Finding("access list", "skipped", "the records cannot be read")
    told = read_access(patient.home)
    # Whoever ran out is denied once the coordinator has seen it, and whoever has no record any more stays denied.
    denied = register.revoked() | (denied_in(told) & register.denied(patient.now))
    denied |= denied_in(told) - set(register.records)
    if told != access_text(patient.name, denied):
        return Finding("access list", "failed", f"{patient.home.access} was changed or is missing", _WRITTEN)
    return Finding("access list", "ok", f"as FedPipe writes it, {len(denied)} agents denied")


def _register(patient: Patient) -> Register | Finding:
    try:
        ca = load_authority_certificate(patient.home, patient.name, patient.now)
        return RosterFiles(patient.home, ca, patient.name).read()
    except (OwnedFileError, CertificateError) as error:
        return Finding("agents", "failed", str(error), "restore the folder from a backup, see docs/backup.md")


def failed(findings: Iterable[Finding]) -> bool:
    """Whether the federation does not keep a promise."""
    return any(finding.state == "failed" for finding in findings)
