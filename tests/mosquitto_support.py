"""A real Mosquitto for tests, through the coordinator's own `ManagedBroker`."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fedpipe_coordinator.broker.managed import BrokerError, ManagedBroker, find_mosquitto


def mosquitto_or_skip() -> None:
    """Skip the calling test, with the reason, where there is no usable Mosquitto."""
    try:
        find_mosquitto()
    except BrokerError as error:
        pytest.skip(str(error))


class Mosquitto:
    """A broker on a free loopback port that a test may kill and bring back on the same port."""

    def __init__(self, folder: Path, extra: Sequence[str] = ()) -> None:
        self._folder, self._extra = folder, tuple(extra)
        self._broker = ManagedBroker(folder, extra=extra)
        self._broker.start()
        self.host, self.port = self._broker.host, self._broker.port

    def kill(self) -> None:
        """SIGKILL: what was not saved is gone."""
        self._broker.kill()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It does nothing for the time of a block, and its machine goes on."""
        pid = self._broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def restart(self, *, empty: bool = False) -> None:
        """Start again on the same port; `empty` without its database."""
        self._broker.kill()
        if empty:
            (self._folder / "mosquitto.db").unlink(missing_ok=True)
        self._broker = ManagedBroker(self._folder, self.host, self.port, extra=self._extra)
        self._broker.start()

    def stop(self) -> None:
        """End it."""
        self._broker.stop()


@contextlib.contextmanager
def running_mosquitto(folder: Path, extra: Sequence[str] = ()) -> Iterator[Mosquitto]:
    """A broker for the time of a block, with its files in `folder`; skips the test without Mosquitto."""
    mosquitto_or_skip()
    broker = Mosquitto(folder, extra)
    try:
        yield broker
    finally:
        broker.stop()
        shutil.rmtree(folder, ignore_errors=True)
