"""All of a running coordinator put together: store, broker, session, service and control socket.

Owns starting them in order and ending them in the opposite one.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Self

from fedpipe_coordinator.broker.config import dial_host
from fedpipe_coordinator.broker.managed import ManagedBroker
from fedpipe_coordinator.broker.watch import BrokerWatch
from fedpipe_coordinator.control import ControlServer
from fedpipe_coordinator.exchange import Exchange
from fedpipe_coordinator.federation import guard_of
from fedpipe_coordinator.federation_config import Federation
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.home_lock import lock_home
from fedpipe_coordinator.runs.run_events import AgentOffline
from fedpipe_coordinator.security.assembly import Security, open_security
from fedpipe_coordinator.service import Service
from fedpipe_coordinator.store import SqliteStore
from fedpipe_wire.blob_files import BlobStore
from fedpipe_wire.mqtt import MqttOptions, MqttTransport
from fedpipe_wire.sealing import COORDINATOR, RETAINED_BY_AGENTS, Inspector, Sealer
from fedpipe_wire.topics import Topics

_OPTIONS = MqttOptions(max_takeovers=10, retain_as_published=True)
"""A second coordinator in a copy of the folder would take turns with this one for ever."""
SHOUT = (
    "INSECURE: no TLS, no keys, no signatures. Every program on this machine may read all that is said and speak for "
    "anybody. Make a federation with keys with `fedpipe init` before anything private is near"
)


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
            OwnedFileError: if a key or certificate is missing or open to others.
            CertificateError: if one does not count.
        """
        with ExitStack() as stack:
            stack.enter_context(lock_home(self._home.path))
            store = SqliteStore(self._home.store)
            stack.callback(store.close)
            broker, name = self._settings.broker, self._settings.federation
            watches: list[Callable[[float], None]] = []
            security = None
            if broker.insecure:
                self._log(SHOUT)
            else:
                security = open_security(self._home, self._settings, self._expel, self._log)
            host, port = broker.host, broker.port
            if broker.managed:
                managed = self._managed(security)
                managed.start()
                stack.callback(managed.stop)
                watches.append(BrokerWatch(managed, self._log).look)
                self._log(f"Mosquitto listens on {broker.address()}:{managed.port}")
                host, port = dial_host(broker.address()), managed.port
                if security is not None:
                    security.watch.broker = managed
            if security is not None:
                watches.append(security.watch.look)
            transport = MqttTransport(
                host,
                port,
                f"fedpipe-{name}-coordinator" if security is None else security.credentials.client_id,
                tls=None if security is None else security.credentials.context,
                options=_OPTIONS,
            )
            transfers = self._settings.transfer.to_settings()
            blobs = BlobStore(self._home.blobs, chunk_bytes=transfers.chunk_bytes)
            if security is None:
                sealer = Sealer(COORDINATOR, store.next_counter)
                inspector = Inspector(None, store.heard(), RETAINED_BY_AGENTS)
            else:
                sealer, roster = security.credentials.sealer(store.next_counter), security.roster
                inspector = Inspector(roster.keys, store.heard(), RETAINED_BY_AGENTS, look_again=roster.look_again)
            exchange = Exchange(transport, Topics(name), blobs, sealer, inspector, self._log, transfers)
            service = Service(self._home, name, store, blobs, exchange, self._log, each_tick=partial(_each, watches))
            stack.callback(service.close)
            control = ControlServer(self._home.path, service.post)
            stack.callback(control.close)
            self._service = service
            self._stack = stack.pop_all()
        return self

    def _managed(self, security: Security | None) -> ManagedBroker:
        broker = self._settings.broker
        return ManagedBroker(
            self._home.broker,
            broker.address(),
            broker.port,
            guard=None if security is None else guard_of(self._home),
            context=None if security is None else security.credentials.context,
            limits=broker.limits(),
        )

    def _expel(self, agent: str) -> None:
        if self._service is not None:
            self._service.post(AgentOffline(agent))

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


def _each(watches: Sequence[Callable[[float], None]], now: float) -> None:
    for look in watches:
        look(now)
