"""A `Transport` to a real broker: MQTT 5 on paho-mqtt. The only module that imports paho.

Owns the border to the library: one fresh paho client per connection, whose callbacks only put signals into a queue. A
client that reconnects by itself would send everything it holds at once (more than the broker's Receive Maximum), sleep
where it cannot be stopped, and not say why a connection failed; so `session.py` does that. A callback that raises
would end paho's thread while it still calls itself connected; so the end of its loop is a signal as well.
"""

import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, cast

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from fedpipe_wire.link import Accepted, Acknowledged, Came, Granted, Lost, Signal, Stop, Subscribe
from fedpipe_wire.packets import check_packet
from fedpipe_wire.sending import Publication
from fedpipe_wire.session import MqttOptions, Session
from fedpipe_wire.tls import SILENT, told_tls
from fedpipe_wire.transport import Event, Received, TransportError, Will

__all__ = ["MqttOptions", "MqttTransport"]
_DEFAULTS = MqttOptions()


class MqttTransport:
    """A session with an MQTT 5 broker.

    What was published and not acknowledged when the connection is lost goes out again after the reconnect, first and
    in its order; only `stop` and the end of the process lose it.

    Args:
        host: name or address of the broker.
        port: its TCP port.
        client_id: the session's identity; a second session of the same identity ends the first.
        will: what the broker publishes, retained, when this session dies without `stop`; or what makes it for each
            connection.
        credentials: user name and password.
        tls: makes the context of each connection, so that renewed certificates are used; None speaks plain TCP. Where
            it raises ValueError or OSError, the connection is tried again later.
        options: times and limits.
    """

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        *,
        will: Will | Callable[[], Will] | None = None,
        credentials: tuple[str, str] | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        options: MqttOptions = _DEFAULTS,
    ) -> None:
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._inbox: SimpleQueue[Signal] = SimpleQueue()
        self._handles = itertools.count(1)
        self._thread: threading.Thread | None = None
        self._name = client_id
        dialer = _Dialer(host, port, client_id, will, credentials, tls, options)
        where = f"{host}:{port}"
        self._session = Session(where, dialer.open, self._inbox, self._events, options)

    @property
    def events(self) -> SimpleQueue[Event]:
        """Where every event arrives, in order."""
        return self._events

    @property
    def connected(self) -> bool:
        """Whether the session is up at this moment."""
        return self._session.phase == "up"

    @property
    def resent(self) -> int:
        """Publications sent again because a connection was lost before their acknowledgement came."""
        return self._session.resent

    def start(self) -> None:
        """Begin to connect, in a thread of its own.

        Raises:
            TransportError: if it was started before.
        """
        if self._thread is not None:
            raise TransportError("this session was started before: make a new one")
        name = f"mqtt-{self._name}"
        self._thread = threading.Thread(target=self._session.run, name=name, daemon=True)
        self._thread.start()

    def subscribe(self, pattern: str) -> None:
        """Ask for a topic pattern, now and after every reconnect."""
        self._inbox.put(Subscribe(pattern))

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        properties: Mapping[str, str] | None = None,
    ) -> int | None:
        """Hand a QoS 1 publication over; its handle, or None if the session is down.

        Raises:
            TransportError: if the packet is larger than the broker takes, or the topic has a wildcard.
        """
        check_packet(topic, payload, properties, self._session.limit_bytes)
        if not self.connected:
            return None
        handle = next(self._handles)
        self._inbox.put(Publication(handle, topic, payload, retain, dict(properties or {})))
        return handle

    def stop(self) -> None:
        """Send what was handed over, say goodbye, end the thread; takes at most `drain_s` + `connect_s` or so."""
        if self._thread is not None:
            self._inbox.put(Stop())
            self._thread.join()


@dataclass(frozen=True, slots=True)
class _Dialer:
    """Everything that opening a connection takes."""

    host: str
    port: int
    client_id: str
    will: Will | Callable[[], Will] | None
    credentials: tuple[str, str] | None
    tls: Callable[[], ssl.SSLContext] | None
    options: MqttOptions

    def open(self, number: int, inbox: SimpleQueue[Signal]) -> "_PahoLink":
        """Open the TCP connection and send CONNECT; raises OSError or ValueError."""
        client = _Client(self.client_id, number, inbox, tls=self.tls is not None)
        client.connect_timeout = self.options.connect_s
        if self.tls is not None:
            client.tls_set_context(self.tls())
        if self.credentials is not None:
            client.username_pw_set(*self.credentials)
        will = self.will() if callable(self.will) else self.will
        if will is not None:
            more = _properties(PacketTypes.WILLMESSAGE, will.properties)
            client.will_set(will.topic, will.payload, 1, retain=True, properties=more)
        wishes = _properties(PacketTypes.CONNECT, {})
        wishes.SessionExpiryInterval = self.options.session_expiry_s
        wishes.ReceiveMaximum = self.options.receive_maximum
        keepalive_s = self.options.keepalive_s
        try:
            client.connect(self.host, self.port, keepalive_s, clean_start=False, properties=wishes)
        except (ssl.SSLError, ConnectionResetError) as error:
            if self.tls is None:
                raise
            raise ValueError(told_tls(error, self.host)) from error
        client.loop_start()
        return _PahoLink(client, as_published=self.options.retain_as_published)


