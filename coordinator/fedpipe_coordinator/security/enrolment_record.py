"""What is kept of an enrolled agent: its certificates, and whether they were revoked.

Owns the form of `agents/<name>.json` and what follows from it at a time: which keys count, what is revoked. Pure; the
files are `roster.py`'s.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AwareDatetime, Field

from fedpipe_profiles.values import Value
from fedpipe_wire.certificates import CertificateError, check_issued, load_certificate, signing_key_of
from fedpipe_wire.enrolment import AgentName, EnrolmentError, Pem
from fedpipe_wire.sealing import Keys, key_id

MAX_ISSUES = 256
MAX_REASON = 500
ON_THE_LIST = "its certificates are on the list of revoked ones, whatever its record says"

Standing = Literal["enrolled", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class TimedKey:
    """A signing key, and from when to when it counts."""

    begin: datetime
    end: datetime
    name: str
    key: Ed25519PublicKey


def keys_at(keys: Iterable[TimedKey], now: datetime) -> Keys:
    """Those that count at a time."""
    return {each.name: each.key for each in keys if each.begin <= now <= each.end}


class Issue(Value):
    """One enrolment or renewal: two certificates that go together."""

    request: str = Field(max_length=100, description="fingerprint of the request, as people compared it")
    at: AwareDatetime
    login: Pem
    signing: Pem
    revoked: AwareDatetime | None = None
    reason: str = Field(default="", max_length=MAX_REASON)

    def login_certificate(self) -> x509.Certificate:
        """The certificate of the key that logs in."""
        return load_certificate(self.login, "the login certificate")

    def signing_certificate(self) -> x509.Certificate:
        """The certificate of the key that signs messages."""
        return load_certificate(self.signing, "the signing certificate")

    def signing_key(self) -> Ed25519PublicKey:
        """The key that signs messages."""
        return signing_key_of(self.signing_certificate())

    def login_key(self) -> bytes:
        """The key that logs in, in DER."""
        form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return self.login_certificate().public_key().public_bytes(*form)

    def times(self) -> tuple[datetime, datetime]:
        """From when to when both count."""
        pair = (self.login_certificate(), self.signing_certificate())
        begin = max(certificate.not_valid_before_utc for certificate in pair)
        return begin, min(certificate.not_valid_after_utc for certificate in pair)

    def expires(self) -> datetime:
        """When the first of the two runs out."""
        return self.times()[1]

    def revoke(self, now: datetime, reason: str) -> "Issue":
        """The issue, revoked; one that was before keeps its time and reason."""
        said = {"revoked": now.astimezone(UTC), "reason": reason[:MAX_REASON]}
        return self if self.revoked else self.model_copy(update=said)

    def revoked_by(self, listed: Mapping[int, datetime]) -> "Issue":
        """The issue, revoked if one of its certificates is listed."""
        pair = (self.login_certificate(), self.signing_certificate())
        at = next((listed[each.serial_number] for each in pair if each.serial_number in listed), None)
        return self if at is None else self.model_copy(update={"revoked": at, "reason": ON_THE_LIST})

    def counts(self, now: datetime) -> bool:
        """Whether it is of use: not revoked, and in its time."""
        begin, end = self.times()
        return self.revoked is None and begin <= now <= end


class Record(Value):
    """An agent's file. The last issue is the newest."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    kind: Literal["fedpipe-enrolment"] = "fedpipe-enrolment"
    agent: AgentName
    issues: tuple[Issue, ...] = Field(min_length=1, max_length=MAX_ISSUES)

    def timed_keys(self) -> tuple[TimedKey, ...]:
        """The signing keys that were not revoked; after a renewal, the one before it counts until it runs out."""
        return tuple(
            TimedKey(*issue.times(), key_id(issue.signing_key()), issue.signing_key())
            for issue in self.issues
            if issue.revoked is None
        )

    def keys(self, now: datetime) -> Keys:
        """The signing keys that count at this time, by their names."""
        return keys_at(self.timed_keys(), now)

    def standing(self, now: datetime) -> Standing:
        """Whether the agent may take part."""
        if any(issue.counts(now) for issue in self.issues):
            return "enrolled"
        return "revoked" if self.issues[-1].revoked is not None else "expired"

    def revoked(self) -> bool:
        """Whether the agent as such was revoked, and not only certificates that were replaced since."""
        return self.issues[-1].revoked is not None

    def serials(self) -> list[tuple[int, datetime]]:
        """Numbers of the certificates that were revoked, with the time."""
        return [
            (certificate.serial_number, issue.revoked)
            for issue in self.issues
            if issue.revoked is not None
            for certificate in (issue.login_certificate(), issue.signing_certificate())
        ]

    def revoke(self, now: datetime, reason: str) -> "Record":
        """The record once everything that is not revoked is."""
        issues = tuple(issue.revoke(now, reason) for issue in self.issues)
        return self.model_copy(update={"issues": issues})

    def revoke_before(self, kept: Issue, now: datetime, reason: str) -> "Record":
        """The record once everything that is older than one of its issues is revoked."""
        place = self.issues.index(kept)
        older = tuple(issue.revoke(now, reason) for issue in self.issues[:place])
        return self.model_copy(update={"issues": (*older, *self.issues[place:])})

    def revoked_by(self, listed: Mapping[int, datetime]) -> "Record":
        """The record once what stands on the signed list counts as revoked, by number, since its time there."""
        if not listed:
            return self
        issues = tuple(each if each.revoked else each.revoked_by(listed) for each in self.issues)
        return self if issues == self.issues else self.model_copy(update={"issues": issues})

    def with_issue(self, issue: Issue, now: datetime) -> "Record":
        """The record with a newer issue; where there are too many, those that ran out are forgotten.

        Raises:
            EnrolmentError: if there are too many that did not run out: a revoked one must stay on the broker's list.
        """
        issues = self.issues
        if len(issues) >= MAX_ISSUES:
            issues = tuple(each for each in issues if each.expires() >= now)
        if len(issues) >= MAX_ISSUES:
            raise EnrolmentError(
                f"{self.agent} was given {len(issues)} certificates that did not run out yet, at most {MAX_ISSUES} are "
                "kept: see what asks for so many"
            )
        return self.model_copy(update={"issues": (*issues, issue)})


def check_record(record: Record, ca: x509.Certificate, federation: str, name: str) -> None:
    """Check that a record is the one of this name, and all of it was issued here.

    Raises:
        CertificateError: naming what is not.
    """
    if record.agent != name:
        raise CertificateError(f"the record is of agent {record.agent!r}, its file is named after {name!r}")
    for issue in record.issues:
        for purpose, certificate in (("login", issue.login_certificate()), ("signing", issue.signing_certificate())):
            began = certificate.not_valid_before_utc
            check_issued(certificate, ca, purpose=purpose, federation=federation, name=name, now=began)  # type: ignore[arg-type]  # a tuple's literals are widened
        issue.signing_key()
