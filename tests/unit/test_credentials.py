"""The federation's keys and certificates: made fit, refused when they are not, renewed in time."""

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from enrolments import NOW, later, new_keys, new_office

from fedpipe_coordinator.federation import Office
from fedpipe_coordinator.home import Party
from fedpipe_coordinator.security.authority import BROKER_DAYS, CANARY_SERIAL, new_authority, new_login_key
from fedpipe_coordinator.security.credentials import (
    is_due,
    load_authority,
    load_credentials,
    load_party,
    make_credentials,
    renew_due,
)
from fedpipe_coordinator.security.owned_files import OwnedFileError
from fedpipe_wire.certificates import CertificateError, load_certificate, private_pem
from fedpipe_wire.sealing import COORDINATOR, Inspector, SealError, key_id
from fedpipe_wire.transport import Received

HOSTS = ("127.0.0.1",)


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return new_office(tmp_path / "home")


def serial(office: Office, party: Party) -> int:
    return load_certificate(office.home.certificate(party).read_text(), party).serial_number


def test_every_key_is_its_owners_alone_and_nothing_else_lies_about(office: Office) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in office.home.path.rglob("*.key")}
    assert modes == dict.fromkeys(("ca.key", "broker.key", "login.key", "signing.key"), 0o600)
    folders = [path for path in office.home.path.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in [office.home.path, *folders]} == {0o700}
    assert not [path for path in office.home.path.rglob(".*") if path.name != ".lock"]


def test_what_the_coordinator_seals_is_believed_by_its_certificate_and_by_no_other_key(office: Office) -> None:
    credentials = load_credentials(office.home, "tests", NOW)
    sealer = credentials.sealer(iter(range(5, 9)).__next__)
    topic, payload = "fedpipe/tests/broadcast/run", b"{}"
    outside = sealer.seal(topic, payload, retain=True)
    key = office.door(NOW).coordinator.public_key()
    packet = Received(topic, payload, True, outside.properties())
    retained = frozenset({"run"})
    inspector = Inspector({COORDINATOR: {key_id(key): key}}.get, {}, retained)  # type: ignore[arg-type]  # Ed25519 by its purpose
    assert inspector.inspect(COORDINATOR, packet).counter == 5
    other = Inspector({COORDINATOR: {outside.key: new_keys().signing.public_key()}}.get, {}, retained)
    with pytest.raises(SealError, match="not _coordinator's"):
        other.inspect(COORDINATOR, packet)


def test_nobody_can_guess_the_coordinators_session(tmp_path: Path, office: Office) -> None:
    first = load_credentials(office.home, "tests", NOW).client_id
    assert first == load_credentials(office.home, "tests", NOW).client_id
    other = new_office(tmp_path / "other")
    assert first != load_credentials(other.home, "tests", NOW).client_id
    assert len(first.rpartition("-")[2]) == 32


def test_an_authority_is_never_overwritten(office: Office) -> None:
    before = office.home.authority_key.read_bytes()
    office.home.settings.unlink()
    with pytest.raises(OwnedFileError, match="exists already"):
        make_credentials(office.home, "tests", HOSTS, NOW)
    assert office.home.authority_key.read_bytes() == before


def test_an_authority_of_another_name_is_not_taken(office: Office) -> None:
    with pytest.raises(CertificateError, match=r"not of federation 'others'"):
        load_authority(office.home, "others", NOW)


def test_a_missing_file_is_named_with_what_to_do(office: Office) -> None:
    office.home.authority_certificate.unlink()
    with pytest.raises(OwnedFileError, match=r"ca\.crt is missing: restore .*--insecure"):
        load_credentials(office.home, "tests", NOW)


@pytest.mark.parametrize("party", ["login", "signing"])
def test_a_key_that_others_may_read_keeps_the_coordinator_from_starting(office: Office, party: Party) -> None:
    office.home.key(party).chmod(0o644)
    with pytest.raises(OwnedFileError, match=f"{party}.key may be read by others"):
        load_credentials(office.home, "tests", NOW)


def test_a_key_that_does_not_fit_its_certificate_is_told(office: Office) -> None:
    office.home.key("login").write_bytes(private_pem(new_login_key()))
    with pytest.raises(CertificateError, match=r"login\.crt is not the certificate of .*login\.key"):
        load_credentials(office.home, "tests", NOW)


