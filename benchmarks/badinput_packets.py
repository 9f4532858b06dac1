"""Packets that no honest agent sends, from one with real certificates: outsides, seals, topics, forms and chunks.

Owns what is sent in each of these cases. Where a packet's content is good, it names a run of its own, so that a
coordinator that acted on it would answer; else nobody could tell silence from acceptance.
"""

import base64
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.badinput_cases import AcceptedError, Case
from benchmarks.badinput_mallory import Mallory
from benchmarks.badinput_yard import Yard
from fedpipe_wire.agent_messages import Presence, Refused
from fedpipe_wire.blob_bits import encode_bitmap
from fedpipe_wire.coordinator_messages import EndTask
from fedpipe_wire.messages import encode
from fedpipe_wire.sealing import Sealer

KIND = "packet"
NAME = "[a-z0-9-]"
ESCAPE = "\x1b]0;owned\x07\x1b[2J"
Properties = dict[str, str]
Change = Callable[[Properties], Properties]


def _set(**changes: str | None) -> Change:
    """Other user properties; None takes one away."""

    def change(properties: Properties) -> Properties:
        after: dict[str, str | None] = {**properties, **changes}
        return {name: value for name, value in after.items() if value is not None}

    return change


def _flipped(properties: Properties) -> Properties:
    signature = bytearray(base64.b64decode(properties["s"]))
    signature[10] ^= 1
    return properties | {"s": base64.b64encode(signature).decode()}


MALFORMED, FORGED = r"\[malformed\]", r"\[forged\]"
OUTSIDES: Mapping[str, tuple[Change, str]] = {
    "no properties": (lambda _: {}, MALFORMED),
    "no counter": (_set(n=None), MALFORMED),
    "no version": (_set(v=None), MALFORMED),
    "version 0": (_set(v="0"), MALFORMED),
    "version 2": (_set(v="2"), FORGED),
    "version in words": (_set(v="one"), MALFORMED),
    "version of 400 digits": (_set(v="9" * 400), MALFORMED),
    "a counter of 400 digits": (_set(n="9" * 400), MALFORMED),
    "a counter below zero": (_set(n="-1"), MALFORMED),
    "a counter of 2^63": (_set(n=str(1 << 63)), MALFORMED),
    "a counter with a fraction": (_set(n="1.5"), MALFORMED),
    "a counter in Arabic digits": (_set(n="٣٤"), MALFORMED),
    "a counter that is raised": (lambda found: found | {"n": str(int(found["n"]) + 1)}, FORGED),
    "no message id": (_set(id=""), MALFORMED),
    "a message id of 500 characters": (_set(id="a" * 500), MALFORMED),
    "a message id with spaces": (_set(id="a b"), MALFORMED),
    "a will's message id": (_set(id="will-1"), FORGED),
    "an instance of 10,000 characters": (_set(i="0" * 10_000), MALFORMED),
    "another instance": (_set(i="ab" * 16), FORGED),
    "17 properties": (lambda found: found | {f"x{number}": "" for number in range(17)}, MALFORMED),
    "a property of 60,000 characters": (_set(x="x" * 60_000), MALFORMED),
    "unsigned": (_set(k=None, s=None), r"\[unsigned\]"),
    "a signature without a key": (_set(k=None), MALFORMED),
    "a key without a signature": (_set(s=None), MALFORMED),
    "a signature in other digits": (_set(s="!" * 88), MALFORMED),
    "a signature with one other bit": (_flipped, FORGED),
    "a signature of zeros": (_set(s=base64.b64encode(bytes(64)).decode()), FORGED),
    "a key of nobody": (_set(k="0" * 16), r"\[unknown-key\]"),
}


