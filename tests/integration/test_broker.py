"""A real Mosquitto under the coordinator's management."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mosquitto_support import mosquitto_or_skip

from fedpipe_coordinator.broker.managed import BrokerDiedError, BrokerError, ManagedBroker, PortInUseError
from fedpipe_wire.mqtt import MqttTransport
from fedpipe_wire.transport import Connected, Delivered, Disconnected, Received

PATIENCE_S = 20.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ManagedBroker]:
    mosquitto_or_skip()
    managed = ManagedBroker(tmp_path / "the broker")
    yield managed
    managed.stop()


def session(broker: ManagedBroker, name: str, *patterns: str) -> MqttTransport:
    transport = MqttTransport(broker.host, broker.port, name)
    for pattern in patterns:
        transport.subscribe(pattern)
    transport.start()
    assert isinstance(transport.events.get(timeout=PATIENCE_S), Connected)
    return transport


def test_it_answers_when_start_returns_and_is_gone_when_stop_does(broker: ManagedBroker) -> None:
    broker.start()
    assert broker.is_alive
    pid = broker.pid
    assert pid is not None
    with pytest.raises(BrokerError, match=f"runs already, as process {pid}"):
        broker.start()
    session(broker, "one").stop()
    broker.stop()
    assert not broker.is_alive
    assert broker.pid is None
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((broker.host, broker.port))
    broker.stop()


def test_what_was_retained_is_there_after_a_proper_restart(broker: ManagedBroker) -> None:
    broker.start()
    writer = session(broker, "writer")
    writer.publish("state", b"kept", retain=True)
    assert isinstance(writer.events.get(timeout=PATIENCE_S), Delivered)
    writer.stop()
    broker.stop()
    broker.start()
    reader = session(broker, "reader", "state")
    assert reader.events.get(timeout=PATIENCE_S) == Received("state", b"kept", retained=True)
    reader.stop()


def test_two_brokers_of_any_port_live_side_by_side_and_one_of_a_taken_port_does_not(
    broker: ManagedBroker, tmp_path: Path
) -> None:
    broker.start()
    other = ManagedBroker(tmp_path / "other")
    other.start()
    assert other.port != broker.port
    third = ManagedBroker(tmp_path / "third", port=broker.port)
    with pytest.raises(PortInUseError, match=rf"mosquitto \(process {broker.pid}\) listens there"):
        third.start()
    assert broker.is_alive
    other.stop()


def test_a_broker_that_dies_at_its_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    mosquitto_or_skip()
    broken = ManagedBroker(tmp_path / "broken", extra=["no_such_setting true"])
    with pytest.raises(BrokerDiedError, match=r"ended with code \d+; the end of (?s:.*)no_such_setting"):
        broken.start()
    assert not broken.is_alive


def test_ctrl_c_in_the_terminal_does_not_reach_it_and_its_input_is_closed(broker: ManagedBroker) -> None:
    broker.start()
    assert broker.pid is not None
    assert os.getsid(broker.pid) != os.getsid(0)
    assert Path(f"/proc/{broker.pid}/fd/0").readlink() == Path("/dev/null")


def test_it_dies_with_its_parent(broker: ManagedBroker) -> None:
    program = (
        "import sys, pathlib; from fedpipe_coordinator.broker.managed import ManagedBroker\n"
        f"broker = ManagedBroker(pathlib.Path({str(broker.folder)!r})); broker.start()\n"
        "print(broker.pid, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        watch = os.pidfd_open(child)
        parent.send_signal(signal.SIGKILL)
        try:
            ended = bool(select.select([watch], [], [], PATIENCE_S)[0])
        finally:
            os.close(watch)
    assert ended, f"Mosquitto {child} outlived its parent"


def test_a_broker_that_was_killed_with_its_database_runs_again_on_the_same_port(broker: ManagedBroker) -> None:
    broker.start()
    port, pid = broker.port, broker.pid
    assert pid is not None
    client = session(broker, "client", "state")
    os.kill(pid, signal.SIGKILL)
    assert isinstance(client.events.get(timeout=PATIENCE_S), Disconnected)
    (broker.folder / "mosquitto.db").unlink(missing_ok=True)
    words = broker.revive()
    assert "New client connected" in words
    assert broker.port == port
    assert broker.pid != pid
    connected = client.events.get(timeout=PATIENCE_S)
    assert connected == Connected(resumed=False)
    client.stop()


def test_a_stale_broker_of_the_same_folder_is_waited_for(broker: ManagedBroker) -> None:
    """Its coordinator was killed, and the kernel told it to end: it holds the port a moment longer."""
    broker.start()
    assert broker.pid is not None
    stale = broker.pid
    os.kill(stale, signal.SIGSTOP)
    successor = ManagedBroker(broker.folder, broker.host, broker.port)

    def end() -> None:
        os.kill(stale, signal.SIGTERM)
        os.kill(stale, signal.SIGCONT)

    wake = threading.Timer(1.0, end)
    wake.start()
    try:
        successor.start()
    finally:
        wake.join()
        successor.stop()
    assert not broker.is_alive


def test_a_damaged_database_does_not_keep_the_broker_from_starting(broker: ManagedBroker) -> None:
    broker.folder.mkdir()
    (broker.folder / "mosquitto.db").write_bytes(b"this was a database once" * 100)
    broker.start()
    session(broker, "one").stop()


def test_a_log_does_not_grow_without_bound(broker: ManagedBroker) -> None:
    broker.start()
    with broker.log.open("ab") as log:
        log.write(b"noise\n" * 400_000)
    broker.trim_log()
    session(broker, "one").stop()
    broker.stop()
    assert broker.log.stat().st_size < 100_000
    assert b"Client one disconnected" in broker.log.read_bytes()
    kept = broker.log.with_name("mosquitto.log.1").stat().st_size
    assert 1 << 20 <= kept < (1 << 20) + 10_000  # the broker may write a line while the log is trimmed
