"""How an agent comes into a federation: the request that it makes and the bundle that it gets, both files of JSON.

Owns their form and their checks. They may travel by any way, for neither holds a secret: a request proves that its
maker holds the keys it names, and a bundle counts once its federation's fingerprint was compared.
"""

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from pydantic import AfterValidator, Field, ValidationError

from fedpipe_profiles.values import Value
from fedpipe_wire.certificates import (
    MAX_PEM_BYTES,
    UNREADABLE,
    CertificateError,
    check_authority,
    check_issued,
    fingerprint,
    load_certificate,
    signing_key_of,
)
from fedpipe_wire.messages import problem_of
from fedpipe_wire.sealing import COORDINATOR, Keys, key_id
from fedpipe_wire.tls import Host
from fedpipe_wire.topics import check_name

MAX_FILE_BYTES = 131_072
_PEM = serialization.Encoding.PEM
_DOMAIN = b"fedpipe enrolment request 1\0"
Pem = Annotated[str, Field(min_length=1, max_length=MAX_PEM_BYTES)]
AgentName = Annotated[str, AfterValidator(lambda name: check_name(name, "agent name"))]
FederationName = Annotated[str, AfterValidator(lambda name: check_name(name, "federation name"))]
RawKey = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="Ed25519 public key, 32 bytes in hexadecimal")]
Signature = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{86}==$")]


class EnrolmentError(ValueError):
    """A request or bundle that does not count; the message says why and what to do."""


class Request(Value):
    """What an agent asks to be enrolled by."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    kind: Literal["fedpipe-request"] = "fedpipe-request"
    agent: AgentName
    login_request: Pem = Field(description="PKCS #10 in PEM: the P-256 key and the agent's name, signed by that key")
    signing_key: RawKey
    proof: Signature = Field(description="by the signing key, over the rest")
    renews: str = Field(default="", pattern=r"^([0-9a-f]{16})?$", description="signing key in use, when it is renewed")
    consent: str = Field(default="", pattern=r"^([A-Za-z0-9+/]{86}==)?$", description="by the key that is renewed")


class Bundle(Value):
    """What an agent is enrolled with; no secret is in it."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    kind: Literal["fedpipe-bundle"] = "fedpipe-bundle"
    federation: FederationName
    agent: AgentName
    host: Host
    port: int = Field(ge=1, le=65535)
    authority: Pem = Field(description="the federation's own certificate; its fingerprint is what people compare")
    login: Pem
    signing: Pem
    coordinator: Pem = Field(description="the coordinator's signing certificate")


File = TypeVar("File", Request, Bundle)


@dataclass(frozen=True, slots=True)
class Membership:
    """A bundle that was checked.

    Attributes:
        bundle: As it came.
        authority: The federation's own certificate.
        coordinator_keys: What the coordinator signs with.
    """

    bundle: Bundle
    authority: x509.Certificate
    coordinator_keys: Keys


def encode(file: Request | Bundle) -> bytes:
    """The file's bytes."""
    return (json.dumps(file.model_dump(by_alias=True), indent=2) + "\n").encode()


def decode(kind: type[File], data: bytes) -> File:
    """Read a request or a bundle; nothing in it is believed yet.

    Raises:
        EnrolmentError: if it is too large or not of the documented form.
    """
    what = "request" if kind is Request else "bundle"
    if len(data) > MAX_FILE_BYTES:
        raise EnrolmentError(f"the {what} has {len(data)} bytes, at most {MAX_FILE_BYTES} are read")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise EnrolmentError(f"this is not a {what} of FedPipe: {problem_of(error)}") from None


