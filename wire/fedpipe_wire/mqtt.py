"""A session with a real broker: MQTT 5 on paho-mqtt. The only module that imports paho.

Owns the connection: opening it, keeping it, opening it again, and what was handed over but not acknowledged. It never
decides what a message means, and never calls its user.

Three threads meet here and share nothing but queues. The owner's calls and paho's callbacks put signals into one inbox;
the session thread alone takes them out, speaks to paho, and puts events into the owner's queue. Every connection gets
a fresh paho client, because a client that reconnects by itself sends everything it holds at once (more than the
broker's Receive Maximum), sleeps where it cannot be stopped, and does not say why a connection failed.
"""

import contextlib
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Literal

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from fedpipe_wire.packets import check_packet
from fedpipe_wire.sending import Publication, Sending
from fedpipe_wire.transport import Connected, Delivered, Disconnected, Event, Received, TransportError, Will

_FAILURE = 0x80
_TAKEN_OVER = 0x8E
_QUOTA_EXCEEDED = 0x97
_REMEDIES = {
    0x84: "the broker does not speak MQTT 5: use Mosquitto 2.0 or newer",
    0x85: "the broker does not accept this client identifier: check the agent's name",
    0x86: "check user name and password, or enrol this agent again",
    0x87: "this identity may not do that: enrol it, or check the broker's access list",
    0x8A: "this client is banned: ask the broker's owner",
    0x8C: "the broker wants another way of logging in: check its authentication settings",
}
"""CONNACK reasons (MQTT 5.0, 3.2.2.2) that do not pass by waiting, with what to do."""


@dataclass(frozen=True, slots=True)
class MqttOptions:
    """How a session behaves; times in seconds.

    Attributes:
        session_expiry_s: how long the broker keeps subscriptions and queued messages of a session that is down.
        max_packet_bytes: refuse larger packets, besides what the broker says; None for the broker's word only.
        max_in_flight: publications sent and not acknowledged; the broker's Receive Maximum counts as well.
        answer_s: how long a broker may take for CONNACK and SUBACK.
        drain_s: how long `stop` waits for acknowledgements.
    """

    keepalive_s: int = 15
    session_expiry_s: int = 3600
    max_packet_bytes: int | None = None
    max_in_flight: int = 20
    connect_s: float = 5.0
    answer_s: float = 10.0
    backoff_min_s: float = 0.2
    backoff_max_s: float = 5.0
    drain_s: float = 2.0


@dataclass(frozen=True, slots=True)
class _Subscribe:
    pattern: str


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


@dataclass(frozen=True, slots=True)
class _Accepted:
    link: int
    resumed: bool
    code: int
    reason: str
    properties: Any


@dataclass(frozen=True, slots=True)
class _Granted:
    link: int
    packet_id: int
    codes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Acknowledged:
    link: int
    packet_id: int
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Came:
    link: int
    message: Received


@dataclass(frozen=True, slots=True)
class _Lost:
    link: int
    code: int
    reason: str


_FromPaho = _Accepted | _Granted | _Acknowledged | _Came | _Lost
_Signal = _Subscribe | _Stop | Publication | _FromPaho
_Phase = Literal["down", "opening", "up", "leaving", "ended"]


