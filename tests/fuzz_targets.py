"""What is fuzzed: every decoder that reads bytes of strangers, with the law that it must keep.

A target takes any bytes and tells whether they are accepted. It lets the documented refusals pass and nothing else, and
those must be short; what is accepted must come back the same from its own encoding. Seeds are inputs that are accepted,
for the fuzzer to begin from.
"""

import base64
import hashlib
import json
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from run_support import plan, ref, shape, trained

from fedpipe_coordinator.aggregation.gate import RefusedUpdateError, check_offer, check_update
from fedpipe_coordinator.security.authority import new_authority, new_login_key, new_signing_key
from fedpipe_wire import enrolment, envelope
from fedpipe_wire.agent_messages import Presence
from fedpipe_wire.blob_bits import BlobError, decode_bitmap, encode_bitmap
from fedpipe_wire.certificates import CertificateError, load_certificate, read_fingerprint, to_pem
from fedpipe_wire.coordinator_messages import Ack, TrainTask
from fedpipe_wire.enrolment import Bundle, EnrolmentError, Request
from fedpipe_wire.envelope import Envelope, EnvelopeError
from fedpipe_wire.message_values import JobTerms
from fedpipe_wire.messages import (
    SCHEMA_VERSION,
    MessageError,
    decode_from_agent,
    decode_from_coordinator,
    encode,
)
from fedpipe_wire.sealing import COORDINATOR
from fedpipe_wire.tensors import write_tensors
from fedpipe_wire.topics import TopicError, Topics

_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_TOPICS = Topics("f")
_SHAPE, _PLAN = shape(), plan("a", 1)
_SCRATCH = Path(tempfile.mkdtemp(prefix="fedpipe-fuzz-"))
_CHUNKS = 77
LONGEST_REFUSAL = 4096
_DER = b"DER:"


@dataclass(frozen=True, slots=True)
class Target:
    """A decoder under test.

    Attributes:
        law: Whether an input is accepted; raises AssertionError, or whatever else, where the decoder fails.
        seeds: Inputs that are accepted.
        largest: Longest input that is tried, in bytes.
    """

    law: Callable[[bytes], bool]
    seeds: tuple[bytes, ...]
    largest: int = 8192


def _check_short(error: Exception) -> None:
    assert len(str(error)) < LONGEST_REFUSAL, "a refusal repeats its input"


def messages(data: bytes) -> bool:
    """Payloads of either side, on the channel that the first byte says."""
    channels = ("presence", "profile", "report", "contribution", "task", "ack", "blob", "run")
    channel, payload = channels[data[0] % len(channels)] if data else "report", data[1:]
    accepted = False
    for decode in (decode_from_agent, decode_from_coordinator):
        try:
            message = decode(channel, payload, SCHEMA_VERSION)
        except MessageError as error:
            _check_short(error)
            continue
        assert decode(channel, encode(message), SCHEMA_VERSION) == message
        accepted = True
    return accepted


def packets(data: bytes) -> bool:
    """Topics and envelopes; lines of the input are a topic, then names and values."""
    topic, *rest = data.decode(errors="replace").split("\n")
    accepted = True
    try:
        address = _TOPICS.parse(topic)
        assert address.agent is None or "/" not in address.agent
    except TopicError as error:
        _check_short(error)
        accepted = False
    properties = dict(zip(rest[::2], rest[1::2], strict=False))
    try:
        outside = envelope.parse(properties)
    except EnvelopeError as error:
        _check_short(error)
        return accepted
    assert envelope.parse(outside.properties()) == outside
    return accepted


def gate(data: bytes) -> bool:
    """Whole update files; what passes has exactly the plan's tensors, all finite."""
    path = _SCRATCH / "update.safetensors"
    path.write_bytes(data)
    offer = trained("a", 1)
    size = max(1, len(data))
    try:
        check_offer(_SHAPE, _PLAN, offer.model_copy(update={"update": offer.update.model_copy(update={"size": size})}))
        check_update(path, _SHAPE, _PLAN)
    except RefusedUpdateError as error:
        _check_short(error)
        return False
    numbers = np.frombuffer(data[8 + int.from_bytes(data[:8], "little") :], dtype="<f4")
    assert len(numbers) == sum(values.size for values in _update().values())
    assert np.isfinite(numbers).all()
    return True


def bitmap(data: bytes) -> bool:
    """Bitmaps as text, for a number of chunks that the first byte says."""
    count, text = (data[0] + 1 if data else 1), data[1:].decode(errors="replace")
    try:
        bits = decode_bitmap(text, count)
    except BlobError:
        return False
    assert 0 <= bits < 1 << count
    assert decode_bitmap(encode_bitmap(bits, count), count) == bits
    return True


def bundle(data: bytes) -> bool:
    """Bundles; what passes is of one federation and holds keys. After `_DER`, a certificate within a good bundle."""
    if data.startswith(_DER):
        which = ("authority", "login", "signing", "coordinator")[data[len(_DER)] % 4] if data[len(_DER) :] else "login"
        data = _spliced(_GOOD_BUNDLE, which, "CERTIFICATE", data[len(_DER) + 1 :])
    try:
        read = enrolment.decode(Bundle, data)
        membership = enrolment.check_bundle(read, _NOW)
    except (EnrolmentError, CertificateError) as error:
        _check_short(error)
        return False
    assert membership.coordinator_keys
    assert enrolment.decode(Bundle, enrolment.encode(read)) == read
    return True


