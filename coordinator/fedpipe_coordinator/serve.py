"""All of a running coordinator put together: store, broker, session, service and control socket.

Owns starting them in order and ending them in the opposite one.
"""

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from fedpipe_coordinator.broker import ManagedBroker
from fedpipe_coordinator.broker_watch import BrokerWatch
from fedpipe_coordinator.config import Federation
from fedpipe_coordinator.control import ControlServer
from fedpipe_coordinator.exchange import Exchange
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.home_lock import lock_home
from fedpipe_coordinator.service import Service
from fedpipe_coordinator.store import SqliteStore
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.mqtt import MqttOptions, MqttTransport
from fedpipe_wire.sealing import COORDINATOR, RETAINED_BY_AGENTS, Inspector, Sealer
from fedpipe_wire.topics import Topics

_OPTIONS = MqttOptions(max_takeovers=10)
"""A second coordinator in a copy of the folder would take turns with this one for ever."""


class Server:
    """A coordinator for one federation's folder; a context manager."""

    def __init__(self, home: Home, settings: Federation, log: Callable[[str], None]) -> None:
        self._home = home
        self._settings = settings
        self._log = log
        self._stack = ExitStack()
        self._service: Service | None = None

    def __enter__(self) -> Self:
        """Start everything but the work itself.

        Raises:
            BrokerError: if the managed broker cannot be started.
            StoreError: if the store cannot be opened.
            BlobError: if the folder for blobs cannot be used.
            AlreadyRunningError: if a coordinator runs in this folder already.
            HomeError: if the folder cannot be used.
            ControlError: if the control socket cannot be made.
        """
        with ExitStack() as stack:
            stack.enter_context(lock_home(self._home.path))
            store = SqliteStore(self._home.store)
            stack.callback(store.close)
            broker = self._settings.broker
            port, each_tick = broker.port, _nothing
            if broker.managed:
                managed = ManagedBroker(self._home.broker, broker.host, broker.port)
                managed.start()
                stack.callback(managed.stop)
                each_tick = BrokerWatch(managed, self._log).look
                self._log(f"Mosquitto listens on {broker.host}:{managed.port}")
                port = managed.port
            name = self._settings.federation
            transport = MqttTransport(broker.host, port, f"fedpipe-{name}-coordinator", options=_OPTIONS)
            transfers = self._settings.transfer.to_settings()
            blobs = BlobStore(self._home.blobs, chunk_bytes=transfers.chunk_bytes)
            sealer = Sealer(COORDINATOR, store.next_counter)
            inspector = Inspector(None, store.heard(), RETAINED_BY_AGENTS)
            exchange = Exchange(transport, Topics(name), blobs, sealer, inspector, self._log, transfers)
            service = Service(self._home, name, store, blobs, exchange, self._log, each_tick=each_tick)
            stack.callback(service.close)
            control = ControlServer(self._home.path, service.post)
            stack.callback(control.close)
            self._service = service
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def serve(self) -> None:
        """Work until `request_stop`; call it from the main thread, which a managed broker is bound to."""
        assert self._service is not None
        self._service.serve()

    def request_stop(self) -> None:
        """Let `serve` return soon; may be called from a signal handler."""
        if self._service is not None:
            self._service.request_stop()


def _nothing(now: float) -> None:
    """A broker of its owner's is watched by its owner."""
    del now
