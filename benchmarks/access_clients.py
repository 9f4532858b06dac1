"""The real `mosquitto_pub` and `mosquitto_sub` as one client of a broker would run them.

Owns their command lines and what is read from their output; who should be able to do what is `access.py`'s.
"""

import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

TRY_S = 20.0
"""For one client to get in, say its word and go; a busy machine may be slow."""
_MARK = "heard\t"
_FAILED = ("Not authorized", "Error", "refused", "lost", "rejected")


@dataclass(frozen=True, slots=True)
class Client:
    """Whom a client trusts, and what it shows; without an authority it speaks plain."""

    authority: Path | None
    certificate: Path | None = None
    key: Path | None = None

    def options(self, port: int) -> list[str]:
        """How it connects."""
        options = ["-h", "127.0.0.1", "-p", str(port), "-V", "mqttv5", "-q", "1"]
        if self.authority is not None:
            options += ["--cafile", str(self.authority)]
        if self.certificate is not None:
            options += ["--cert", str(self.certificate), "--key", str(self.key)]
        return options


def publish(port: int, client: Client, topic: str, payload: str, *, retain: bool = False) -> bool:
    """Write one message; whether the broker took it."""
    command = ["mosquitto_pub", *client.options(port), "-t", topic, "-m", payload, *(["-r"] if retain else [])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TRY_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return False
    said = done.stdout + done.stderr
    return done.returncode == 0 and not any(word in said for word in _FAILED)


def publish_all(port: int, client: Client, messages: Sequence[tuple[str, str, bool]]) -> dict[str, bool]:
    """Write messages of (topic, payload, retained), some at a time; which topics took theirs."""

    def one(message: tuple[str, str, bool]) -> bool:
        topic, payload, retain = message
        return publish(port, client, topic, payload, retain=retain)

    with ThreadPoolExecutor(4) as pool:
        return dict(zip([topic for topic, _, _ in messages], pool.map(one, messages), strict=True))


class Listener:
    """A `mosquitto_sub` on some topics for the time of a block; `heard` holds pairs of topic and payload."""

    def __init__(self, port: int, client: Client, topics: Sequence[str]) -> None:
        wanted = [part for topic in topics for part in ("-t", topic)]
        options = [*client.options(port), *wanted, "-d", "-F", f"{_MARK}%t\t%p"]
        self._command = ["stdbuf", "-oL", "mosquitto_sub", *options]
        self._greetings = 0
        self.heard: list[tuple[str, str]] = []
        self._changed = threading.Condition()
        self._state = ""

    def __enter__(self) -> Self:
        """Start it."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End it."""
        self._process.kill()
        self._thread.join()
        self._process.communicate()

    def logged_in(self) -> bool:
        """Whether the broker let it in and took its subscriptions; waits for either."""
        with self._changed:
            self._changed.wait_for(lambda: self._state, TRY_S)
            return self._state == "in"

    def wait_for(self, payload: str) -> None:
        """Wait until it hears something."""
        self._wait(lambda pair: pair[1] == payload, payload)

    def wait_for_topic(self, topic: str) -> None:
        """Wait until it hears something on a topic."""
        self._wait(lambda pair: pair[0] == topic, topic)

    def _wait(self, wanted: Callable[[tuple[str, str]], bool], what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: any(map(wanted, self.heard)), TRY_S):
                raise TimeoutError(f"{what!r} was not heard within {TRY_S:g} s, only {self.heard[-5:]}")

    def _greets_again(self, line: str) -> bool:
        """Some failures it does not tell; it begins anew."""
        self._greetings += "sending CONNECT" in line
        return self._greetings > 1

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                if line.startswith(_MARK):
                    topic, payload = line.removeprefix(_MARK).rstrip("\n").split("\t", 1)
                    self.heard.append((topic, payload))
                elif line.startswith("Subscribed"):
                    self._state = "in"
                elif any(word in line for word in _FAILED) or self._greets_again(line):
                    self._state = self._state or "out"
                self._changed.notify_all()
        with self._changed:
            self._state = self._state or "out"
            self._changed.notify_all()
