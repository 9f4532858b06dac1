"""What the managed broker checks before it starts anything."""

import socket
import stat
from pathlib import Path

import pytest

from fedpipe_coordinator import broker
from fedpipe_coordinator.broker import (
    BrokerError,
    BrokerMissingError,
    BrokerTooOldError,
    ManagedBroker,
    PortInUseError,
    find_mosquitto,
    write_config,
)
from fedpipe_coordinator.port_holder import port_holder


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


def test_a_port_in_use_is_told_with_who_uses_it(tmp_path: Path, only: Path) -> None:
    program(only / "mosquitto", "mosquitto version 2.0.11")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"port {port} on 127\.0\.0\.1 is in use: .* \(process \d+\) listens"):
            ManagedBroker(tmp_path / "broker", port=port).start()


def test_nobody_is_named_where_nothing_can_be_seen(tmp_path: Path) -> None:
    assert port_holder(1883, proc=tmp_path) is None
