"""What the managed broker checks before it starts anything."""

import socket
import stat
from pathlib import Path

import pytest

from fedpipe_coordinator.broker import managed as broker
from fedpipe_coordinator.broker.config import Guard, Limits
from fedpipe_coordinator.broker.managed import (
    BrokerError,
    BrokerMissingError,
    BrokerTooOldError,
    ManagedBroker,
    PortInUseError,
    find_mosquitto,
    write_config,
)
from fedpipe_coordinator.broker.port_holder import port_holder
from fedpipe_coordinator.broker.ports import check_port


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place where programs are looked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(broker, "_SEARCH", (str(folder),))
    return folder


def program(path: Path, says: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{says}'\n", encoding="utf-8")
    path.chmod(0o755)


def test_a_machine_without_mosquitto_is_told_the_package(only: Path) -> None:
    assert not list(only.iterdir())
    with pytest.raises(BrokerMissingError, match=r"package `mosquitto` .*apt-get install mosquitto.*dnf install mosqu"):
        find_mosquitto()


def test_an_old_mosquitto_is_refused_with_both_versions(only: Path) -> None:
    program(only / "mosquitto", "mosquitto version 1.6.9")
    with pytest.raises(BrokerTooOldError, match=r"is version 1\.6\.9, at least 2\.0 is needed"):
        find_mosquitto()


@pytest.mark.parametrize("version", ["2.0", "2.0.22", "2.1.0", "10.0.1"])
def test_a_new_mosquitto_is_taken(only: Path, version: str) -> None:
    program(only / "mosquitto", f"mosquitto version {version}")
    assert find_mosquitto() == only / "mosquitto"


def test_a_program_that_says_no_version_is_refused(only: Path) -> None:
    program(only / "mosquitto", "hello")
    with pytest.raises(BrokerMissingError, match="does not say its version; it said 'hello"):
        find_mosquitto()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "example.org", "::", ""])
def test_a_broker_without_logins_never_listens_beyond_this_machine(tmp_path: Path, host: str) -> None:
    with pytest.raises(BrokerError, match="loopback only"):
        write_config(tmp_path / "broker", host, 1883)
    assert not (tmp_path / "broker").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_configuration_keeps_what_the_wire_relies_on(tmp_path: Path, host: str) -> None:
    path = write_config(tmp_path / "a folder", host, 18830, ["log_type all"])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert f"listener 18830 {host}" in lines
    assert "max_packet_size 2000000" in lines
    assert "persistence true" in lines
    assert f"persistence_location {tmp_path}/a folder/" in lines
    assert "sys_interval 0" in lines
    assert lines[-1] == "log_type all"
    assert sum(line.startswith("listener") for line in lines) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


GUARD = Guard(Path("ca.crt"), Path("b.crt"), Path("b.key"), Path("crl.pem"), Path("acl"))


@pytest.mark.parametrize(("host", "listener"), [("10.1.2.3", "listener 8883 10.1.2.3"), ("*", "listener 8883")])
def test_a_guarded_broker_lets_in_by_certificate_only_and_by_one_way(tmp_path: Path, host: str, listener: str) -> None:
    limits = Limits(connections=7, queue_mib=2, memory_mib=3)
    lines = write_config(tmp_path / "broker", host, 8883, guard=GUARD, limits=limits).read_text().splitlines()
    assert [line for line in lines if line.startswith("listener")] == [listener]
    wanted = {"require_certificate true", "use_identity_as_username true", "allow_anonymous false", "max_connections 7"}
    wanted |= {f"acl_file {Path.cwd()}/acl", f"crlfile {Path.cwd()}/crl.pem", "tls_version tlsv1.2"}
    assert wanted | {"max_queued_bytes 2097152", "memory_limit 3145728"} <= set(lines)
    assert not any(line.startswith(("allow_anonymous true", "per_listener_settings", "port ")) for line in lines)


def test_without_a_limit_of_memory_there_is_none(tmp_path: Path) -> None:
    path = write_config(tmp_path / "broker", "127.0.0.1", 1883, limits=Limits(memory_mib=0))
    assert "memory_limit" not in path.read_text()


@pytest.mark.parametrize("host", ["192.0.2.77", "no-such-name.invalid"])
def test_an_address_that_is_not_this_machines_is_told(host: str) -> None:
    with pytest.raises(BrokerError, match=r"is not an address of this machine: .*broker\.listen"):
        check_port(host, 18831)


def test_a_port_in_use_is_told_with_who_uses_it(tmp_path: Path, only: Path) -> None:
    program(only / "mosquitto", "mosquitto version 2.0.11")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"port {port} on 127\.0\.0\.1 is in use: .* \(process \d+\) listens"):
            ManagedBroker(tmp_path / "broker", port=port).start()


def test_nobody_is_named_where_nothing_can_be_seen(tmp_path: Path) -> None:
    assert port_holder(1883, proc=tmp_path) is None
