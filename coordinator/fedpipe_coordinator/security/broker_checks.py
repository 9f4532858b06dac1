"""Does the broker keep everybody where they belong? Real logins with certificates made for the purpose.

Owns the checks that connect. Each makes certificates of an hour for agents of names that nobody else has, tries what
must not work, and goes away; what is published on the way are chunks of a blob that nobody asked for, which every
receiver drops. The names are in no record, so the coordinator listens to none of them.
"""

import secrets
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from queue import Empty
from typing import Self

from fedpipe_coordinator.broker.config import MAX_PACKET_BYTES
from fedpipe_coordinator.security.authority import CANARY_SERIAL, Authority, new_authority, new_login_key
from fedpipe_coordinator.security.doctor import Finding
from fedpipe_coordinator.security.owned_files import write_owned
from fedpipe_wire.certificates import private_pem, to_pem
from fedpipe_wire.mqtt import MqttOptions, MqttTransport
from fedpipe_wire.sealing import COORDINATOR
from fedpipe_wire.tls import client_context
from fedpipe_wire.topics import Topics
from fedpipe_wire.transport import Connected, Delivered, Disconnected, Event, Received, TransportError

LIFE_DAYS = 1 / 24
ANSWER_S = 10.0
QUIET_S = 0.7
"""How long a message may take that must not come; one that may come is waited for."""
_OPTIONS = MqttOptions(connect_s=ANSWER_S, session_expiry_s=0, drain_s=0.2, backoff_min_s=ANSWER_S, backoff_max_s=60.0)
_SHA = "0" * 64
_ACCESS = "let acl_file name the federation's broker/acl, and no plugin allow more"
Context = Callable[[], ssl.SSLContext]


class Surgery:
    """Certificates to try a broker with; a context manager, whose files are gone afterwards.

    Args:
        authority: issues them.
        host: the broker's name or address, as agents know it.
        port: its port.
        now: UTC.
    """

    def __init__(self, authority: Authority, host: str, port: int, now: datetime) -> None:
        self.host, self.port, self._authority, self._now = host, port, authority, now
        self.topics = Topics(authority.federation)
        mark = secrets.token_hex(6)
        self.one, self.other = f"doctor-{mark}-a", f"doctor-{mark}-b"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Make the folder for the files."""
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fedpipe-doctor-")))
        write_owned(self._folder / "ca.crt", to_pem(self._authority.certificate).encode())
        return self

    def __exit__(self, *error: object) -> None:
        """Remove it."""
        self._stack.close()

    def good(self, name: str) -> Context:
        """A certificate that counts."""
        return self._context(self._authority, name, self._now, LIFE_DAYS)

    def expired(self) -> Context:
        """One whose time is over: of the authority's first half hour."""
        began = self._authority.certificate.not_valid_before_utc
        return self._context(self._authority, self.one, began, LIFE_DAYS / 2)

    def revoked(self) -> Context:
        """One of the number that is always on the list."""
        return self._context(self._authority, self.one, self._now, LIFE_DAYS, CANARY_SERIAL)

    def foreign(self) -> Context:
        """One of another authority that calls itself the same."""
        other = new_authority(self._authority.federation, self._now)
        return self._context(other, self.one, self._now, LIFE_DAYS)

    def nameless(self) -> Context:
        """No certificate at all."""

        def make() -> ssl.SSLContext:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(self._folder / "ca.crt")
            return context

        return make

    def _context(
        self, authority: Authority, name: str, now: datetime, days: float, serial: int | None = None
    ) -> Context:
        key = new_login_key()
        certificate = authority.issue(name, key.public_key(), "login", now, days, serial=serial)
        place = self._folder / secrets.token_hex(8)
        write_owned(place.with_suffix(".key"), private_pem(key))
        write_owned(place.with_suffix(".crt"), to_pem(certificate).encode())
        return lambda: client_context(self._folder / "ca.crt", place.with_suffix(".crt"), place.with_suffix(".key"))

    @contextmanager
    def session(self, context: Context | None, *patterns: str) -> Iterator["Try"]:
        """A session that is tried for the time of a block."""
        name = f"fedpipe-doctor-{secrets.token_hex(16)}"
        transport = MqttTransport(self.host, self.port, name, tls=context, options=_OPTIONS)
        for pattern in patterns:
            transport.subscribe(pattern)
        transport.start()
        try:
            yield Try(transport)
        finally:
            transport.stop()


@dataclass(frozen=True, slots=True)
class Try:
    """One session, and what it came to."""

    transport: MqttTransport

    def login(self) -> str:
        """Why the broker did not let it in; empty where it did."""
        event = self._wait(lambda event: isinstance(event, Connected | Disconnected), ANSWER_S + 5)
        if isinstance(event, Connected):
            return ""
        return event.reason if isinstance(event, Disconnected) else "no answer"

    def writes(self, topic: str, payload: bytes = b"") -> bool:
        """Whether the broker took a publication."""
        handle = self.transport.publish(topic, payload)
        if handle is None:
            return False
        event = self._wait(lambda event: isinstance(event, Delivered | Disconnected), ANSWER_S)
        return isinstance(event, Delivered)

    def reads(self, payload: bytes, patience_s: float) -> bool:
        """Whether a message with this payload comes."""
        return (
            self._wait(lambda event: isinstance(event, Received) and event.payload == payload, patience_s) is not None
        )

    def _wait(self, wanted: Callable[[Event], bool], patience_s: float) -> Event | None:
        deadline = time.monotonic() + patience_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                event = self.transport.events.get(timeout=left)
            except Empty:
                return None
            if wanted(event):
                return event
        return None


