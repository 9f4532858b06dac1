"""A man in the middle: a TCP proxy that ends nobody's connection, reads MQTT 5, and changes what a broker delivers.

Owns packets as bytes: which are publications, and how one is taken apart and put together (MQTT 5.0, sections 2.1 and
3.3). What is done with a publication is its user's matter.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_PUBLISH = 3
_USER_PROPERTY = 0x26
_HEADER = 2
"""Bytes of a length before a text."""


@dataclass(frozen=True)
class Published:
    """A PUBLISH packet; `other` are properties that are not of its user, as bytes. `packet_id` only above QoS 0."""

    topic: str
    payload: bytes
    properties: tuple[tuple[str, str], ...] = ()
    retain: bool = False
    qos: int = 0
    duplicate: bool = False
    packet_id: int = 0
    other: bytes = b""

    def encode(self) -> bytes:
        """The packet's bytes."""
        properties = self.other + b"".join(
            bytes((_USER_PROPERTY,)) + _text(name) + _text(value) for name, value in self.properties
        )
        identifier = struct.pack(">H", self.packet_id) if self.qos else b""
        body = _text(self.topic) + identifier + _length(len(properties)) + properties + self.payload
        flags = _PUBLISH << 4 | self.duplicate << 3 | self.qos << 1 | self.retain
        return bytes((flags,)) + _length(len(body)) + body


Tamper = Callable[[Published], Sequence[Published]]
"""What comes in place of a publication: nothing, it, another one, several."""


def decode(flags: int, body: bytes) -> Published:
    """Take a PUBLISH packet apart."""
    topic, at = _read_text(body, 0)
    qos, packet_id = flags >> 1 & 3, 0
    if qos:
        (packet_id,) = struct.unpack_from(">H", body, at)
        at += _HEADER
    size, at = _read_length(body, at)
    end, pairs, other = at + size, list[tuple[str, str]](), b""
    while at < end:
        if body[at] != _USER_PROPERTY:
            other = body[at:end]  # Mosquitto writes its own after the user's
            break
        name, at = _read_text(body, at + 1)
        value, at = _read_text(body, at)
        pairs.append((name, value))
    return Published(
        topic, body[end:], tuple(pairs), bool(flags & 1), qos, bool(flags >> 3 & 1), packet_id, bytes(other)
    )


class Proxy:
    """Stands before a broker, on a loopback port of its own.

    Args:
        port: the broker's.

    Attributes:
        port: where to connect instead.
        tamper: what is done with each publication that the broker delivers.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.tamper: Tamper = lambda published: [published]
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        for each in (self._server, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._upstream))
                self._sockets += [near, far]
                threading.Thread(target=self._carry, args=(near, far), daemon=True).start()
                threading.Thread(target=self._carry_changed, args=(far, near), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)

    def _carry_changed(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            for flags, body in _packets(source):
                if flags >> 4 == _PUBLISH:
                    for each in self.tamper(decode(flags, body)):
                        target.sendall(each.encode())
                else:
                    target.sendall(bytes((flags,)) + _length(len(body)) + body)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def in_the_middle(port: int) -> Iterator[Proxy]:
    """A proxy for the time of a block."""
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()


def _packets(source: socket.socket) -> Iterator[tuple[int, bytes]]:
    with source.makefile("rb") as stream:
        while first := stream.read(1):
            size, shift = 0, 0
            while True:
                (byte,) = stream.read(1)
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:  # the highest bit tells that another byte follows
                    break
            body = stream.read(size)
            if len(body) < size:
                return
            yield first[0], body


def _length(size: int) -> bytes:
    found = b""
    while True:
        size, byte = divmod(size, 128)
        found += bytes((byte | (128 if size else 0),))
        if not size:
            return found


def _read_length(data: bytes, at: int) -> tuple[int, int]:
    size, shift = 0, 0
    while True:
        byte = data[at]
        size |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:  # as above
            return size, at


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">H", len(data)) + data


def _read_text(data: bytes, at: int) -> tuple[str, int]:
    (size,) = struct.unpack_from(">H", data, at)
    return data[at + _HEADER : at + _HEADER + size].decode(), at + _HEADER + size
