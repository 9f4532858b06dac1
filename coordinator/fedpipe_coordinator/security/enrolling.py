"""Enrolling, renewing and revoking agents: what a request means, and what is issued for it.

Owns the judgement of a request against what is known, pure; and the two operations, under the records' lock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedpipe_coordinator.security.authority import Authority
from fedpipe_coordinator.security.enrolment_record import Issue, Record
from fedpipe_coordinator.security.roster import RosterFiles
from fedpipe_wire.certificates import to_pem
from fedpipe_wire.enrolment import (
    Bundle,
    EnrolmentError,
    Request,
    check_request,
    consents,
    request_fingerprint,
)
from fedpipe_wire.sealing import key_id

Meaning = Literal["new", "again", "renewal", "replacement"]
DEFAULT_REASON = "revoked by the federation's owner"
REPLACED = "replaced by other keys"


@dataclass(frozen=True, slots=True)
class Door:
    """Where agents find the broker, and whom they find there: what every bundle says.

    Attributes:
        host: The broker's name or address.
        port: Its port.
        coordinator: The coordinator's signing certificate.
    """

    host: str
    port: int
    coordinator: x509.Certificate


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What came of a request."""

    meaning: Meaning
    record: Record
    issue: Issue
    bundle: Bundle


def enrolled_entry(done: Enrolled, request: str) -> tuple[str, str, str, dict[str, object]]:
    """What the federation's record says of it: kind, agent, text and data; `request` is its fingerprint."""
    issue, name = done.issue, done.record.agent
    kind = "renewed" if done.meaning == "renewal" else "enrolled"
    text = f"agent {name} was {kind} until {issue.expires():%Y-%m-%d}"
    return (
        kind,
        name,
        text,
        {
            "meaning": done.meaning,
            "request": request,
            "key": key_id(issue.signing_key()),
            "expires": issue.expires().isoformat(),
        },
    )


def judge(request: Request, records: Mapping[str, Record], now: datetime) -> Meaning:
    """What a checked request asks for, given who is enrolled.

    `replacement` needs its owner's word: whoever sent it does not hold what the agent of this name is known by.

    Raises:
        EnrolmentError: if it may not be granted at all.
    """
    _refuse_foreign_keys(request, records)
    record = records.get(request.agent)
    if record is None:
        if request.renews:
            raise EnrolmentError(
                f"{request.agent} asks for a renewal and was never enrolled here: is this the right federation? "
                "If so, have it make a first request with `fedpipe-agent init`"
            )
        return "new"
    _refuse_revoked_keys(request, record)
    login = login_key_of(request)
    live = [issue for issue in record.issues if issue.counts(now)]
    for issue in live:
        if issue.signing_key().public_bytes_raw().hex() == request.signing_key:
            if issue.login_key() == login:
                return "again"
            if issue is live[-1]:
                return "renewal"
    # An older key may be in other hands: only the newest speaks for the agent.
    known = {key_id(issue.signing_key()): issue.signing_key() for issue in live[-1:]}
    return "renewal" if consents(request, known) else "replacement"


def login_key_of(request: Request) -> bytes:
    """The key that would log in, in DER."""
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return x509.load_pem_x509_csr(request.login_request.encode()).public_key().public_bytes(*form)


def _refuse_foreign_keys(request: Request, records: Mapping[str, Record]) -> None:
    login = login_key_of(request)
    for name, record in sorted(records.items()):
        if name == request.agent:
            continue
        for issue in record.issues:
            if issue.signing_key().public_bytes_raw().hex() == request.signing_key or issue.login_key() == login:
                raise EnrolmentError(
                    f"{request.agent} uses a key of agent {name}: every agent needs keys of its own. Most likely a "
                    "folder was copied; run `fedpipe-agent init` in an empty one, and find out who has the copy"
                )


def _refuse_revoked_keys(request: Request, record: Record) -> None:
    login = login_key_of(request)
    for issue in record.issues:
        same = issue.signing_key().public_bytes_raw().hex() == request.signing_key or issue.login_key() == login
        if same and issue.revoked is not None:
            raise EnrolmentError(
                f"{request.agent} uses a key that was revoked on {issue.revoked:%Y-%m-%d}: {issue.reason}. "
                "Have it make new ones with `fedpipe-agent init` in an empty folder"
            )


def _refuse_replaced_keys(request: Request, record: Record) -> None:
    login = login_key_of(request)
    for issue in record.issues:
        if issue.signing_key().public_bytes_raw().hex() == request.signing_key or issue.login_key() == login:
            raise EnrolmentError(
                f"{request.agent} asks with a key that --replace would revoke. Have it make new ones with "
                "`fedpipe-agent init` in an empty folder, or leave --replace out"
            )


