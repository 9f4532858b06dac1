"""Each check of a federation's files finds what it is for, and a sound folder passes all of them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from enrolments import NOW, later, let_in, new_keys, new_office

from fedpipe_coordinator.federation import Office
from fedpipe_coordinator.security.authority import AUTHORITY_DAYS, BROKER_DAYS
from fedpipe_coordinator.security.doctor import Patient, State, check_files, failed
from fedpipe_coordinator.security.enrolling import revoke


@pytest.fixture
def office(tmp_path: Path) -> Office:
    office = new_office(tmp_path / "home")
    let_in(office, "north", new_keys())
    let_in(office, "south", new_keys(), days=20)
    return office


def states(office: Office, days: float = 0) -> dict[str, State]:
    """What every check says at a time."""
    return {each.check: each.state for each in check_files(Patient(office.home, office.settings, later(days)))}


def test_a_sound_folder_passes_and_who_runs_out_soon_is_named(office: Office) -> None:
    found = states(office)
    assert found.pop("agent south") == "warning"
    assert set(found.values()) == {"ok"}
    assert len(found) == 7


def _revoke_without_telling(office: Office) -> None:
    revoke("north", office.files, NOW, "stolen")


HARMS: dict[str, tuple[Callable[[Office], object], str]] = {
    "a key that others may read": (lambda office: office.home.key("login").chmod(0o644), "rights"),
    "a folder that others may enter": (lambda office: office.home.path.chmod(0o755), "rights"),
    "no authority's key": (lambda office: office.home.authority_key.unlink(), "authority"),
    "no broker certificate": (lambda office: office.home.certificate("broker").unlink(), "broker certificate"),
    "no signing key": (lambda office: office.home.key("signing").unlink(), "coordinator's signing certificate"),
    "a damaged record": (lambda office: (office.home.agents / "north.json").write_text("{"), "agent north"),
    "a revocation that was not told": (_revoke_without_telling, "revocation list"),
    "no list of revocations": (lambda office: office.home.revocations.unlink(), "revocation list"),
    "an access list that somebody changed": (
        lambda office: office.home.access.write_text("pattern readwrite #\n"),
        "access list",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_harm_is_found_by_the_check_that_is_for_it(office: Office, harm: str) -> None:
    do, check = HARMS[harm]
    do(office)
    findings = check_files(Patient(office.home, office.settings, NOW))
    assert failed(findings)
    (found,) = [each for each in findings if each.check == check]
    assert found.state == "failed"
    assert found.found
    assert found.remedy


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (BROKER_DAYS * 0.7, {"broker certificate": "warning", "coordinator's login certificate": "warning"}),
        (BROKER_DAYS + 1, {"broker certificate": "failed", "agent north": "warning"}),
        (AUTHORITY_DAYS * 0.7, {"authority": "warning", "coordinator's signing certificate": "warning"}),
        (AUTHORITY_DAYS + 1, {"authority": "failed", "coordinator's signing certificate": "failed"}),
    ],
)
def test_what_runs_out_is_told_before_and_after(office: Office, days: float, expected: dict[str, State]) -> None:
    assert expected.items() <= states(office, days).items()


def test_an_insecure_federation_is_never_sound(office: Office) -> None:
    insecure = office.settings.model_copy(
        update={"broker": office.settings.broker.model_copy(update={"insecure": True})}
    )
    assert failed(check_files(Patient(office.home, insecure, NOW)))


def test_a_hostile_record_is_shown_harmlessly(office: Office) -> None:
    path = office.home.agents / "north.json"
    record = json.loads(path.read_text())
    record["agent"] = "\x1b[2J" + "x" * 10_000
    path.write_text(json.dumps(record))
    (found,) = [each for each in check_files(Patient(office.home, office.settings, NOW)) if each.check == "agent north"]
    assert len(found.found) < 1000
    assert "\x1b" not in found.found
