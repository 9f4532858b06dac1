"""Who is let in: every meaning that a request can have, and what is kept of it."""

import contextlib
import threading
from datetime import datetime
from pathlib import Path

import pytest
from enrolments import NOW, Keys, later, let_in, new_keys, new_office

from fedpipe_coordinator.federation import Office
from fedpipe_coordinator.security.enrolling import enrol, judge, revoke
from fedpipe_coordinator.security.enrolment_record import MAX_ISSUES, Record
from fedpipe_coordinator.security.roster import RosterFiles
from fedpipe_wire.certificates import fingerprint
from fedpipe_wire.enrolment import EnrolmentError, check_bundle, check_fingerprint
from fedpipe_wire.sealing import key_id


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return new_office(tmp_path / "home")


def names_of(office: Office, agent: str, now: datetime = NOW) -> set[str]:
    """The names of the keys that an agent signs with."""
    return set(office.files.read().records[agent].keys(now))


def named(keys: Keys) -> str:
    return key_id(keys.signing.public_key())


def test_a_bundle_holds_for_whoever_compares_the_fingerprint(office: Office) -> None:
    done = let_in(office, "north", new_keys())
    membership = check_bundle(done.bundle, NOW)
    check_fingerprint(membership.authority, fingerprint(office.authority.certificate))
    assert (done.meaning, done.bundle.host, done.bundle.port) == ("new", "127.0.0.1", 8883)
    assert "PRIVATE" not in done.bundle.model_dump_json()


def test_the_same_request_once_more_gives_the_same_bundle_and_no_new_certificate(office: Office) -> None:
    keys = new_keys()
    first = let_in(office, "north", keys)
    again = let_in(office, "north", keys, later(3))
    assert again.meaning == "again"
    assert again.bundle == first.bundle
    assert len(office.files.read().records["north"].issues) == 1


def test_a_renewal_with_consent_needs_no_word_of_the_owner_and_both_keys_count(office: Office) -> None:
    old, new = new_keys(), new_keys()
    let_in(office, "north", old)
    done = let_in(office, "north", new, later(300), renewed=old)
    assert done.meaning == "renewal"
    assert names_of(office, "north", later(301)) == {named(old), named(new)}
    assert names_of(office, "north", later(370)) == {named(new)}, "the one before it ran out"
    assert office.files.read().serials() == []


def test_consent_of_a_key_that_ran_out_is_none(office: Office) -> None:
    old, new = new_keys(), new_keys()
    let_in(office, "north", old)
    with pytest.raises(EnrolmentError, match=r"north was enrolled until 2031-04-01, .*--replace"):
        let_in(office, "north", new, later(400), renewed=old)


def test_other_keys_under_a_known_name_need_the_owners_word_and_end_the_old_ones(office: Office) -> None:
    old, new = new_keys(), new_keys()
    first = let_in(office, "north", old)
    with pytest.raises(EnrolmentError, match=r"north is enrolled until 2031-04-01, .* other keys .*--replace"):
        let_in(office, "north", new)
    assert names_of(office, "north") == {named(old)}
    done = let_in(office, "north", new, replace=True)
    assert done.meaning == "replacement"
    assert names_of(office, "north") == {named(new)}
    gone = first.record.issues[0]
    assert {number for number, _ in office.files.read().serials()} == {
        gone.login_certificate().serial_number,
        gone.signing_certificate().serial_number,
    }


def test_a_consent_that_another_key_gave_is_none(office: Office) -> None:
    let_in(office, "north", new_keys())
    stranger, new = new_keys(), new_keys()
    with pytest.raises(EnrolmentError, match="without that agent's consent"):
        let_in(office, "north", new, renewed=stranger)


def test_a_renewal_in_the_wrong_federation_is_told(office: Office) -> None:
    with pytest.raises(EnrolmentError, match="never enrolled here: is this the right federation"):
        let_in(office, "north", new_keys(), renewed=new_keys())