class _Client(paho.Client):
    """One connection of paho: its callbacks only put signals into the inbox, and its end is always told."""

    def __init__(self, client_id: str, link: int, inbox: SimpleQueue[_Signal]) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        self.max_inflight_messages_set(0)  # `Sending` keeps the limit
        self._link, self._inbox = link, inbox
        self.on_connect = self._accepted
        self.on_subscribe = self._granted
        self.on_publish = self._acknowledged
        self.on_message = self._came
        self.on_disconnect = self._lost
        self.on_socket_open = _no_delay

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:  # noqa: FBT001, FBT002 -- paho's signature
        """Paho's network loop; whatever ends it becomes a signal."""
        reason = "the connection ended"
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception as error:  # noqa: BLE001 -- paho raises many kinds on malformed packets; none may vanish
            reason = f"the broker sent what cannot be read ({type(error).__name__}: {error})"
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        finally:
            self._inbox.put(_Lost(self._link, 0, reason))

    def _accepted(self, _c: Any, _u: Any, flags: paho.ConnectFlags, code: ReasonCode, more: Any) -> None:
        self._inbox.put(_Accepted(self._link, bool(flags.session_present), code.value, str(code), more))

    def _granted(self, _c: Any, _u: Any, packet_id: int, codes: Sequence[ReasonCode], _more: Any) -> None:
        self._inbox.put(_Granted(self._link, packet_id, tuple(code.value for code in codes)))

    def _acknowledged(self, _c: Any, _u: Any, packet_id: int, code: ReasonCode, _more: Any) -> None:
        self._inbox.put(_Acknowledged(self._link, packet_id, code.value, str(code)))

    def _came(self, _c: Any, _u: Any, message: paho.MQTTMessage) -> None:
        # A topic that is not UTF-8 cannot come from a broker that follows the standard; reading it would raise.
        with contextlib.suppress(UnicodeDecodeError):
            properties = dict(getattr(message.properties, "UserProperty", ()))
            came = Received(message.topic, bytes(message.payload), bool(message.retain), properties)
            self._inbox.put(_Came(self._link, came))

    def _lost(self, _c: Any, _u: Any, _flags: Any, code: ReasonCode, _more: Any) -> None:
        self._inbox.put(_Lost(self._link, code.value, f"the connection was lost: {code}"))


