"""The managed broker: a Mosquitto that this process configures, starts, watches and stops.

Owns its configuration, its process and the reasons why it may not start. It never speaks MQTT beyond one login that
tells whether the broker answers; sessions are `fedpipe_wire.mqtt`'s.
"""

import contextlib
import os
import re
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fedpipe_coordinator.broker.config import DATABASE, Guard, Limits, dial_host, write_config
from fedpipe_coordinator.broker.errors import (
    BrokerDiedError,
    BrokerError,
    BrokerMissingError,
    BrokerTooOldError,
    PortInUseError,
)
from fedpipe_coordinator.broker.ports import answers, check_port, free_port, in_use
from fedpipe_coordinator.parent_death import die_with_parent

__all__ = [
    "BrokerDiedError",
    "BrokerError",
    "BrokerMissingError",
    "BrokerTooOldError",
    "ManagedBroker",
    "PortInUseError",
    "find_mosquitto",
    "free_port",
    "mosquitto_version",
    "write_config",
]

OLDEST = (2, 0)
_SEARCH = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/sbin")
_START_S = 15.0
_STOP_S = 10.0
_PORT_TRIES = 5
_PORT_PATIENCE_S = 15.0
_LOG_BYTES = 1 << 20


def find_mosquitto() -> Path:
    """Where the program is: on PATH, or where packages put servers.

    Raises:
        BrokerMissingError: naming the package and how to install it.
        BrokerTooOldError: with the version found and the version needed.
    """
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(_SEARCH))
    if found is None:
        raise BrokerMissingError(
            "mosquitto is not installed: install the package `mosquitto` "
            "(sudo apt-get install mosquitto, or sudo dnf install mosquitto), or name a broker of your own"
        )
    version = mosquitto_version(Path(found))
    if version < OLDEST:
        found_text, oldest = ".".join(map(str, version)), ".".join(map(str, OLDEST))
        raise BrokerTooOldError(f"{found} is version {found_text}, at least {oldest} is needed: upgrade mosquitto")
    return Path(found)