@dataclass
class Sender:
    """Sends one bad packet, and tells what came of it.

    Attributes:
        yard: Where.
    """

    yard: Yard

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)

    @property
    def mallory(self) -> Mallory:
        """Who sends."""
        return self.yard.mallory

    def good(self) -> tuple[str, bytes]:
        """The name of a run of its own, and a payload that is answered if it is listened to."""
        run = f"case-{next(self._numbers)}"
        return run, encode(Refused(run=run, round=0, reason="a case"))

    def tell(self, act: Callable[[], None], run: str = "") -> str:
        """What the coordinator says of something; raises AcceptedError where it answers."""
        said = self.yard.said_of(act)
        if run and f"run {run}" in said:
            raise AcceptedError(f"the coordinator looked for run {run}: {said}")
        return said

    def outside(self, change: Change) -> str:
        """A good payload in a changed envelope."""
        run, payload = self.good()
        topic = self.mallory.topics.up(self.mallory.name, "report")
        properties = change(self.mallory.sealer.seal(topic, payload).properties())
        return self.tell(lambda: self.mallory.publish(topic, payload, properties), run)

    def sealed_by(self, sealer: Sealer, channel: str = "report", *, retain: bool = False) -> str:
        """A good payload, sealed by somebody or for something else."""
        run, payload = self.good()
        topic = self.mallory.topics.up(self.mallory.name, "report")
        sealed_for = self.mallory.topics.up(sealer.sender, channel)
        properties = sealer.seal(sealed_for, payload, retain=retain).properties()
        return self.tell(lambda: self.mallory.publish(topic, payload, properties), run)

    def other_payload(self) -> str:
        """A seal of another payload."""
        run, payload = self.good()
        topic = self.mallory.topics.up(self.mallory.name, "report")
        properties = self.mallory.sealer.seal(topic, payload.replace(b"a case", b"a face")).properties()
        return self.tell(lambda: self.mallory.publish(topic, payload, properties), run)

    def twice(self, *, between: int) -> str:
        """The same packet again, after some others; the first is answered, the second must not be."""
        run, payload = self.good()
        topic = self.mallory.topics.up(self.mallory.name, "report")
        properties = self.mallory.sealer.seal(topic, payload).properties()
        self.mallory.publish(topic, payload, properties)
        self.mallory.wait_for(EndTask, lambda task: task.run == run)
        for _ in range(between):
            self.mallory.fence()
        return self.tell(lambda: self.mallory.publish(topic, payload, properties), run)

    def old(self) -> str:
        """A counter far below the newest one that was heard."""
        run, payload = self.good()
        topic = self.mallory.topics.up(self.mallory.name, "report")
        sealer = replace(self.mallory.sealer, next_counter=lambda: 5)
        properties = sealer.seal(topic, payload).properties()
        return self.tell(lambda: self.mallory.publish(topic, payload, properties), run)

    def presence_of_before(self) -> str:
        """An honest presence of an earlier moment, once a newer one was heard."""
        topic = self.mallory.topics.up(self.mallory.name, "presence")
        former = encode(Presence(state="offline", session=f"session-{self.mallory.name}"))
        properties = self.mallory.sealer.seal(topic, former, retain=True).properties()
        self.mallory.say(Presence(state="online", session=f"session-{self.mallory.name}"), retain=True)
        return self.tell(lambda: self.mallory.publish(topic, former, properties, retain=True))

    def form(self, channel: str, payload: bytes) -> str:
        """A sealed packet whose payload is bad."""
        return self.tell(lambda: self.mallory.send(channel, payload))

    def chunk(self, name: str, payload: bytes, *, retain: bool = False) -> str:
        """A chunk, which needs no seal."""
        root = self.mallory.topics.up(self.mallory.name, "blob")
        return self.tell(lambda: self.mallory.publish(f"{root}/{name}", payload, retain=retain))


def _report(**changes: Any) -> bytes:
    good = {"type": "refused", "run": "case", "round": 0, "reason": "a case"}
    return json.dumps({**good, **changes}).encode()