def request(data: bytes) -> bool:
    """Requests; what passes is signed by the keys that it names. After `_DER`, a login request within a good one."""
    if data.startswith(_DER):
        data = _spliced(_GOOD_REQUEST, "login_request", "CERTIFICATE REQUEST", data[len(_DER) :])
    try:
        read = enrolment.decode(Request, data)
        csr, signing = enrolment.check_request(read)
    except EnrolmentError as error:
        _check_short(error)
        return False
    assert csr.is_signature_valid
    assert signing.public_bytes_raw().hex() == read.signing_key
    assert enrolment.decode(Request, enrolment.encode(read)) == read
    return True


def certificate(data: bytes) -> bool:
    """Certificates in PEM, and fingerprints as people type them."""
    text, accepted = data.decode(errors="replace"), True
    if data.startswith(_DER):
        text = _pem("CERTIFICATE", data[len(_DER) :])
    try:
        read = load_certificate(text, "the certificate")
        assert load_certificate(to_pem(read), "the certificate") == read
    except CertificateError as error:
        _check_short(error)
        accepted = False
    try:
        shown = read_fingerprint(text)
    except CertificateError as error:
        _check_short(error)
        return accepted
    assert read_fingerprint(shown) == shown
    return True


def _pem(kind: str, der: bytes) -> str:
    lines = textwrap.wrap(base64.b64encode(der).decode(), 64)
    return "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----", ""])


def _der(pem: str) -> bytes:
    return base64.b64decode("".join(pem.strip().splitlines()[1:-1]))


def _spliced(file: bytes, key: str, kind: str, der: bytes) -> bytes:
    return json.dumps(json.loads(file) | {key: _pem(kind, der)}).encode()


def _update() -> dict[str, NDArray[np.float32]]:
    sizes: dict[str, tuple[int, ...]] = {
        "up.lora_A": (2, 8),
        "up.lora_B": (32, 2),
        "out.lora_A": (1, 8),
        "out.lora_B": (8, 1),
        "head:head.weight": (3, 8),
        "head:head.bias": (3,),
    }
    return {name: np.full(size, 0.25, dtype=np.float32) for name, size in sizes.items()}


def _update_file() -> bytes:
    path = _SCRATCH / "seed.safetensors"
    write_tensors(path, _update())
    return path.read_bytes()


def _enrolment_files() -> tuple[bytes, bytes]:
    authority, login, signing = new_authority("f", _NOW), new_login_key(), new_signing_key()
    asked = enrolment.make_request("bank", login, signing, new_signing_key())

    def signed(name: str) -> str:
        return to_pem(authority.issue(name, new_signing_key().public_key(), "signing", _NOW, 30))

    given = Bundle(
        federation="f",
        agent="bank",
        host="broker.example.org",
        port=8883,
        authority=to_pem(authority.certificate),
        login=to_pem(authority.issue("bank", login.public_key(), "login", _NOW, 30)),
        signing=signed("bank"),
        coordinator=signed(COORDINATOR),
    )
    return enrolment.encode(asked), enrolment.encode(given)


def _messages() -> tuple[bytes, ...]:
    terms = JobTerms(
        name="claims",
        model="m",
        task="causal-lm",
        dataset="d",
        seed=1,
        sequence_length=16,
        evaluation_examples=8,
        max_rank=4,
        batch_sizes=(1, 2),
    )
    task = TrainTask(run="r1", round=1, terms=terms, adapter=ref("0" * 64), plan=_PLAN)
    return (
        b"\0" + encode(Presence(state="online", session="s", instance="i")),
        b"\2" + encode(trained("a", 1)),
        b"\4" + encode(task),
        b"\5" + encode(Ack(run="r1", round=1, sha256="0" * 64, accepted=True)),
    )


def targets() -> Mapping[str, Target]:
    """All targets, by name."""
    asked, given = json.loads(_GOOD_REQUEST), json.loads(_GOOD_BUNDLE)
    login = _der(given["login"])
    outside = Envelope(1, "id", 7, "0123456789abcdef", "A" * 86 + "==").properties()
    lines = "\n".join(["fedpipe/f/agents/bank/up/report", *(part for pair in outside.items() for part in pair)])
    chunk = f"fedpipe/f/agents/bank/up/blob/{hashlib.sha256(b'').hexdigest()}/3"
    return {
        "messages": Target(messages, _messages()),
        "packets": Target(packets, (lines.encode(), chunk.encode()), 2048),
        "gate": Target(gate, (_update_file(),), 4096),
        "bitmap": Target(bitmap, (bytes([_CHUNKS - 1]) + encode_bitmap(5, _CHUNKS).encode(),), 512),
        "bundle": Target(bundle, (_GOOD_BUNDLE, _DER + b"\1" + login, _DER + b"\0" + _der(given["authority"]))),
        "request": Target(request, (_GOOD_REQUEST, _DER + _der(asked["login_request"]))),
        "certificate": Target(certificate, (b"01" * 32,), 4096),
    }


_GOOD_REQUEST, _GOOD_BUNDLE = _enrolment_files()
