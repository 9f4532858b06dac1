"""The records as a running coordinator follows them: a damaged one keeps its own agent out and nobody else."""

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from enrolments import NOW, later, let_in, new_keys, new_office

from fedpipe_coordinator.federation import Office
from fedpipe_coordinator.security.access import access_text, denied_in
from fedpipe_coordinator.security.authority import CANARY_SERIAL
from fedpipe_coordinator.security.enrolling import revoke
from fedpipe_coordinator.security.revocation_list import read_revocations, revoked_in
from fedpipe_coordinator.security.roster import Roster
from fedpipe_wire.enrolment import EnrolmentError
from fedpipe_wire.sealing import Inspector, Sealer, key_id
from fedpipe_wire.topics import TopicError
from fedpipe_wire.transport import Received


class Clock:
    """A time that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return new_office(tmp_path / "home")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def roster(office: Office, clock: Clock, said: list[str]) -> Roster:
    return Roster(office.files, clock, said.append)


def test_whoever_is_enrolled_or_revoked_meanwhile_is_seen_at_the_next_look(office: Office, roster: Roster) -> None:
    roster.refresh()
    assert roster.keys("north") is None
    keys = new_keys()
    let_in(office, "north", keys)
    assert roster.refresh()
    assert not roster.refresh(), "nothing changed since"
    assert set(roster.keys("north") or ()) == {key_id(keys.signing.public_key())}
    revoke("north", office.files, NOW, "stolen")
    assert roster.refresh()
    assert roster.keys("north") is None
    assert "revoked" in roster.refused("north")
    assert roster.present() == set()


def test_who_was_just_enrolled_is_heard_at_once_and_told_of_at_the_next_look(office: Office, roster: Roster) -> None:
    roster.refresh()
    inspector = Inspector(roster.keys, {}, look_again=roster.look_again)
    keys = new_keys()
    let_in(office, "north", keys)
    sealer = Sealer("north", iter(range(5)).__next__, keys.signing)
    said = sealer.seal("fedpipe/f/agents/north/up/report", b"{}")
    inspector.inspect(
        "north", Received("fedpipe/f/agents/north/up/report", b"{}", False, said.properties())
    )  # a packet's field
    assert roster.refresh(), "who looks in between does not hide the change from the broker's watch"
    assert not roster.refresh()


def test_a_key_stops_counting_the_moment_it_runs_out_without_any_look(
    office: Office, roster: Roster, clock: Clock
) -> None:
    let_in(office, "north", new_keys(), days=10)
    roster.refresh()
    clock.now = later(9.9)
    assert roster.keys("north")
    clock.now = later(10.1)
    assert roster.keys("north") is None
    assert "expired" in roster.refused("north")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (b"", "cannot be used"),
        (b"{", "cannot be used"),
        (b"[1]", "cannot be used"),
        (b"\xff\xfe", "cannot be used"),
        (b"x" * (5 << 20), "more than"),
    ],
)
def test_a_damaged_record_keeps_its_own_agent_out_and_is_named_once(
    office: Office, roster: Roster, said: list[str], harm: bytes, says: str
) -> None:
    for name in ("north", "south"):
        let_in(office, name, new_keys())
    path = office.home.agents / "north.json"
    good = path.read_bytes()
    path.write_bytes(harm)
    assert roster.refresh()
    assert roster.keys("north") is None
    assert roster.keys("south")
    assert "north" in roster.register.revoked()
    (line,) = said
    assert says in line
    assert "north.json" in line
    assert len(line) < 1000
    path.write_bytes(good)
    assert roster.refresh()
    assert roster.keys("north")


def test_a_record_that_was_moved_under_another_name_or_from_elsewhere_is_not_believed(
    tmp_path: Path, office: Office, roster: Roster
) -> None:
    let_in(office, "north", new_keys())
    other = new_office(tmp_path / "other")
    let_in(other, "west", new_keys())
    shutil.copy(office.home.agents / "north.json", office.home.agents / "south.json")
    shutil.copy(other.home.agents / "west.json", office.home.agents / "west.json")
    roster.refresh()
    assert roster.present() == {"north"}
    assert "is of agent 'north'" in roster.refused("south")
    assert "was not issued by this federation" in roster.refused("west")


def test_nobody_edits_a_revocation_away(office: Office, roster: Roster) -> None:
    """What the record says is the owner's word: it is as good as the folder's rights, which are the owner's alone."""
    let_in(office, "north", new_keys())
    revoke("north", office.files, NOW, "stolen")
    path = office.home.agents / "north.json"
    record = json.loads(path.read_text())
    assert path.stat().st_mode & 0o077 == 0
    record["issues"] = []
    path.write_text(json.dumps(record))
    roster.refresh()
    assert roster.keys("north") is None
    assert "north" in roster.register.damaged