UNFIT = r"\[malformed\].*malformed message"
FORMS: Mapping[str, tuple[str, bytes, str]] = {
    "nothing": ("report", b"", UNFIT),
    "a million spaces": ("report", b" " * 1_000_000, UNFIT),
    "one byte too many": ("report", b" " * 1_000_001, r"\[oversize\]"),
    "1.9 MB": ("report", b"[" * 1_900_000, r"\[oversize\]"),
    "null": ("report", b"null", UNFIT),
    "a list": ("report", b"[]", UNFIT),
    "not JSON": ("report", b"refused", UNFIT),
    "not UTF-8": ("report", b'{"type": "\xff\xfe"}', UNFIT),
    "UTF-16": ("report", _report().decode().encode("utf-16"), UNFIT),
    "cut short": ("report", _report()[:-5], UNFIT),
    "lists 400,000 deep": ("report", b"[" * 400_000, UNFIT),
    "lists 100,000 deep where nobody looks": ("report", _report()[:-1] + b', "x": ' + b"[" * 100_000, UNFIT),
    "objects 100,000 deep": ("report", b'{"a":' * 100_000, UNFIT),
    "pickle": ("report", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.", UNFIT),
    "a type that there is not": ("report", _report(type="exec"), UNFIT),
    "a type that is a list": ("report", _report(type=["refused"]), UNFIT),
    "no type": ("report", b'{"run": "r", "round": 0, "reason": ""}', UNFIT),
    "the coordinator's own message": ("report", b'{"type": "end-task", "run": "r", "reason": ""}', UNFIT),
    "a report among contributions": ("contribution", _report(), r"\[malformed\].*belongs on 'report'"),
    "a report as a presence": ("presence", _report(), r"\[(malformed|forged)\]"),
    "a run that is a path": ("report", _report(run="../../etc/passwd"), UNFIT),
    "a run of 10,000 characters": ("report", _report(run="r" * 10_000), UNFIT),
    "a run with a terminal escape": ("report", _report(run=ESCAPE), UNFIT),
    "a run with a zero byte": ("report", _report(run="r\0"), UNFIT),
    "round -1": ("report", _report(round=-1), UNFIT),
    "round 2^31 + 1": ("report", _report(round=(1 << 31) + 1), UNFIT),
    "a round of 400 digits": ("report", _report(round=10**400), UNFIT),
    "a round of 1e400": ("report", _report().replace(b'"round": 0', b'"round": 1e400'), UNFIT),
    "a round of NaN": ("report", _report(round=float("nan")), UNFIT),
    "a round in words": ("report", _report(round="zero"), UNFIT),
    "a reason of 10,000 characters": ("report", _report(reason="r" * 10_000), UNFIT),
    "a reason of half a character": ("report", _report(reason="\ud800"), UNFIT),
    "a bitmap that is none": (
        "report",
        b'{"type":"blob-missing","sha256":"%s","bitmap":"!"}' % (b"a" * 64),
        "not offered",
    ),
    "a blob of another name": ("report", b'{"type":"blob-missing","sha256":"../../x","bitmap":""}', UNFIT),
}
SHA = "ab" * 32
CHUNKS: Mapping[str, tuple[str, bytes, bool, str]] = {
    "a chunk that nobody asked for": (f"{SHA}/0", bytes(1000), False, "^nothing$"),
    "a chunk of 1.9 MB that nobody asked for": (f"{SHA}/0", bytes(1_900_000), False, "^nothing$"),
    "a chunk of a blob that has no name": ("../0", b"x", False, r"\[wrong-topic\]"),
    "chunk -1": (f"{SHA}/-1", b"x", False, r"\[wrong-topic\]"),
    "chunk 2^20": (f"{SHA}/{1 << 20}", b"x", False, r"\[wrong-topic\]"),
    "a chunk of 400 digits": (f"{SHA}/{'9' * 400}", b"x", False, r"\[wrong-topic\]"),
    "a chunk in words": (f"{SHA}/first", b"x", False, r"\[wrong-topic\]"),
}


def _bitmaps(sender: Sender) -> Iterator[Case]:
    """Requests for chunks of the global adapter, which every agent may ask for."""
    for name, bitmap, says in (
        ("a bitmap that is not base64", "*" * 8, "not base64"),
        ("a bitmap of 200,000 characters", "A" * 200_000, "must have exactly"),
        ("a bitmap of 200,001 characters", "A" * 200_001, UNFIT),
        ("an empty bitmap", "", "must have exactly"),
        ("a bitmap beyond the last chunk", encode_bitmap(0x80, 8), "names chunk 7"),
    ):
        yield Case(KIND, name, partial(_bitmap, sender, bitmap), rf"\[malformed\].*{says}|{says}")


def _bitmap(sender: Sender, bitmap: str) -> str:
    adapter = sender.mallory.in_a_round().adapter.sha256
    payload = json.dumps({"type": "blob-missing", "sha256": adapter, "bitmap": bitmap}).encode()
    return sender.form("report", payload)


def _seals(sender: Sender) -> Iterator[Case]:
    mallory = sender.mallory
    stranger = replace(mallory.sealer, key=Ed25519PrivateKey.generate())
    eve = sender.yard.hostile("eve-1").sealer
    borrowed = replace(eve, sender=mallory.name)
    claimed = _Claiming(mallory.sealer.sender, mallory.sealer.next_counter, eve.key, mallory.sealer.instance)
    yield Case(KIND, "signed with a stranger's key", partial(sender.sealed_by, stranger), r"\[unknown-key\]")
    yield Case(KIND, "signed with another agent's key", partial(sender.sealed_by, borrowed), r"\[unknown-key\]")
    yield Case(
        KIND,
        "signed with another's key under one's own name",
        partial(sender.sealed_by, claimed.named(mallory.sealer.key_name)),
        FORGED,
    )
    yield Case(KIND, "another agent's own message, moved", partial(sender.sealed_by, eve), r"\[unknown-key\]")
    yield Case(KIND, "sealed for another channel", partial(sender.sealed_by, mallory.sealer, "contribution"), FORGED)
    yield Case(KIND, "sealed as a message to keep", partial(sender.sealed_by, mallory.sealer, retain=True), FORGED)
    yield Case(KIND, "the seal of another payload", sender.other_payload, FORGED)
    yield Case(KIND, "said twice", partial(sender.twice, between=0), r"\[replayed\]")
    yield Case(KIND, "said again after others", partial(sender.twice, between=20), r"\[replayed\]")
    yield Case(KIND, "an old counter", sender.old, r"\[replayed\]")
    yield Case(KIND, "a presence of before", sender.presence_of_before, r"\[replayed\]")


class _Claiming(Sealer):
    """Names a key that it has not."""

    def named(self, key_name: str) -> "Sealer":
        """With this name of a key."""
        object.__setattr__(self, "key_name", key_name)
        return self


def cases(yard: Yard) -> list[Case]:
    """All of this kind."""
    sender = Sender(yard)
    found = [Case(KIND, name, partial(sender.outside, change), says) for name, (change, says) in OUTSIDES.items()]
    found += _seals(sender)
    found += [
        Case(KIND, f"payload: {name}", partial(sender.form, channel, payload), says)
        for name, (channel, payload, says) in FORMS.items()
    ]
    found += [
        Case(KIND, name, partial(sender.chunk, topic, payload, retain=retain), says)
        for name, (topic, payload, retain, says) in CHUNKS.items()
    ]
    found += _bitmaps(sender)
    return found
