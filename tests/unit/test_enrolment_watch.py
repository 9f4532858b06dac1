"""What a running coordinator does about changes: the broker reads again where it can, starts again where it must."""

from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import pytest
from enrolments import NOW, later, let_in, new_keys, new_office

from fedpipe_coordinator.broker.errors import BrokerError
from fedpipe_coordinator.federation import Office
from fedpipe_coordinator.security.authority import BROKER_DAYS
from fedpipe_coordinator.security.enrolling import revoke
from fedpipe_coordinator.security.enrolment_watch import RENEW_EVERY_S, RETRY_S, EnrolmentWatch
from fedpipe_coordinator.security.revocation_list import read_revocations, revoked_in
from fedpipe_coordinator.security.roster import Roster, RosterFiles


class Bench:
    """A watch with everything around it, and what it did, in order."""

    def __init__(self, office: Office) -> None:
        self.office, self.now = office, NOW
        self.did: list[str] = []
        self.said: list[str] = []
        self.recorded: list[tuple[str, str]] = []
        self.trouble = ""
        self.roster = Roster(office.files, self.clock, self.said.append)
        self.watch = EnrolmentWatch(
            office.home,
            office.authority,
            self.roster,
            office.files,
            hosts=("127.0.0.1",),
            expel=lambda agent: self.did.append(f"expel {agent}"),
            log=self.said.append,
            clock=self.clock,
            record=lambda kind, text: self.recorded.append((kind, text)),
        )
        self.watch.begin()
        self.watch.broker = self
        self.monotonic = 0.0
        self.look()
        self.did.clear()

    def clock(self) -> datetime:
        """The time that the test sets."""
        return self.now

    def reload(self) -> None:
        """The broker's."""
        self.did.append("reload")

    def restart(self) -> None:
        """The broker's."""
        self.did.append("restart")
        if self.trouble:
            raise BrokerError(self.trouble)

    def look(self, after_s: float = 0.5) -> list[str]:
        """One tick; what was done in it."""
        self.monotonic += after_s
        self.did.clear()
        self.watch.look(self.monotonic)
        return list(self.did)

    def numbers(self) -> set[int]:
        """What is on the list of revocations."""
        found = read_revocations(self.office.home, self.office.authority.certificate)
        return set() if found is None else revoked_in(found)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(new_office(tmp_path / "home"))


def test_nothing_is_done_where_nothing_changed(bench: Bench) -> None:
    assert [bench.look() for _ in range(3)] == [[], [], []]
    assert bench.said == []


def test_an_agent_that_comes_is_listened_to_and_the_broker_need_not_know(bench: Bench) -> None:
    let_in(bench.office, "north", new_keys())
    assert bench.look() == []
    assert bench.roster.keys("north")


def test_an_agent_that_is_revoked_is_expelled_before_the_broker_starts_again(bench: Bench) -> None:
    let_in(bench.office, "north", new_keys())
    bench.look()
    revoke("north", bench.office.files, NOW, "stolen")  # the command was killed before it published
    before = bench.numbers()
    assert bench.look() == ["expel north", "restart"]
    assert len(bench.numbers() - before) == 2
    assert "user north" in bench.office.home.access.read_text()
    assert bench.look() == []


def test_replaced_keys_end_the_old_connection_and_keep_the_agent(bench: Bench) -> None:
    let_in(bench.office, "north", new_keys())
    bench.look()
    let_in(bench.office, "north", new_keys(), replace=True)
    assert bench.look() == ["restart"]
    assert bench.roster.keys("north")


def test_one_that_comes_back_with_new_keys_is_let_in_without_ending_others(bench: Bench) -> None:
    let_in(bench.office, "north", new_keys())
    revoke("north", bench.office.files, NOW, "stolen")
    bench.look()
    let_in(bench.office, "north", new_keys(), replace=True)
    assert bench.look() == ["reload"]


def test_one_whose_time_is_over_is_expelled_without_anybody_changing_a_file(bench: Bench) -> None:
    let_in(bench.office, "north", new_keys(), days=10)
    bench.look()
    bench.now = later(11)
    assert bench.look() == ["expel north", "restart"]
    assert any("expired" in line for line in bench.said)
    assert "user north" in bench.office.home.access.read_text()
    assert bench.look() == []


def test_one_that_ran_out_and_is_enrolled_again_is_denied_no_more(bench: Bench) -> None:
    let_in(bench.office, "north", new_keys(), days=10)
    bench.look()
    bench.now = later(11)
    bench.look()
    let_in(bench.office, "north", new_keys(), later(11), replace=True)
    assert "user north" not in bench.office.home.access.read_text()
    assert bench.look() == ["restart"], "the certificate that ran out is on the list as well"
    assert bench.roster.keys("north")


def test_certificates_are_renewed_in_time_and_the_broker_reads_them_without_ending_anything(bench: Bench) -> None:
    bench.now = later(BROKER_DAYS * 0.7)
    assert bench.look() == [], "it is looked at every hour only"
    assert bench.look(RENEW_EVERY_S) == ["reload"]
    assert bench.look(RENEW_EVERY_S) == []
    assert any("the broker's certificate was renewed" in line for line in bench.said)


def test_a_command_that_is_at_it_is_not_waited_for(bench: Bench) -> None:
    let_in(bench.office, "north", new_keys())
    bench.look()
    revoke("north", bench.office.files, NOW, "stolen")
    with bench.office.files.lock():
        assert bench.look() == ["expel north"], "who is revoked is not listened to, whatever else is held up"
    assert bench.look() == ["restart"]


def test_a_broker_that_cannot_start_again_is_tried_again_and_told_once(bench: Bench) -> None:
    let_in(bench.office, "north", new_keys())
    bench.look()
    revoke("north", bench.office.files, NOW, "stolen")
    bench.trouble = "the disk is full"
    assert bench.look() == ["expel north", "restart"]
    assert bench.look() == []
    assert bench.look(RETRY_S) == ["restart"]
    assert sum("the disk is full" in line for line in bench.said) == 1
    bench.trouble = ""
    assert bench.look(RETRY_S) == ["restart"]
    assert bench.look(RETRY_S) == []


def test_what_is_harmed_is_mended_from_the_records(bench: Bench) -> None:
    bench.office.home.access.write_text("pattern readwrite #\n")
    fresh = Bench(bench.office)
    assert "readwrite" not in fresh.office.home.access.read_text()


def test_what_a_command_revokes_at_the_same_moment_is_not_taken_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_in(bench.office, "north", new_keys())
    lock, revoked = RosterFiles.lock, list[str]()

    def at_the_last_moment(files: RosterFiles, patience_s: float = 30.0) -> AbstractContextManager[None]:
        if patience_s == 0.0 and not revoked:
            revoked.append("north")
            revoke("north", bench.office.files, NOW, "stolen")
            bench.office.publish(NOW)
        return lock(files, patience_s)

    monkeypatch.setattr(RosterFiles, "lock", at_the_last_moment)
    assert bench.look() == ["expel north", "restart"]
    assert len(bench.numbers()) == 3