def test_a_folder_that_is_gone_lets_nobody_in_and_says_so(office: Office, roster: Roster, said: list[str]) -> None:
    let_in(office, "north", new_keys())
    roster.refresh()
    shutil.rmtree(office.home.agents)
    assert roster.refresh()
    assert roster.keys("north") is None
    assert "nobody counts as enrolled" in said[0]


def test_files_of_other_names_are_nobodys_records(office: Office, roster: Roster) -> None:
    let_in(office, "north", new_keys())
    for name in (".hidden.json", "UPPER.json", "a b.json", "..json", "_coordinator.json", "north.json.bak"):
        shutil.copy(office.home.agents / "north.json", office.home.agents / name)
    roster.refresh()
    assert roster.present() == {"north"}
    assert roster.register.damaged == {}


def test_what_the_broker_is_told_follows_from_the_records_alone(office: Office) -> None:
    let_in(office, "north", new_keys())
    let_in(office, "south", new_keys())
    revoke("north", office.files, NOW, "stolen")
    for path in (office.home.access, office.home.revocations):
        path.unlink()
    office.publish(NOW)
    lines = office.home.access.read_text().splitlines()
    assert lines[lines.index("user north") + 1] == "topic deny #"
    assert "user south" not in lines
    found = read_revocations(office.home, office.authority.certificate)
    assert found is not None
    assert revoked_in(found) == {CANARY_SERIAL, *(number for number, _ in office.files.read().serials())}
    before = office.home.revocations.read_bytes()
    office.publish(later(1))
    assert office.home.revocations.read_bytes() == before, "nothing changed"


def _torn(path: Path, _: bytes) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _removed(path: Path, _: bytes) -> None:
    path.unlink()


def _older(path: Path, before: bytes) -> None:
    path.write_bytes(before)


@pytest.mark.parametrize("harm", [_torn, _removed, _older])
def test_a_record_that_is_lost_or_older_takes_no_revocation_back(
    office: Office, roster: Roster, harm: Callable[[Path, bytes], None]
) -> None:
    keys = new_keys()
    let_in(office, "north", keys)
    path = office.home.agents / "north.json"
    before = path.read_bytes()
    revoke("north", office.files, NOW, "stolen")
    office.publish(NOW)
    found = read_revocations(office.home, office.authority.certificate)
    assert found is not None
    listed = revoked_in(found)
    assert len(listed) == 3
    harm(path, before)
    let_in(office, "south", new_keys())
    revoke("south", office.files, later(1), "left")
    office.publish(later(1))
    found = read_revocations(office.home, office.authority.certificate)
    assert found is not None
    assert revoked_in(found) > listed
    assert {"north", "south"} == denied_in(office.home.access.read_text())
    roster.refresh()
    assert roster.keys("north") is None


def test_a_key_whose_revocation_is_on_the_list_gets_nothing_by_an_older_record(office: Office) -> None:
    keys = new_keys()
    let_in(office, "north", keys)
    path = office.home.agents / "north.json"
    before = path.read_bytes()
    revoke("north", office.files, NOW, "stolen")
    office.publish(NOW)
    path.write_bytes(before)
    with pytest.raises(EnrolmentError, match="uses a key that was revoked"):
        let_in(office, "north", keys)
    with pytest.raises(EnrolmentError, match="--replace"):
        let_in(office, "north", new_keys(), renewed=keys)
    let_in(office, "north", new_keys(), replace=True)
    assert denied_in(office.home.access.read_text()) == set()


def test_a_list_of_another_authority_is_written_anew(tmp_path: Path, office: Office) -> None:
    other = new_office(tmp_path / "other")
    shutil.copy(other.home.revocations, office.home.revocations)
    assert read_revocations(office.home, office.authority.certificate) is None
    office.publish(NOW)
    assert read_revocations(office.home, office.authority.certificate) is not None


@pytest.mark.parametrize("name", ["+", "#", "a/b", "a\ntopic readwrite #", "_coordinator", "", "a" * 65, "é"])
def test_no_name_changes_what_the_access_list_means(name: str) -> None:
    with pytest.raises(TopicError):
        access_text("tests", [name])
    with pytest.raises(TopicError):
        access_text(name, [])
