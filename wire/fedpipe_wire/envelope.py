"""The envelope of a message: MQTT 5 user properties beside the payload, so that the payload stays plain JSON.

Owns the properties `v` (schema version), `id` (message id), `n` (the sender's counter), `i` (which copy of the sender
counts), `k` (which key signed) and `s` (the signature). Never looks at the payload; whether a counter is new and a
signature holds is judged by `sealing.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_PROPERTIES = 16
MAX_VALUE_CHARS = 512
MAX_SCHEMA = 1_000_000
MAX_COUNTER = (1 << 63) - 1
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_INSTANCE = re.compile(r"[0-9a-f]{0,32}")
_KEY_ID = re.compile(r"[0-9a-f]{16}")
_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{85}[AQgw]==")
"""64 bytes in base64; the last digit holds two bits, and other digits would be another text for the same bytes."""


class EnvelopeError(ValueError):
    """The user properties of a packet are not those of a message."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is written on a message's outside.

    Attributes:
        schema: version of the message schema, from 1.
        message_id: 1 to 64 letters, digits, dashes and underscores; alike for every repetition of one message.
        counter: the sender's count of its messages, from 0, never used twice by one instance.
        key: names the key that signed, 16 hexadecimal digits; empty where nothing is signed.
        signature: of Ed25519, 64 bytes in base64; empty where nothing is signed.
        instance: names the state folder that keeps the counter, at most 32 hexadecimal digits: of two machines with one
            name and key, neither makes the other's messages look like replays. Empty for a sender that has only one.

    Raises:
        EnvelopeError: if one of them is out of its range.
    """

    schema: int
    message_id: str
    counter: int
    key: str = ""
    signature: str = ""
    instance: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.schema <= MAX_SCHEMA:
            raise EnvelopeError(f"schema version {self.schema} is outside 1 to {MAX_SCHEMA}")
        if _ID.fullmatch(self.message_id) is None:
            raise EnvelopeError(f"message id {self.message_id[:80]!r} is not 1 to 64 letters, digits, '-' or '_'")
        if not 0 <= self.counter <= MAX_COUNTER:
            raise EnvelopeError(f"counter {self.counter} is outside 0 to {MAX_COUNTER}")
        if _INSTANCE.fullmatch(self.instance) is None:
            raise EnvelopeError(f"instance {self.instance[:80]!r} is not at most 32 hexadecimal digits")
        if not self.key and not self.signature:
            return
        if _KEY_ID.fullmatch(self.key) is None:
            raise EnvelopeError(f"key {self.key[:80]!r} is not 16 hexadecimal digits")
        if _SIGNATURE.fullmatch(self.signature) is None:
            raise EnvelopeError(f"signature {self.signature[:100]!r} is not 64 bytes in base64")

    def properties(self) -> dict[str, str]:
        """User properties to publish with the message."""
        signed = {"k": self.key, "s": self.signature} if self.signature else {}
        copy = {"i": self.instance} if self.instance else {}
        return {"v": str(self.schema), "id": self.message_id, "n": str(self.counter)} | copy | signed


def parse(properties: Mapping[str, str]) -> Envelope:
    """Read the envelope of a received packet. Properties of other names are ignored.

    Raises:
        EnvelopeError: if one is missing, too long or out of its range, or if there are too many.
    """
    if len(properties) > MAX_PROPERTIES:
        raise EnvelopeError(f"packet with {len(properties)} user properties, at most {MAX_PROPERTIES} are read")
    missing = [name for name in ("v", "id", "n") if name not in properties]
    if missing:
        raise EnvelopeError(
            f"packet without user property {', '.join(missing)}: "
            "publish through FedPipe, or add v (schema), id and n (counter)"
        )
    for name, value in properties.items():
        if len(value) > MAX_VALUE_CHARS:
            raise EnvelopeError(
                f"user property {name[:40]!r} has {len(value)} characters, at most {MAX_VALUE_CHARS} are read"
            )
    return Envelope(
        _number(properties, "v"),
        properties["id"],
        _number(properties, "n"),
        properties.get("k", ""),
        properties.get("s", ""),
        properties.get("i", ""),
    )


def _number(properties: Mapping[str, str], name: str) -> int:
    text = properties[name]
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_COUNTER)) and text == str(int(text))):
        raise EnvelopeError(f"user property {name!r} is {text[:40]!r}, not a whole number")
    return int(text)