def make_request(
    agent: str,
    login: ec.EllipticCurvePrivateKey,
    signing: ed25519.Ed25519PrivateKey,
    renewed: ed25519.Ed25519PrivateKey | None = None,
) -> Request:
    """An agent's request; `renewed` is the signing key that it is known by, when it asks for new certificates."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, agent)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(login, hashes.SHA256())
    pem = csr.public_bytes(_PEM).decode()
    raw = signing.public_key().public_bytes_raw().hex()
    renews = "" if renewed is None else key_id(renewed.public_key())
    proven = _proven(agent, pem, raw, renews)
    consent = b"" if renewed is None else renewed.sign(proven)
    return Request(
        agent=agent,
        login_request=pem,
        signing_key=raw,
        proof=_base64(signing.sign(proven)),
        renews=renews,
        consent=_base64(consent),
    )


def check_request(request: Request) -> tuple[x509.CertificateSigningRequest, ed25519.Ed25519PublicKey]:
    """Check that whoever made a request holds both of its keys, and give them.

    Raises:
        EnrolmentError: if not, or if a key is of another kind.
    """
    try:
        csr = x509.load_pem_x509_csr(request.login_request.encode())
        fits = csr.is_signature_valid
        key = csr.public_key()
        names = [str(each.value) for each in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except UNREADABLE as error:
        raise EnrolmentError(f"the login request is not PKCS #10 in PEM: {str(error)[:200]}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EnrolmentError("the login key is not of P-256: make the request with `fedpipe-agent init`")
    if not fits:
        raise EnrolmentError("the login request is not signed by its own key: it was changed on its way")
    if names != [request.agent]:
        raise EnrolmentError(f"the login request is for {names}, the request for {request.agent!r}")
    signing = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(request.signing_key))
    if not _signed(signing, request, request.proof):
        raise EnrolmentError("the request is not signed by its own signing key: it was changed on its way")
    return csr, signing


def consents(request: Request, known: Keys) -> bool:
    """Whether a renewal is signed by a key that its agent is known by."""
    key = known.get(request.renews)
    return key is not None and bool(request.consent) and _signed(key, request, request.consent)


def request_fingerprint(request: Request) -> str:
    """SHA-256 of what a request asks for, as people compare it: both of its keys and its name."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(_proven(request.agent, request.login_request, request.signing_key, request.renews))
    text = digest.finalize().hex()
    return "-".join(text[start : start + 4] for start in range(0, len(text), 4))


def check_bundle(bundle: Bundle, now: datetime) -> Membership:
    """Check that everything in a bundle comes from the federation whose certificate is in it.

    Whether that is the right federation, only its fingerprint tells: compare `fingerprint(membership.authority)`.

    Raises:
        CertificateError: if a certificate does not count, with what to do.
    """
    ca = load_certificate(bundle.authority, "the federation's certificate")
    check_authority(ca, now)
    for purpose, pem, name in (
        ("login", bundle.login, bundle.agent),
        ("signing", bundle.signing, bundle.agent),
        ("signing", bundle.coordinator, COORDINATOR),
    ):
        certificate = load_certificate(pem, f"the {purpose} certificate of {name}")
        check_issued(certificate, ca, purpose=purpose, federation=bundle.federation, name=name, now=now)  # type: ignore[arg-type]  # a tuple's literals are widened
    coordinator = signing_key_of(load_certificate(bundle.coordinator, "the coordinator's signing certificate"))
    return Membership(bundle, ca, {key_id(coordinator): coordinator})


def check_fingerprint(ca: x509.Certificate, expected: str) -> None:
    """Check that a federation is the one that was meant.

    Raises:
        CertificateError: with both fingerprints.
    """
    if fingerprint(ca) != expected:
        raise CertificateError(
            f"the bundle is of another federation: its fingerprint is {fingerprint(ca)}, expected {expected}. "
            "Ask the federation's owner for both again, and do not use this bundle"
        )


def _signed(key: ed25519.Ed25519PublicKey, request: Request, signature: str) -> bool:
    proven = _proven(request.agent, request.login_request, request.signing_key, request.renews)
    try:
        key.verify(base64.b64decode(signature), proven)
    except InvalidSignature:
        return False
    return True


def _proven(agent: str, csr: str, signing: str, renews: str) -> bytes:
    # JSON keeps the parts apart: no two requests have the same bytes.
    return _DOMAIN + json.dumps([agent, csr, signing, renews]).encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
