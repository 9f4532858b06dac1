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

from fedpipe_coordinator.home_lock import already_running, holder

SOCKET_NAME = "control.sock"
MAX_REQUEST_BYTES = 1_000_000
POLL_S = 0.5
LOOK_S = 5.0
"""How long it may take to see whether somebody serves a socket."""
ASK_S = 10.0
"""How long a client may take for its question, once it is connected."""
TAKE_S = 120.0
"""How long a client may leave its answers lying; one that is stopped must not be waited for without end."""


class ControlError(Exception):
    """The coordinator of this folder is not there, or did not answer."""


class ControlBusyError(ControlError):
    """The coordinator of this folder runs, and cannot be asked at this moment."""


class RequestTooLargeError(ControlError):
    """A request is larger than the socket takes."""


class ControlSocketError(ControlError):
    """The socket cannot be made."""


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

    def __init__(self, home: Path, post: Callable[[ControlRequest], None], *, ask_s: float = ASK_S) -> None:
        """Open the socket.

        Args:
            home: the federation's folder.
            post: takes requests, in a thread of each.
            ask_s: how long a client may take for its question.

        Raises:
            AlreadyRunningError: if another coordinator serves this folder.
            ControlSocketError: if the socket cannot be made.
        """
        self._path = path = home / SOCKET_NAME
        refuse_second(home)
        self._stopping = threading.Event()
        try:
            path.unlink(missing_ok=True)
            with _directory(home) as short:
                self._server = _Server(f"{short}/{SOCKET_NAME}", _handler(post, self._stopping, ask_s))
            path.chmod(0o600)
            self._inode = path.stat().st_ino
        except OSError as error:
            raise ControlSocketError(
                f"the socket {path} cannot be made: {error.strerror or error}. Remove what lies in its place, and make "
                "the folder writable for this user"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and remove the socket, unless another has taken its place."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()


def _handler(
    post: Callable[[ControlRequest], None], stopping: threading.Event, ask_s: float
) -> type[socketserver.StreamRequestHandler]:
    """What serves one client, in a thread of its own."""

    class Handler(socketserver.StreamRequestHandler):
        timeout = ask_s

        def handle(self) -> None:
            try:
                line = self.rfile.readline(MAX_REQUEST_BYTES)
            except OSError:  # it asked nothing in time, or is gone
                return
            if not line:  # somebody looked whether a coordinator is here
                return
            request = ControlRequest(_parse(line))
            post(request)
            self.connection.settimeout(TAKE_S)
            there = True
            while not stopping.is_set():
                try:
                    reply = request.replies.get(timeout=POLL_S)
                except Empty:
                    continue
                # A client that is gone is served to the end as well: its queue would fill otherwise.
                there = there and self._give(reply)
                if reply is None:
                    return

        def _give(self, reply: dict[str, Any] | None) -> bool:
            """Write a reply; whether there is still somebody who takes it."""
            try:
                self.wfile.write(json.dumps(reply).encode() + b"\n")
                self.wfile.flush()
            except OSError:
                return False
            return True

        def finish(self) -> None:
            with contextlib.suppress(OSError):  # nobody is there to take the rest
                super().finish()

    return Handler


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def ask(home: Path, request: dict[str, Any], *, timeout_s: float | None = 30.0) -> Iterator[dict[str, Any]]:
    """Send a request to the coordinator of a folder and yield its answers.

    They also end where the coordinator goes away in the middle of them: who followed a run looks whether it is over.

    Raises:
        RequestTooLargeError: if the request is larger than the socket takes.
        ControlBusyError: if the coordinator runs and does not answer in time, or cannot be reached.
        ControlError: if no coordinator runs there, or it goes away before the first answer.
    """
    line = json.dumps(request).encode() + b"\n"
    if len(line) > MAX_REQUEST_BYTES:
        raise RequestTooLargeError(
            f"the request has {len(line)} bytes, the coordinator takes at most {MAX_REQUEST_BYTES}: "
            "make the job smaller, such as by fewer labels"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            with _directory(home) as short:
                connection.connect(f"{short}/{SOCKET_NAME}")
            connection.sendall(line)
            with connection.makefile("rb") as answers:
                yield from _replies(answers)
        except TimeoutError as error:
            raise ControlBusyError(
                f"the coordinator in {home} is there{_process(home)} and did not answer within {timeout_s:g} s: it is "
                "stopped, or its disk or processor is very slow. Look at its process and its log, and ask again"
            ) from error
        except (OSError, ValueError) as error:
            if holder(home) is not None:
                raise ControlBusyError(
                    f"the coordinator in {home} is there{_process(home)} and cannot be asked over {SOCKET_NAME}: "
                    f"{error}. It may be starting or ending: ask again; if that does not help, start it again"
                ) from error
            raise ControlError(
                f"no coordinator answers in {home}: {error}. Start it with: fedpipe up {home}"
            ) from error


def _process(home: Path) -> str:
    pid = holder(home)
    return "" if pid is None else f" (process {pid})"


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
        raise already_running(home)


def _alive(home: Path) -> bool:
    if not (home / SOCKET_NAME).exists():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, _directory(home) as short:
        connection.settimeout(LOOK_S)
        try:
            connection.connect(f"{short}/{SOCKET_NAME}")
        except (TimeoutError, BlockingIOError):  # it is there, stopped or overwhelmed
            return True
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