def check_broker(surgery: Surgery) -> list[Finding]:
    """All checks that connect. Where a proper login does not work, the others would tell nothing."""
    first = check_login(surgery)
    if first.state != "ok":
        return [first]
    refusals = [
        ("plain connection", None, "remove every listener without TLS from the broker"),
        ("no certificate", surgery.nameless(), "set require_certificate true"),
        (
            "certificate of a foreign authority",
            surgery.foreign(),
            "set cafile to the federation's ca.crt, and no other",
        ),
        (
            "expired certificate",
            surgery.expired(),
            "set cafile and require_certificate as docs/external-broker.md says",
        ),
        ("revoked certificate", surgery.revoked(), "set crlfile to the federation's crl.pem, and restart the broker"),
    ]
    findings = [first, *(check_refused(surgery, *refusal) for refusal in refusals)]
    return [*findings, *check_writing(surgery), *check_reading(surgery), check_packets(surgery)]


def check_login(surgery: Surgery) -> Finding:
    """A certificate of this federation gets in."""
    with surgery.session(surgery.good(surgery.one)) as agent:
        problem = agent.login()
    where = f"{surgery.host}:{surgery.port}"
    if problem:
        remedy = "start `fedpipe up`, or your broker; see that its certificate is the one in broker/, and not run out"
        return Finding("login", "failed", f"no login at {where}: {problem}", remedy)
    return Finding("login", "ok", f"{where} lets in who has a certificate")


def check_refused(surgery: Surgery, what: str, context: Context | None, remedy: str) -> Finding:
    """A login that must not work."""
    with surgery.session(context) as stranger:
        problem = stranger.login()
    if problem:
        return Finding(what, "ok", "refused")
    return Finding(what, "failed", "the broker let it in", remedy)


def check_writing(surgery: Surgery) -> list[Finding]:
    """An agent writes its own topics, and no others."""
    topics, one, other = surgery.topics, surgery.one, surgery.other
    chunk = topics.up_chunk(one, _SHA, 0)
    tries = (
        ("own topics", chunk, True),
        ("another's topics", topics.up_chunk(other, _SHA, 0), False),
        ("what another reads", topics.down_chunk(other, _SHA, 0), False),
        ("the broadcast", topics.broadcast_chunk(_SHA, 0), False),
    )
    return [_check_write(surgery, f"writing {what}", topic, may=may) for what, topic, may in tries]


def _check_write(surgery: Surgery, check: str, topic: str, *, may: bool) -> Finding:
    with surgery.session(surgery.good(surgery.one)) as agent:
        problem = agent.login()
        took = not problem and agent.writes(topic)
    if problem:
        return Finding(check, "failed", f"no login: {problem}", "see the broker's log")
    if took == may:
        return Finding(check, "ok", "allowed" if may else "denied")
    return Finding(check, "failed", "denied" if may else "the broker took it", _ACCESS)


def check_reading(surgery: Surgery) -> list[Finding]:
    """An agent reads its own topics, and no others."""
    topics, one, other = surgery.topics, surgery.one, surgery.other
    mark = secrets.token_bytes(16)
    findings = []
    with (
        _in(surgery.session(surgery.good(COORDINATOR))) as coordinator,
        _in(surgery.session(surgery.good(one), topics.all_down(one))) as reader,
        _in(surgery.session(surgery.good(other), topics.all_down(one), "#")) as stranger,
    ):
        told = coordinator.writes(topics.down_chunk(one, _SHA, 0), mark)
        came = told and reader.reads(mark, ANSWER_S)
        findings.append(_expect("reading own topics", came, may=True))
        findings.append(_expect("reading another's topics", stranger.reads(mark, QUIET_S), may=False))
    with (
        _in(surgery.session(surgery.good(COORDINATOR), topics.all_up())) as coordinator,
        _in(surgery.session(surgery.good(other), topics.all_up(), "#")) as stranger,
        _in(surgery.session(surgery.good(one))) as writer,
    ):
        told = writer.writes(topics.up_chunk(one, _SHA, 0), mark)
        came = told and coordinator.reads(mark, ANSWER_S)
        findings.append(_expect("the coordinator reading an agent", came, may=True))
        findings.append(_expect("reading what another writes", stranger.reads(mark, QUIET_S), may=False))
    return findings


@contextmanager
def _in(session: AbstractContextManager[Try]) -> Iterator[Try]:
    """A session once it is logged in, or failed to be: what it is then asked tells."""
    with session as each:
        each.login()
        yield each


def _expect(check: str, came: bool, *, may: bool) -> Finding:  # noqa: FBT001  # what was seen, not a switch
    if came == may:
        return Finding(check, "ok", "allowed" if may else "denied")
    return Finding(check, "failed", "nothing came" if may else "the message came", _ACCESS)


def check_packets(surgery: Surgery) -> Finding:
    """The broker says how large a packet may be, and takes what FedPipe sends."""
    with surgery.session(surgery.good(surgery.one)) as agent:
        problem = agent.login()
        if problem:
            return Finding("packet limit", "failed", f"no login: {problem}", "see the broker's log")
        topic = surgery.topics.up_chunk(surgery.one, _SHA, 0)
        try:
            agent.transport.publish(topic, bytes(MAX_PACKET_BYTES + 1))
        except TransportError:
            return Finding("packet limit", "ok", f"at most {MAX_PACKET_BYTES} bytes")
    return Finding("packet limit", "failed", "none", f"set max_packet_size {MAX_PACKET_BYTES}")