def test_a_certificate_of_another_party_is_not_taken(office: Office) -> None:
    home = office.home
    home.certificate("login").write_bytes(home.certificate("broker").read_bytes())
    home.key("login").write_bytes(home.key("broker").read_bytes())
    with pytest.raises(CertificateError, match="the login certificate of _coordinator is for 'tests broker'"):
        load_credentials(home, "tests", NOW)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"-----BEGIN CERTIFICATE-----\nAAAA\n", b"x" * 1_000_000])
def test_a_damaged_certificate_is_told(office: Office, content: bytes) -> None:
    office.home.certificate("login").write_bytes(content)
    with pytest.raises((CertificateError, OwnedFileError), match=r"login\.crt"):
        load_credentials(office.home, "tests", NOW)


def test_the_signing_certificate_lasts_as_long_as_the_authority(office: Office) -> None:
    ca = office.authority.certificate
    signing = load_party(office.home, ca, "tests", "signing", NOW)
    assert signing.not_valid_after_utc == ca.not_valid_after_utc


def test_a_renewal_is_of_the_same_key_and_only_when_two_thirds_are_over(office: Office) -> None:
    keys = {path: path.read_bytes() for path in office.home.path.rglob("*.key")}
    before = serial(office, "broker")
    assert renew_due(office.home, office.authority, HOSTS, later(BROKER_DAYS * 0.66 - 1)) == ()
    assert serial(office, "broker") == before
    assert renew_due(office.home, office.authority, HOSTS, later(BROKER_DAYS * 0.67 + 1)) == ("broker", "login")
    assert serial(office, "broker") != before
    assert keys == {path: path.read_bytes() for path in keys}
    load_credentials(office.home, "tests", later(BROKER_DAYS + 1))


def test_certificates_that_ran_out_while_nobody_looked_are_renewed(office: Office) -> None:
    much_later = later(BROKER_DAYS * 3)
    with pytest.raises(CertificateError, match="set the clock, or have it renewed"):
        load_credentials(office.home, "tests", much_later)
    assert renew_due(office.home, office.authority, HOSTS, much_later) == ("broker", "login")
    load_credentials(office.home, "tests", much_later)


def test_a_broker_that_moved_gets_a_certificate_for_its_new_name(office: Office) -> None:
    hosts = ("broker.example.org", "::1")
    assert renew_due(office.home, office.authority, hosts, NOW) == ("broker",)
    assert renew_due(office.home, office.authority, hosts, NOW) == ()
    names = load_party(office.home, office.authority.certificate, "tests", "broker", NOW).extensions
    alternatives = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == ["broker.example.org", "localhost"]
    assert {str(each) for each in alternatives.get_values_for_type(x509.IPAddress)} == {"::1", "127.0.0.1"}


def test_a_lost_pair_is_made_anew_with_another_key(office: Office) -> None:
    before = office.home.key("broker").read_bytes()
    office.home.key("broker").unlink()
    office.home.certificate("broker").unlink()
    assert renew_due(office.home, office.authority, HOSTS, NOW) == ("broker",)
    assert office.home.key("broker").read_bytes() != before
    load_party(office.home, office.authority.certificate, "tests", "broker", NOW)


def test_no_certificate_outlives_its_authority() -> None:
    authority = new_authority("tests", NOW, days=10)
    certificate = authority.issue("north", new_login_key().public_key(), "login", NOW, 365)
    assert certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc
    assert is_due(certificate, NOW + timedelta(days=9))


def test_each_list_of_revocations_is_dated_after_the_one_before_it() -> None:
    """OpenSSL keeps both lists when a broker reloads, and believes the one of the later date, in whole seconds."""
    authority = new_authority("tests", NOW)
    first = authority.revocations([(CANARY_SERIAL, NOW)], NOW)
    for now in (NOW, NOW + timedelta(milliseconds=10), NOW - timedelta(days=300)):
        second = authority.revocations([(7, NOW)], now, first.last_update_utc)
        assert second.last_update_utc > first.last_update_utc
        assert second.next_update_utc == authority.certificate.not_valid_after_utc
        first = second
    assert first.last_update_utc < NOW  # one dated ahead of a broker's clock would lock everybody out


def test_certificates_have_no_common_numbers_and_never_that_of_the_canary() -> None:
    authority = new_authority("tests", NOW)
    key = new_login_key().public_key()
    numbers = {authority.issue("north", key, "login", NOW, 1).serial_number for _ in range(50)}
    assert len(numbers) == 50
    assert CANARY_SERIAL not in numbers
