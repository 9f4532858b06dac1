"""Seals on messages: an Ed25519 signature over topic, sender, envelope and payload, and the check of all of it.

Owns what is signed and in which order a received packet is judged. A run's name stands in the payload, so it is signed
with it. Chunks of blobs carry no seal: their name is the hash of the whole, and stands in a sealed message.

A broker may deliver late or never; with seals it can do nothing else: it cannot write, change, repeat or move any.
"""

import base64
import hashlib
import struct
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedpipe_wire import envelope
from fedpipe_wire.envelope import Envelope, EnvelopeError
from fedpipe_wire.messages import SCHEMA_VERSION
from fedpipe_wire.replay import Heard
from fedpipe_wire.transport import Received

COORDINATOR = "_coordinator"
"""The coordinator's name among senders; no agent can be named so."""
WILL = "will-"
"""How the message id of a last will begins."""
MAX_INSTANCES = 256
"""How many state folders may count under one key: what a sender can have remembered of it is bounded."""
RETAINED_BY_AGENTS = frozenset({"presence", "profile"})
RETAINED_BY_COORDINATOR = frozenset({"run"})
"""Topics, by their last level, whose last message the broker keeps."""
_DOMAIN = b"fedpipe message 1"
_KEY_ID_DIGITS = 16

Fault = Literal["malformed", "unsigned", "unknown-sender", "unknown-key", "forged", "replayed", "retained"]


class SealError(ValueError):
    """A packet whose seal does not hold; `fault` says in which way, for the record."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def key_id(key: Ed25519PublicKey) -> str:
    """Names a public key: the first 16 hexadecimal digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:_KEY_ID_DIGITS]


def signed_bytes(sender: str, topic: str, outside: Envelope, payload: bytes, *, retain: bool) -> bytes:
    """What a signature is over; every part with its length before it, so that no two messages have the same bytes."""
    parts = (
        _DOMAIN,
        sender.encode(),
        topic.encode(),
        str(outside.schema).encode(),
        outside.message_id.encode(),
        str(outside.counter).encode(),
        outside.instance.encode(),
        b"retain" if retain else b"",
        payload,
    )
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


@dataclass(frozen=True, slots=True)
class Sealer:
    """Makes the envelopes of one sender's messages.

    Attributes:
        sender: The agent's name, or `COORDINATOR`.
        next_counter: Gives a number that was never used before.
        key: Signs; None where the federation was made without keys.
        instance: Names whose counter that is, where there may be two of this sender.
        key_name: Names the key, as `key_id`; empty without one.
    """

    sender: str
    next_counter: Callable[[], int]
    key: Ed25519PrivateKey | None = None
    instance: str = ""
    key_name: str = field(init=False, default="")

    def __post_init__(self) -> None:
        if self.key is not None:
            object.__setattr__(self, "key_name", key_id(self.key.public_key()))

    def seal(self, topic: str, payload: bytes, *, retain: bool = False, message_id: str | None = None) -> Envelope:
        """The envelope of a message; each call uses up a counter."""
        name = message_id or uuid.uuid4().hex
        plain = Envelope(SCHEMA_VERSION, name, self.next_counter(), instance=self.instance)
        if self.key is None:
            return plain
        signature = self.key.sign(signed_bytes(self.sender, topic, plain, payload, retain=retain))
        text = base64.b64encode(signature).decode()
        return replace(plain, key=self.key_name, signature=text)


Keys = Mapping[str, Ed25519PublicKey]
"""A sender's public keys, by `key_id`."""


class Inspector:
    """Judges what was received. Used by one thread.

    Args:
        keys: The keys of a sender that count now, None for a sender that is not of this federation; None in its place
            where the federation was made without keys, and nothing but counters can be judged.
        heard: What was heard before, by `sender/key/instance`, as `dirty` gave it out.
        retained: Topics, by their last level, whose message the broker keeps.
        look_again: Brings the keys up to date; called before a sender or key is called unknown, for an agent that was
            just enrolled or renewed says so once.
    """

    def __init__(
        self,
        keys: Callable[[str], Keys | None] | None,
        heard: Mapping[str, Heard],
        retained: frozenset[str] = frozenset(),
        *,
        look_again: Callable[[], None] = lambda: None,
    ) -> None:
        self._keys, self._retained, self._look_again = keys, retained, look_again
        self._heard = dict(heard)
        self._dirty: set[str] = set()

    def inspect(self, sender: str, event: Received) -> Envelope:
        """Judge a packet that its topic says is of this sender; once it is let in, it is not let in again.

        Raises:
            SealError: if it is not to be listened to.
        """
        try:
            outside = envelope.parse(event.properties)
        except EnvelopeError as error:
            raise SealError("malformed", str(error)) from error
        is_state = event.topic.rsplit("/", 1)[-1] in self._retained
        if event.retained and not is_state:
            raise SealError(
                "retained", "the broker kept a message that is said once: nobody of this federation asks that"
            )
        if self._keys is not None:
            keys = self._keys(sender)
            if keys is None or (outside.signature and outside.key not in keys):
                self._look_again()
                keys = self._keys(sender)
            self._check_signature(keys, sender, event, outside, retain=is_state)
        self._check_counter(sender, event, outside, is_state=is_state)
        return outside

    def dirty(self) -> dict[str, Heard]:
        """What was heard since the last call; store it no later than what the messages led to."""
        changed = {name: self._heard[name] for name in sorted(self._dirty)}
        self._dirty.clear()
        return changed

    def _check_signature(
        self, keys: Keys | None, sender: str, event: Received, outside: Envelope, *, retain: bool
    ) -> None:
        if keys is None:
            raise SealError("unknown-sender", f"{sender[:80]!r} is not enrolled, or was revoked")
        if not outside.signature:
            raise SealError("unsigned", f"the message is not signed by {sender}")
        key = keys.get(outside.key)
        if key is None:
            raise SealError("unknown-key", f"key {outside.key} is not one of {sender}'s, or is no longer valid")
        signed = signed_bytes(sender, event.topic, outside, event.payload, retain=retain)
        try:
            key.verify(base64.b64decode(outside.signature), signed)
        except InvalidSignature:
            raise SealError("forged", f"the signature is not {sender}'s for this message on this topic") from None

    def _check_counter(self, sender: str, event: Received, outside: Envelope, *, is_state: bool) -> None:
        # Where nothing is signed, the key is what anybody writes.
        of = f"{sender}/{outside.key if self._keys is not None else ''}/"
        name = f"{of}{outside.instance}"
        heard, counter = self._heard.get(name), outside.counter
        if heard is None:
            heard = self._first_heard(of)
        if is_state and outside.message_id.startswith(WILL):
            return  # the broker says it again whenever the connection breaks; it speaks of its own session only
        if is_state and heard.latest(event.topic, counter):
            after = heard.keeping(event.topic, counter)
        elif heard.fresh(counter) and not is_state:
            after = heard.with_counter(counter)
        else:
            raise SealError("replayed", f"message {counter} of {sender} was heard before, or is older than what was")
        if after is not heard:
            self._heard[name] = after
            self._dirty.add(name)

    def _first_heard(self, of: str) -> Heard:
        if sum(name.startswith(of) for name in self._heard) >= MAX_INSTANCES:
            raise SealError(
                "replayed", f"more than {MAX_INSTANCES} state folders count under this key: enrol its agent anew"
            )
        return Heard()