class _PahoLink:
    """A `Link` on one paho client. Paho's own lists are thrown away with it."""

    def __init__(self, client: "_Client", *, as_published: bool) -> None:
        self._client = client
        self._how = SubscribeOptions(qos=1, retainAsPublished=as_published)

    def subscribe(self, patterns: tuple[str, ...]) -> int | None:
        wanted = [(pattern, self._how) for pattern in patterns]
        code, packet_id = self._client.subscribe(wanted)
        return packet_id if code == MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def publish(self, publication: Publication) -> int | None:
        pairs = publication.properties
        more = _properties(PacketTypes.PUBLISH, pairs) if pairs else None
        sent = self._client.publish(
            publication.topic,
            publication.payload,
            qos=1,
            retain=publication.retain,
            properties=more,
        )
        return sent.mid if sent.rc == MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def goodbye(self) -> None:
        self._client.disconnect()

    def close(self) -> None:
        # The socket first: paho's loop would wait for acknowledgements that cannot come any more.
        with contextlib.suppress(OSError):
            sock = self._client.socket()
            if sock is not None:
                cast("socket.socket", sock).shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()


class _Client(paho.Client):
    """A paho client that never reconnects and whose callbacks only put signals into the inbox."""

    def __init__(self, client_id: str, number: int, inbox: SimpleQueue[Signal], *, tls: bool) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        self.max_inflight_messages_set(0)  # `Sending` keeps the limit
        self._number, self._inbox = number, inbox
        self._silent = tls
        self.on_connect = self._accepted
        self.on_subscribe = self._granted
        self.on_publish = self._acknowledged
        self.on_message = self._came
        self.on_disconnect = self._lost
        self.on_socket_open = _no_delay

    def loop_forever(
        self,
        timeout: float = 1.0,
        retry_first_connection: bool = False,  # noqa: FBT001, FBT002 -- paho's signature
    ) -> MQTTErrorCode:
        """Paho's network loop; whatever ends it becomes a signal."""
        reason = "it ended"
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception as error:  # noqa: BLE001 -- paho raises many kinds; none may vanish with its thread
            reason = f"the broker sent what cannot be read ({type(error).__name__}: {error})"
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        finally:
            self._inbox.put(Lost(self._number, 0, reason))

    def _accepted(self, _c: Any, _u: Any, flags: paho.ConnectFlags, code: ReasonCode, more: Properties | None) -> None:
        needed = ("MaximumQoS", "RetainAvailable", "WildcardSubscriptionAvailable")
        answer = Accepted(
            self._number,
            bool(flags.session_present),
            code.value,
            str(code),
            getattr(more, "MaximumPacketSize", None),
            getattr(more, "ReceiveMaximum", None),
            tuple(name for name in needed if getattr(more, name, 1) < 1),
        )
        self._silent = False
        self._inbox.put(answer)

    def _granted(self, _c: Any, _u: Any, packet_id: int, codes: Sequence[ReasonCode], _more: Any) -> None:
        self._inbox.put(Granted(self._number, packet_id, tuple(code.value for code in codes)))

    def _acknowledged(self, _c: Any, _u: Any, packet_id: int, code: ReasonCode, _more: Any) -> None:
        self._inbox.put(Acknowledged(self._number, packet_id, code.value, str(code)))

    def _came(self, _c: Any, _u: Any, message: paho.MQTTMessage) -> None:
        # A topic that is not UTF-8 cannot come from a broker that follows the standard; reading it raises.
        with contextlib.suppress(UnicodeDecodeError):
            pairs = dict(getattr(message.properties, "UserProperty", ()))
            payload = bytes(message.payload)
            received = Received(message.topic, payload, bool(message.retain), pairs)
            self._inbox.put(Came(self._number, received))

    def _lost(self, _c: Any, _u: Any, _flags: Any, code: ReasonCode, _more: Any) -> None:
        reason = f"{code}, before the login was answered: it {SILENT}" if self._silent else str(code)
        self._inbox.put(Lost(self._number, code.value, reason))


def _no_delay(_client: Any, _userdata: Any, sock: Any) -> None:
    # A small message must not wait, by Nagle's algorithm, for the acknowledgement of a chunk.
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _properties(packet_type: int, pairs: Mapping[str, str]) -> Properties:
    properties = Properties(packet_type)  # type: ignore[no-untyped-call]  # paho leaves it untyped
    if pairs:
        properties.UserProperty = list(pairs.items())
    return properties
