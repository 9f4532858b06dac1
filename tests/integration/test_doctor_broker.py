"""The doctor and brokers of their owners: one with the rules as written passes, one with a rule left out is found."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from enrolments import new_office
from federation import wait_for
from mosquitto_support import mosquitto_or_skip

from fedpipe_coordinator.broker.config import Limits, external_config
from fedpipe_coordinator.broker.managed import find_mosquitto, free_port
from fedpipe_coordinator.federation import Office, guard_of
from fedpipe_coordinator.security.broker_checks import (
    Surgery,
    check_broker,
    check_login,
    check_packets,
    check_reading,
    check_refused,
    check_writing,
)
from fedpipe_coordinator.security.doctor import State

States = dict[str, State]


@dataclass(frozen=True, slots=True)
class Yard:
    """A federation whose broker is its owner's."""

    office: Office
    folder: Path

    @contextlib.contextmanager
    def broker(self, *leave_out: str, add: tuple[str, ...] = ()) -> Iterator[Surgery]:
        """A Mosquitto with the rules as they are written for its owner, but for some."""
        home, port = self.office.home, self.office.settings.broker.port
        lines = external_config(port, guard_of(home).absolute(), Limits()).splitlines()
        kept = [line for line in lines if line.split(" ")[0] not in leave_out]
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join([*kept, "user root", f"persistence_location {self.folder}/", *add]) + "\n")
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen([find_mosquitto(), "-c", config], stdout=log, stderr=log)
        try:
            now = datetime.now(UTC)
            with Surgery(self.office.authority, "127.0.0.1", port, now) as surgery:
                wait_for("it runs", lambda: b"running" in (self.folder / "log").read_bytes(), limit_s=30)
                yield surgery
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    mosquitto_or_skip()
    return Yard(new_office(tmp_path / "home", datetime.now(UTC), port=free_port()), tmp_path)


def test_a_broker_with_the_rules_as_written_passes_every_check(yard: Yard) -> None:
    with yard.broker() as surgery:
        findings = check_broker(surgery)
    assert {each.check: each.state for each in findings if each.state != "ok"} == {}
    assert len(findings) == 15


def _stranger(what: str) -> Callable[[Surgery], States]:
    def check(surgery: Surgery) -> States:
        contexts = {"revoked": surgery.revoked, "nameless": surgery.nameless}
        found = check_refused(surgery, what, contexts[what](), "mend it")
        return {found.check: found.state}

    return check


def _writing(surgery: Surgery) -> States:
    return {each.check: each.state for each in check_writing(surgery)}


def _reading(surgery: Surgery) -> States:
    return {each.check: each.state for each in check_reading(surgery)}


def _packets(surgery: Surgery) -> States:
    found = check_packets(surgery)
    return {found.check: found.state}


OPEN = ("require_certificate", "use_identity_as_username", "allow_anonymous")
FAULTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable[[Surgery], States], set[str]]] = {
    "no list of revocations": (("crlfile",), (), _stranger("revoked"), {"revoked"}),
    "no certificate asked for": (OPEN, ("allow_anonymous true",), _stranger("nameless"), {"nameless"}),
    "no access list, writing": (
        ("acl_file",),
        (),
        _writing,
        {"writing another's topics", "writing what another reads", "writing the broadcast"},
    ),
    "no access list, reading": (
        ("acl_file",),
        (),
        _reading,
        {"reading another's topics", "reading what another writes"},
    ),
    "no packet limit": (("max_packet_size",), (), _packets, {"packet limit"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_rule_that_is_left_out_is_found(yard: Yard, fault: str) -> None:
    leave_out, add, check, expected = FAULTS[fault]
    with yard.broker(*leave_out, add=add) as surgery:
        states = check(surgery)
    assert {name for name, state in states.items() if state == "failed"} == expected


def test_a_broker_without_tls_is_found(yard: Yard) -> None:
    files = ("cafile", "certfile", "keyfile", "crlfile", "tls_version", "max_qos", "acl_file")
    with yard.broker(*OPEN, *files, add=("allow_anonymous true",)) as surgery:
        assert check_login(surgery).state == "failed"
        assert check_refused(surgery, "plain", None, "mend it").state == "failed"