def enrol(
    request: Request,
    files: RosterFiles,
    authority: Authority,
    door: Door,
    now: datetime,
    *,
    days: float,
    replace: bool,
) -> Enrolled:
    """Enrol an agent, or renew it; the record is on disk when this returns.

    Args:
        request: as it came.
        files: the records.
        authority: issues the certificates.
        door: what the bundle says.
        now: UTC.
        days: how long the certificates last.
        replace: revoke all that the agent of this name was issued before, whatever the request means.

    Raises:
        EnrolmentError: if the request is not to be granted.
        OwnedFileError: if a record cannot be read or written.
    """
    csr, signing = check_request(request)
    with files.lock():
        register = files.read()
        if request.agent in register.damaged:
            raise EnrolmentError(f"{register.damaged[request.agent]}. Restore it from a backup, or remove it")
        meaning = judge(request, register.records, now)
        record = register.records.get(request.agent)
        if meaning == "replacement" and not replace:
            assert record is not None
            raise EnrolmentError(_taken(record, now))
        if meaning == "again":
            assert record is not None
            issue = _same(request, record, now)
            if replace:
                record = record.revoke_before(issue, now, REPLACED)
                files.write(record)
            return Enrolled(meaning, record, issue, _bundle(request, issue, authority, door))
        if replace and record is not None:
            _refuse_replaced_keys(request, record)
        key = csr.public_key()
        issue = Issue(
            request=request_fingerprint(request),
            at=now.astimezone(UTC),
            login=to_pem(authority.issue(request.agent, key, "login", now, days)),  # type: ignore[arg-type]  # `check_request` let P-256 through only
            signing=to_pem(authority.issue(request.agent, signing, "signing", now, days)),
        )
        if record is None:
            record = Record(agent=request.agent, issues=(issue,))
        else:
            before = record.revoke(now, REPLACED) if replace else record
            record = before.with_issue(issue, now)
        files.write(record)
    return Enrolled(meaning, record, issue, _bundle(request, issue, authority, door))


@dataclass(frozen=True, slots=True)
class Revoked:
    """What came of revoking.

    Attributes:
        record: As it is on disk.
        again: Whether the agent was revoked before, for the reason and at the time in its record.
    """

    record: Record
    again: bool


def revoked_entry(done: Revoked) -> tuple[str, str, str, dict[str, object]]:
    """What the federation's record says of it: kind, agent, text and data; the same for the same revocation."""
    last, name = done.record.issues[-1], done.record.agent
    assert last.revoked is not None
    at = last.revoked.astimezone(UTC).isoformat(timespec="seconds")  # as exact as the list of revoked certificates
    return "revoked", name, f"agent {name} was revoked: {last.reason}", {"revoked": at}


def revoke(agent: str, files: RosterFiles, now: datetime, reason: str) -> Revoked:
    """Revoke everything that an agent was issued; the record is on disk when this returns.

    One that was revoked before stays as it is: whoever calls completes what a kill or a full disk left undone.

    Raises:
        EnrolmentError: if there is no such agent.
        OwnedFileError: if the record cannot be read or written.
    """
    with files.lock():
        register = files.read()
        if agent in register.damaged:
            raise EnrolmentError(
                f"{register.damaged[agent]}. It is refused already; restore the record from a backup to revoke its "
                "certificates by number"
            )
        record = register.records.get(agent)
        if record is None:
            names = ", ".join(sorted(register.records)[:20]) or "nobody"
            raise EnrolmentError(f"agent {agent[:80]!r} was never enrolled here; enrolled: {names}")
        again = record.revoked()
        record = record.revoke(now, reason)
        files.write(record)
    return Revoked(record, again)


def _taken(record: Record, now: datetime) -> str:
    last, standing = record.issues[-1], record.standing(now)
    states = {
        "enrolled": f"is enrolled until {last.expires():%Y-%m-%d}",
        "expired": f"was enrolled until {last.expires():%Y-%m-%d}",
        "revoked": f"was revoked on {last.revoked:%Y-%m-%d}: {last.reason}" if last.revoked else "was revoked",
    }
    return (
        f"{record.agent} {states[standing]}, and this request has other keys without that agent's consent. If its "
        "owner told you that the keys are new, enrol it with --replace, which revokes the old ones; else do not"
    )


def _same(request: Request, record: Record, now: datetime) -> Issue:
    """The issue whose keys a request asks for once more."""
    return next(
        issue
        for issue in record.issues
        if issue.counts(now) and issue.signing_key().public_bytes_raw().hex() == request.signing_key
    )


def _bundle(request: Request, issue: Issue, authority: Authority, door: Door) -> Bundle:
    return Bundle(
        federation=authority.federation,
        agent=request.agent,
        host=door.host,
        port=door.port,
        authority=to_pem(authority.certificate),
        login=issue.login,
        signing=issue.signing,
        coordinator=to_pem(door.coordinator),
    )