@pytest.mark.parametrize("part", ["login", "signing"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_key_under_two_names_is_found_and_both_are_named(office: Office, part: str, replace: bool) -> None:  # noqa: FBT001  # a case
    keys = new_keys()
    let_in(office, "north", keys)
    fresh = new_keys()
    copied = Keys(keys.login, fresh.signing) if part == "login" else Keys(fresh.login, keys.signing)
    with pytest.raises(EnrolmentError, match="south uses a key of agent north"):
        let_in(office, "south", copied, replace=replace)
    assert set(office.files.read().records) == {"north"}


def test_a_revoked_key_never_comes_back_and_new_keys_do_with_the_owners_word(office: Office) -> None:
    keys = new_keys()
    let_in(office, "north", keys)
    revoke("north", office.files, later(1), "stolen")
    assert names_of(office, "north", later(1)) == set()
    for replace in (False, True):
        with pytest.raises(EnrolmentError, match="a key that was revoked on 2030-04-02: stolen"):
            let_in(office, "north", keys, later(2), replace=replace)
    with pytest.raises(EnrolmentError, match=r"was revoked on 2030-04-02: stolen, .*--replace"):
        let_in(office, "north", new_keys(), later(2))
    new = new_keys()
    let_in(office, "north", new, later(2), replace=True)
    assert names_of(office, "north", later(2)) == {named(new)}
    assert "north" not in office.files.read().revoked()


def test_revoking_ends_every_certificate_that_was_ever_issued(office: Office) -> None:
    old, new = new_keys(), new_keys()
    let_in(office, "north", old)
    let_in(office, "north", new, later(1), renewed=old)
    revoke("north", office.files, later(2), "left")
    register = office.files.read()
    assert len(register.serials()) == 4
    assert register.revoked() == {"north"}
    done = revoke("north", office.files, later(3), "again")
    assert done.again
    assert (done.record.issues[-1].revoked, done.record.issues[-1].reason) == (later(2), "left")


def test_a_suspected_key_is_ended_by_a_renewal_with_the_owners_word(office: Office) -> None:
    old, new, thief = new_keys(), new_keys(), new_keys()
    let_in(office, "north", old)
    done = let_in(office, "north", new, later(1), renewed=old, replace=True)
    assert done.meaning == "renewal"
    assert names_of(office, "north", later(1)) == {named(new)}
    assert len(office.files.read().serials()) == 2
    with pytest.raises(EnrolmentError, match="--replace"):
        let_in(office, "north", thief, later(2), renewed=old)


def test_only_the_newest_key_consents_to_a_renewal(office: Office) -> None:
    old, new, thief = new_keys(), new_keys(), new_keys()
    let_in(office, "north", old)
    let_in(office, "north", new, later(1), renewed=old)
    for stranger, by in ((thief, old), (Keys(thief.login, old.signing), new_keys())):
        with pytest.raises(EnrolmentError, match="without that agent's consent"):
            let_in(office, "north", stranger, later(2), renewed=by)
    assert let_in(office, "north", new_keys(), later(2), renewed=new).meaning == "renewal"


def test_the_owners_word_comes_later_than_the_renewal_and_still_ends_the_old_key(office: Office) -> None:
    old, new = new_keys(), new_keys()
    let_in(office, "north", old)
    first = let_in(office, "north", new, later(1), renewed=old)
    done = let_in(office, "north", new, later(2), renewed=old, replace=True)
    assert (done.meaning, done.bundle) == ("again", first.bundle)
    assert names_of(office, "north", later(2)) == {named(new)}


@pytest.mark.parametrize("part", ["login", "signing"])
def test_a_key_is_not_replaced_by_itself(office: Office, part: str) -> None:
    old, new = new_keys(), new_keys()
    let_in(office, "north", old)
    mixed = Keys(old.login, new.signing) if part == "login" else Keys(new.login, old.signing)
    with pytest.raises(EnrolmentError, match="a key that --replace would revoke"):
        let_in(office, "north", mixed, later(1), renewed=old, replace=True)
    assert names_of(office, "north", later(1)) == {named(old)}


def test_revoking_a_stranger_names_those_who_are_known(office: Office) -> None:
    let_in(office, "north", new_keys())
    with pytest.raises(EnrolmentError, match=r"'nroth' was never enrolled here; enrolled: north"):
        revoke("nroth", office.files, NOW, "")


def test_a_forged_request_is_not_even_judged(office: Office) -> None:
    honest = new_keys().request("north")
    forged = honest.model_copy(update={"signing_key": new_keys().request("x").signing_key})
    with pytest.raises(EnrolmentError, match="not signed by its own signing key"):
        enrol(forged, office.files, office.authority, office.door(NOW), NOW, days=1, replace=True)
    assert office.files.read().records == {}


def test_a_record_does_not_grow_without_end_and_forgets_what_ran_out_first(office: Office) -> None:
    keys = new_keys()
    record = let_in(office, "north", keys, days=1).record
    full = record.model_copy(update={"issues": record.issues * MAX_ISSUES})
    issue = record.issues[0]
    with pytest.raises(EnrolmentError, match="did not run out yet"):
        full.with_issue(issue, NOW)
    assert full.with_issue(issue, later(2)).issues == (issue,)


def test_two_who_enrol_at_once_wait_for_each_other(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads, judges and writes alone: the one that writes last has seen what the other wrote."""
    keys = new_keys()
    inside, outcomes = threading.Barrier(2, timeout=60), list[str]()
    write = RosterFiles.write

    def slowly(files: RosterFiles, record: Record) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            inside.wait(0.3)  # broken where the other is kept out, as it should be
        write(files, record)

    monkeypatch.setattr(RosterFiles, "write", slowly)

    def enter(name: str) -> None:
        try:
            let_in(office, name, keys)
            outcomes.append("in")
        except EnrolmentError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=enter, args=(name,)) for name in ("north", "south")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(office.files.read().records) == 1
    assert sorted(outcome == "in" for outcome in outcomes) == [False, True]
    assert "uses a key of agent" in "".join(outcomes)


def test_of_two_with_the_same_key_the_second_is_refused_whatever_was_judged_before(office: Office) -> None:
    keys = new_keys()
    records = office.files.read().records
    assert judge(keys.request("north"), records, NOW) == judge(keys.request("south"), records, NOW) == "new"
    let_in(office, "north", keys)
    with pytest.raises(EnrolmentError, match="south uses a key of agent north"):
        let_in(office, "south", keys)