class MqttTransport:
    """A `Transport` to an MQTT 5 broker.

    What was published and not acknowledged when the session is lost goes out again after the reconnect, in its order.

    Args:
        host: name or address of the broker.
        port: its TCP port.
        client_id: the session's identity; a second session of the same identity ends the first.
        will: what the broker publishes, retained, when this session dies without `stop`.
        credentials: user name and password.
        tls: a context made by `ssl.create_default_context`; None speaks plain TCP.
        options: times and limits.
    """

    def __init__(  # noqa: PLR0913 -- the parts of a broker's address and identity
        self,
        host: str,
        port: int,
        client_id: str,
        *,
        will: Will | None = None,
        credentials: tuple[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        options: MqttOptions = MqttOptions(),  # noqa: B008 -- frozen
    ) -> None:
        self._host, self._port, self._client_id = host, port, client_id
        self._will, self._credentials, self._tls, self._options = will, credentials, tls, options
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._inbox: SimpleQueue[_Signal] = SimpleQueue()
        self._handles = itertools.count(1)
        self._thread: threading.Thread | None = None
        self._limit_bytes = options.max_packet_bytes
        self._phase: _Phase = "down"
        # From here on only the session thread looks.
        self._client: _Client | None = None
        self._link = 0
        self._patterns: list[str] = []
        self._sending = Sending()
        self._held: list[Received] = []
        self._granting: dict[int, tuple[str, ...]] = {}
        self._resumed = False
        self._due: float | None = 0.0
        self._backoff_s = options.backoff_min_s
        self._said = ""

    @property
    def events(self) -> SimpleQueue[Event]:
        """Where every event arrives, in order."""
        return self._events

    @property
    def connected(self) -> bool:
        """Whether the session is up at this moment."""
        return self._phase == "up"

    def start(self) -> None:
        """Begin to connect, in a thread of its own."""
        if self._thread is not None:
            raise TransportError("this session was started before: make a new one")
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{self._client_id}", daemon=True)
        self._thread.start()

    def subscribe(self, pattern: str) -> None:
        """Ask for a topic pattern, now and after every reconnect."""
        self._inbox.put(_Subscribe(pattern))

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        properties: Mapping[str, str] | None = None,
    ) -> int | None:
        """Hand over a publication; see `Transport.publish`.

        Raises:
            TransportError: if the broker would refuse the packet: too large, or a topic with wildcards.
        """
        check_packet(topic, payload, properties, self._limit_bytes)
        if not self.connected:
            return None
        handle = next(self._handles)
        self._inbox.put(Publication(handle, topic, payload, retain, dict(properties or {})))
        return handle

    def stop(self) -> None:
        """Send what was handed over, say goodbye and end the thread; bounded by `drain_s` and `connect_s`."""
        if self._thread is not None:
            self._inbox.put(_Stop())
            self._thread.join()

    # --- the session thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        stopping = False
        while self._phase != "ended":
            if self._phase == "down" and self._due is not None and time.monotonic() >= self._due:
                self._open()
            try:
                signal = self._inbox.get(timeout=self._patience_s())
            except Empty:
                self._overdue()
                continue
            if isinstance(signal, _Stop):
                stopping = True
                self._due = time.monotonic() + self._options.drain_s
            else:
                self._handle(signal)
            if stopping and (self._phase != "up" or not self._sending):
                self._leave()
        self._drop_client()

    def _patience_s(self) -> float | None:
        return None if self._due is None else max(0.0, self._due - time.monotonic())

    def _overdue(self) -> None:
        """The time of the present phase is up."""
        match self._phase:
            case "opening":
                where = f"{self._host}:{self._port}"
                self._fall(f"{where} did not answer as an MQTT 5 broker within {self._options.answer_s:g} s")
            case "up":
                self._leave()
            case "leaving":
                self._phase = "ended"
            case "down" | "ended":
                pass

    def _handle(self, signal: _Subscribe | Publication | _FromPaho) -> None:
        match signal:
            case Publication():
                self._sending.add(signal)
                self._send()
            case _Subscribe(pattern):
                if pattern not in self._patterns:
                    self._patterns.append(pattern)
                    if self._phase in {"opening", "up"}:
                        self._ask((pattern,))
            case _ if signal.link == self._link and self._client is not None:
                self._hear(signal)
            case _:
                pass  # an echo of a connection that is gone

    def _hear(self, signal: _FromPaho) -> None:
        match signal:
            case _Came(_, message):
                if self._phase == "up":
                    self._events.put(message)
                else:
                    self._held.append(message)
            case _Acknowledged():
                self._settle(signal)
            case _Accepted():
                self._accepted(signal)
            case _Granted(_, packet_id, codes):
                self._granted(self._granting.pop(packet_id, ()), codes)
            case _Lost(_, code, reason):
                if self._phase == "leaving":
                    self._phase = "ended"
                    return
                if code == _TAKEN_OVER:
                    self._backoff_s = self._options.backoff_max_s
                    reason = f"another client logged in as {self._client_id!r}: give each agent its own identity"
                self._fall(reason)

    # --- connecting -------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._link += 1
        client = _Client(self._client_id, self._link, self._inbox)
        client.connect_timeout = self._options.connect_s
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if self._credentials is not None:
            client.username_pw_set(*self._credentials)
        if self._will is not None:
            will = _properties(PacketTypes.WILLMESSAGE, self._will.properties)
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=True, properties=will)
        wishes = Properties(PacketTypes.CONNECT)
        wishes.SessionExpiryInterval = self._options.session_expiry_s
        try:
            client.connect(self._host, self._port, self._options.keepalive_s, clean_start=False, properties=wishes)
        except (OSError, ValueError) as error:
            self._fall(f"cannot reach the broker at {self._host}:{self._port}: {error}")
            return
        self._client, self._phase = client, "opening"
        self._due = time.monotonic() + self._options.answer_s
        client.loop_start()

    def _accepted(self, answer: _Accepted) -> None:
        if answer.code >= _FAILURE:
            remedy = _REMEDIES.get(answer.code)
            reason = f"the broker at {self._host}:{self._port} refused the login: {answer.reason}"
            self._fall(f"{reason}; {remedy}" if remedy else reason, final=remedy is not None)
            return
        lacking = [name for name in ("MaximumQoS", "RetainAvailable") if getattr(answer.properties, name, 1) < 1]
        if lacking:
            self._fall(f"the broker does not offer {', '.join(lacking)}: use Mosquitto 2.0 or newer", final=True)
            return
        limits = (self._options.max_packet_bytes, getattr(answer.properties, "MaximumPacketSize", None))
        self._limit_bytes = min((limit for limit in limits if limit is not None), default=None)
        allowed = getattr(answer.properties, "ReceiveMaximum", self._options.max_in_flight)
        self._sending.limit = min(self._options.max_in_flight, allowed)
        self._resumed = answer.resumed
        if self._patterns:
            self._ask(tuple(self._patterns))
        else:
            self._rise()

    def _ask(self, patterns: tuple[str, ...]) -> None:
        if self._client is not None:
            _, packet_id = self._client.subscribe([(each, SubscribeOptions(qos=1)) for each in patterns])
            if packet_id is not None:
                self._granting[packet_id] = patterns

    def _granted(self, patterns: tuple[str, ...], codes: tuple[int, ...]) -> None:
        refused = [name for name, code in zip(patterns, codes, strict=False) if code >= _FAILURE]
        if refused:
            self._fall(f"the broker refused the subscription to {refused[0]!r}; {_REMEDIES[0x87]}", final=True)
        elif self._phase == "opening" and not self._granting:
            self._rise()

    def _rise(self) -> None:
        self._due, self._said, self._backoff_s = None, "", self._options.backoff_min_s
        self._phase = "up"
        self._events.put(Connected(self._resumed))
        for message in self._held:
            self._events.put(message)
        self._held.clear()
        self._send()

    # --- publishing -------------------------------------------------------------------------------------------

    def _send(self) -> None:
        while self._phase == "up" and self._client is not None and (item := self._sending.next()) is not None:
            sent = self._client.publish(
                item.topic,
                item.payload,
                qos=1,
                retain=item.retain,
                properties=_properties(PacketTypes.PUBLISH, item.properties) if item.properties else None,
            )
            if sent.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return  # the loss of the connection is about to be told
            self._sending.sent(sent.mid)

    def _settle(self, answer: _Acknowledged) -> None:
        if answer.code < _FAILURE:
            publication = self._sending.acknowledged(answer.packet_id)
            if publication is not None:
                self._events.put(Delivered(publication.handle))
            self._send()
        elif answer.code == _QUOTA_EXCEEDED:
            self._fall("the broker is over its quota for this session: raise its queue limits")
        else:
            publication = self._sending.acknowledged(answer.packet_id)
            topic = "?" if publication is None else publication.topic
            remedy = _REMEDIES.get(answer.code, "check the broker's log")
            self._fall(f"the broker refused a publication to {topic!r}: {answer.reason}; {remedy}", final=True)

    # --- ending -----------------------------------------------------------------------------------------------

    def _fall(self, reason: str, *, final: bool = False) -> None:
        """The connection is gone, or is given up: say so once per reason, and try again later unless `final`."""
        was_up = self._phase == "up"
        self._phase = "ended" if final else "down"
        self._drop_client()
        self._sending.connection_lost()
        self._granting.clear()
        self._held.clear()
        self._due = time.monotonic() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, self._options.backoff_max_s)
        if was_up or final or reason != self._said:
            self._events.put(Disconnected(reason, final))
        self._said = reason

    def _leave(self) -> None:
        if self._phase not in {"up", "opening"} or self._client is None:
            self._phase = "ended"
            return
        self._phase, self._due = "leaving", time.monotonic() + 1.0
        self._client.disconnect()

    def _drop_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            # Closing the socket first: paho's loop otherwise waits for acknowledgements that cannot come.
            with contextlib.suppress(OSError, AttributeError):
                client.socket().shutdown(socket.SHUT_RDWR)
            client.loop_stop()


def _no_delay(_client: Any, _userdata: Any, sock: Any) -> None:
    # Small messages must not wait behind Nagle's algorithm for the acknowledgement of a chunk.
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _properties(packet_type: int, pairs: Mapping[str, str]) -> Properties:
    properties = Properties(packet_type)
    if pairs:
        properties.UserProperty = list(pairs.items())
    return properties
