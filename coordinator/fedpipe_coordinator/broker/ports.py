"""Ports of this machine: free ones, taken ones, and whether a broker answers on one.

Owns the sockets that find that out; they are closed at once.
"""

import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from fedpipe_coordinator.broker.errors import BrokerError, PortInUseError
from fedpipe_coordinator.broker.port_holder import port_holder

_LOGIN = bytes.fromhex("10 0d 00 04 4d 51 54 54 05 02 00 3c 00 00 00")
"""An MQTT 5 CONNECT of an empty client identifier with a clean start (MQTT 5.0, 3.1)."""
_CONNACK = 0x20
_LOOK_S = 0.05
_ENDING_S = 2.0
"""How long a port may be held by somebody who cannot be seen, as by a process that is ending."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int, config: Path | None = None, patience_s: float = 0.0) -> None:
    """Check that a port can be listened on; wait for one that a broker with this configuration still holds.

    A broker whose coordinator was killed is told to end by the kernel, and may take a moment to save what it has.

    Raises:
        PortInUseError: naming who listens there, if that can be seen.
        BrokerError: if this user may not listen there.
    """
    began, seen = time.monotonic(), False
    while True:
        try:
            _bind(host, port)
        except PortInUseError:
            holder = port_holder(port)
            gone = holder is None or not any(holder.arguments)  # or about to be: looked at a moment later
            ours = config is not None and holder is not None and str(config) in holder.arguments
            waits = patience_s if ours or (gone and seen) else _ENDING_S if gone else 0.0
            seen = seen or ours
            if time.monotonic() - began >= min(waits, patience_s):
                raise
            time.sleep(_LOOK_S)
        else:
            return


def in_use(host: str, port: int) -> PortInUseError:
    """The error for a port that somebody else holds."""
    holder = port_holder(port)
    who = "another program listens there" if holder is None else f"{holder} listens there"
    return PortInUseError(f"port {port} on {host} is in use: {who}; stop it or choose another port")


def answers(host: str, port: int, context: Callable[[], ssl.SSLContext] | None = None) -> bool:
    """Whether a broker answers a login there; by TLS where a context is given.

    Raises:
        ValueError: if the context cannot be made.
    """
    tls = None if context is None else context()
    try:
        with contextlib.ExitStack() as stack:
            probe = stack.enter_context(socket.create_connection((host, port), timeout=1.0))
            if tls is not None:
                probe = stack.enter_context(tls.wrap_socket(probe, server_hostname=host))
            probe.sendall(_LOGIN)
            answer = probe.recv(1)
    except OSError:  # what TLS says is one as well
        return False
    return bool(answer) and answer[0] == _CONNACK


def _bind(host: str, port: int) -> None:
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Mosquitto does
        try:
            probe.bind(("" if host == "*" else host, port))
        except PermissionError:
            raise BrokerError(f"port {port} may not be opened by this user: choose one from 1024") from None
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise BrokerError(
                    f"{host} is not an address of this machine: name in broker.listen of federation.toml the one that "
                    'the broker listens on, or "*" for all'
                ) from None
            raise in_use(host, port) from None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