def mosquitto_version(binary: Path) -> tuple[int, ...]:
    """Version of a Mosquitto, as it says itself.

    Raises:
        BrokerMissingError: if it does not run or says none.
    """
    try:
        said = subprocess.run(
            [binary, "-h"], capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokerMissingError(f"{binary} does not run: {error}") from None
    match = re.search(r"mosquitto version (\d+)\.(\d+)(?:\.(\d+))?", said)
    if match is None:
        raise BrokerMissingError(f"{binary} does not say its version; it said {said[:80]!r}")
    return tuple(int(part) for part in match.groups(default="0"))


class ManagedBroker:
    """One Mosquitto as a child process.

    It dies with the thread that called `start` (the kernel's rule for its parent-death signal), so call it from the
    main thread. It is a session of its own: Ctrl-C in the terminal reaches the coordinator, which stops it last.

    Args:
        folder: for its configuration, database and log (`mosquitto.log`).
        host: address to listen on; without a guard it must be a loopback one.
        port: 0 chooses a free one, again at every start that finds it taken.
        guard: who gets in; None lets in everybody on this machine.
        context: makes the TLS context of the login that tells whether it answers; needed with a guard.
        limits: of what it takes.
        extra: more lines of configuration.
    """

    def __init__(
        self,
        folder: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        guard: Guard | None = None,
        context: Callable[[], ssl.SSLContext] | None = None,
        limits: Limits = Limits(),  # noqa: B008 - a frozen value
        extra: Sequence[str] = (),
    ) -> None:
        self.folder, self.host, self.port = folder, host, port
        self._guard, self._context, self._limits = guard, context, limits
        self.log = folder / "mosquitto.log"
        self._config = folder.absolute() / "mosquitto.conf"
        self._any_port = port == 0
        self._extra = tuple(extra)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process, or None when it does not run."""
        return self._process.pid if self._process is not None and self.is_alive else None

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and wait until it answers a login.

        Raises:
            BrokerMissingError: if there is no Mosquitto.
            BrokerTooOldError: if it is older than 2.0.
            PortInUseError: if the port is taken.
            BrokerDiedError: if it ends or does not answer.
            BrokerError: if the host is not loopback, or it runs already.
        """
        if self.is_alive:
            raise BrokerError(f"the broker runs already, as process {self.pid}")
        for attempt in range(_PORT_TRIES):
            if self.port == 0 or (self._any_port and attempt):
                self.port = free_port(self.host)
            try:
                self._start_here(_PORT_PATIENCE_S)
            except PortInUseError:
                if not self._any_port or attempt == _PORT_TRIES - 1:
                    raise
            else:
                return

    def revive(self) -> str:
        """Start it again after it ended by itself, on the same port; returns its last words.

        Raises:
            BrokerError: as `start`.
        """
        words = _last_lines(self.log, 0)
        self.kill()
        self._start_here(0.0)
        return words

    def reload(self) -> None:
        """Let it read its certificates, revocations and access list again; connections stay as they are."""
        if self._process is not None and self.is_alive:
            self._process.send_signal(signal.SIGHUP)

    def restart(self) -> None:
        """End every connection, and let them in again that may come; what it holds is kept.

        Mosquitto checks a certificate when a connection is made, and lets it live on once it is revoked.

        Raises:
            BrokerError: as `start`.
        """
        self.stop()
        self._start_here(_PORT_PATIENCE_S)

    def trim_log(self) -> None:
        """Keep the log from growing without bound: the last of it moves to a file beside, once it is long.

        Raises:
            BrokerError: if the disk does not let it.
        """
        with self._folder_usable():
            if not self.log.exists() or self.log.stat().st_size <= _LOG_BYTES:
                return
            with self.log.open("r+b") as log:
                log.seek(-_LOG_BYTES, os.SEEK_END)
                self.log.with_name(f"{self.log.name}.1").write_bytes(log.read())
                log.truncate(0)  # it is written in append mode

    def _start_here(self, patience_s: float) -> None:
        binary = find_mosquitto()
        with self._folder_usable():
            write_config(self.folder, self.host, self.port, guard=self._guard, limits=self._limits, extra=self._extra)
            self.trim_log()
            check_port(self.host, self.port, self._config, patience_s)
            try:
                self._launch(binary)
            except BrokerDiedError:
                database = self.folder / DATABASE
                if not database.exists():
                    raise
                # What is in it can be done without, and a damaged one must not keep the broker from starting.
                database.replace(database.with_name(f"{DATABASE}.unused"))
                self._launch(binary)

    @contextlib.contextmanager
    def _folder_usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BrokerError(
                f"the broker's folder {self.folder} cannot be used: {error.filename or ''}: {error.strerror or error}. "
                "Make it a folder with room that is writable for this user; what is in it may be removed"
            ) from error

    def stop(self) -> None:
        """Let it save its database and end; kill it if it does not. May be called twice."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _launch(self, binary: Path) -> None:
        with self.log.open("ab") as log:
            begin = log.tell()
            self._process = subprocess.Popen(
                [binary, "-c", self._config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 -- one prepared system call, no locks
            )
        deadline = time.monotonic() + _START_S
        while self._process.poll() is None and time.monotonic() < deadline:
            if answers(dial_host(self.host), self.port, self._context):
                return
            try:
                self._process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
        code = self._process.poll()
        self.kill()
        words = _last_lines(self.log, begin)
        if "Address already in use" in words:
            raise in_use(self.host, self.port)
        ended = f"did not answer within {_START_S:g} s" if code is None else f"ended with code {code}"
        raise BrokerDiedError(f"mosquitto on {self.host}:{self.port} {ended}; the end of {self.log}:\n{words}")


def _last_lines(path: Path, begin: int, most: int = 8) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(begin, file.seek(0, os.SEEK_END) - 65536))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:  # what cannot be told must not hide why it is asked
        return f"({path} cannot be read: {error.strerror})"
    return "\n".join(lines[-most:]) or "(nothing)"
