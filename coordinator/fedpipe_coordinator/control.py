"""How the command line speaks to a running coordinator: JSON lines over a Unix socket in the federation's folder.

Owns the socket, its server thread and the client. What a request means is the service's to decide; only those who may
read the folder can connect.
"""

import contextlib
import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

SOCKET_NAME = "control.sock"
MAX_REQUEST_BYTES = 1_000_000
POLL_S = 0.5


class ControlError(Exception):
    """The coordinator of this folder is not there, or did not answer."""


class AlreadyRunningError(ControlError):
    """Another coordinator serves this folder."""


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """What a client asked; the service puts answers into `replies` and `None` when there are no more."""

    data: dict[str, Any]
    replies: SimpleQueue[dict[str, Any] | None] = field(default_factory=SimpleQueue)

    def answer(self, reply: dict[str, Any]) -> None:
        """Give the one and only answer."""
        self.replies.put(reply)
        self.replies.put(None)


class ControlServer:
    """Takes requests from the socket and hands them to `post`; runs in threads of its own."""

    def __init__(self, home: Path, post: Callable[[ControlRequest], None]) -> None:
        """Open the socket.

        Raises:
            ControlError: if another coordinator serves this folder, or the socket cannot be made.
        """
        path = home / SOCKET_NAME
        refuse_second(home)
        path.unlink(missing_ok=True)
        stopping = threading.Event()

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                line = self.rfile.readline(MAX_REQUEST_BYTES)
                if not line:  # somebody looked whether a coordinator is here
                    return
                request = ControlRequest(_parse(line))
                post(request)
                while not stopping.is_set():
                    try:
                        reply = request.replies.get(timeout=POLL_S)
                    except Empty:
                        continue
                    # A client that is gone is served to the end as well: its queue would fill otherwise.
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        self.wfile.write(json.dumps(reply).encode() + b"\n")
                        self.wfile.flush()
                    if reply is None:
                        return

        with _directory(home) as short:
            try:
                self._server = _Server(f"{short}/{SOCKET_NAME}", Handler)
            except OSError as error:
                raise ControlError(f"the socket {path} cannot be made: {error}") from error
        path.chmod(0o600)
        self._path = path
        self._stopping = stopping
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and remove the socket."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._path.unlink(missing_ok=True)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def ask(home: Path, request: dict[str, Any], *, timeout_s: float | None = 30.0) -> Iterator[dict[str, Any]]:
    """Send a request to the coordinator of a folder and yield its answers.

    They also end where the coordinator goes away in the middle of them: who followed a run looks whether it is over.

    Raises:
        ControlError: if no coordinator runs there, or it goes away before the first answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            with _directory(home) as short:
                connection.connect(f"{short}/{SOCKET_NAME}")
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answers:
                yield from _replies(answers)
        except (OSError, ValueError) as error:
            raise ControlError(
                f"no coordinator answers in {home}: {error}. Start it with: fedpipe up {home}"
            ) from error


def _replies(answers: BinaryIO) -> Iterator[dict[str, Any]]:
    """The answers up to the `null` that says that there are no more."""
    count = 0
    for count, line in enumerate(answers, start=1):  # noqa: B007  # how far it came is what the end asks for
        reply = json.loads(line)
        if reply is None:
            return
        yield reply
    if count == 0:
        raise ConnectionResetError("it went away before it answered")


def _parse(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def refuse_second(home: Path) -> None:
    """Check that no coordinator serves this folder.

    Raises:
        AlreadyRunningError: if one does.
    """
    if _alive(home):
        raise AlreadyRunningError(f"a coordinator is running in {home} already: stop it first, or use another folder")


def _alive(home: Path) -> bool:
    if not (home / SOCKET_NAME).exists():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, _directory(home) as short:
        try:
            connection.connect(f"{short}/{SOCKET_NAME}")
        except OSError:
            return False
        return True


@contextlib.contextmanager
def _directory(home: Path) -> Iterator[str]:
    """A short name of the folder: a socket's path may have 107 bytes, a folder's many more."""
    handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)
