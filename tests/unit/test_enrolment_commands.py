"""`fedpipe init`, `enroll`, `agents`, `revoke`, `renew` and `doctor` as a person runs them, without a coordinator."""

import io
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from enrolments import new_keys, write_request

from fedpipe_coordinator import cli
from fedpipe_coordinator.audit.federation_audit import FederationAudit
from fedpipe_coordinator.exit_codes import ExitCode
from fedpipe_coordinator.federation import Office
from fedpipe_coordinator.federation_config import load_federation
from fedpipe_coordinator.home import Home
from fedpipe_coordinator.security.access import denied_in
from fedpipe_coordinator.security.owned_files import OwnedFileError
from fedpipe_coordinator.security.revocation_list import read_revocations, revoked_in
from fedpipe_wire.certificates import fingerprint, load_certificate
from fedpipe_wire.enrolment import MAX_FILE_BYTES, Bundle, Request, check_bundle, decode, encode, request_fingerprint
from fedpipe_wire.sealing import COORDINATOR


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]


class Terminal(io.StringIO):
    """Standard input at which a person sits."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, typed: str | None = None) -> Said:
        monkeypatch.setattr(sys, "argv", ["fedpipe", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO() if typed is None else Terminal(typed))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        read = capsys.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 0, read.out, " ".join(read.err.split()))

    return call


@pytest.fixture
def home(run: Run, tmp_path: Path) -> Home:
    made = run("init", tmp_path / "home", "--name", "clinics", "--host", "broker.example.org")
    assert made.code == 0, made
    return Home(tmp_path / "home")


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    return write_request(tmp_path / "north.json", "north", new_keys())


def test_a_federation_has_the_secure_port_and_says_its_fingerprint(run: Run, tmp_path: Path) -> None:
    said = run("init", tmp_path / "home")
    assert load_federation(tmp_path / "home" / "federation.toml").broker.port == 8883
    request = write_request(tmp_path / "a.json", "north", new_keys())
    assert run("enroll", request, "--home", "home", "--yes").code == 0
    bundle = decode(Bundle, (tmp_path / "north.bundle.json").read_bytes())
    assert bundle.port == 8883
    assert said.out == ""
    assert fingerprint(check_bundle(bundle, datetime.now(UTC)).authority) in said.err


@pytest.mark.parametrize("host", ["a b", "x\ninsecure = true", 'x"', "-x", "fe80::1%eth0", "a" * 300, "*", ""])
def test_a_host_that_could_stand_for_something_else_is_refused(run: Run, tmp_path: Path, host: str) -> None:
    said = run("init", tmp_path / "home", f"--host={host}")
    assert said.code == ExitCode.BAD_SETTINGS
    assert not (tmp_path / "home" / "federation.toml").exists()
    assert not (tmp_path / "home" / "ca").exists()


def test_without_tls_a_federation_stays_on_its_machine(run: Run, tmp_path: Path) -> None:
    said = run("init", tmp_path / "far", "--insecure", "--host", "10.0.0.1")
    assert said.code == ExitCode.BAD_SETTINGS
    said = run("init", tmp_path / "near", "--insecure")
    assert said.code == 0
    assert "INSECURE" in said.err
    assert {path.name for path in (tmp_path / "near").iterdir()} == {"federation.toml"}
    for verb in (["enroll", "x.json"], ["revoke", "north"], ["renew"]):
        refused = run(*verb, "--home", "near", "--yes") if verb != ["renew"] else run("renew", "--home", "near")
        assert refused.code == ExitCode.BAD_SETTINGS, refused
        assert "made with --insecure" in refused.err


def test_a_broker_of_its_owners_gets_the_same_rules_as_text(run: Run, tmp_path: Path) -> None:
    said = run("init", tmp_path / "home", "--no-managed", "--host", "mqtt.example.org")
    text = (tmp_path / "home" / "broker" / "external.conf").read_text()
    assert "external.conf" in said.err
    for line in ("require_certificate true", "use_identity_as_username true", "allow_anonymous false", "listener 8883"):
        assert line in text.splitlines()
    for file in ("ca.crt", "crl.pem", "acl", "broker.crt", "broker.key"):
        assert f"/etc/mosquitto/fedpipe/{file}" in text


def test_nobody_is_let_in_before_somebody_said_so(run: Run, home: Home, request_file: Path) -> None:
    shown = request_fingerprint(decode(Request, request_file.read_bytes()))
    unasked = run("enroll", request_file, "--home", home.path)
    assert unasked.code == ExitCode.USAGE
    assert "--yes" in unasked.err
    denied = run("enroll", request_file, "--home", home.path, typed="n\n")
    assert denied.code == ExitCode.USAGE
    assert not list(home.agents.glob("*.json"))
    agreed = run("enroll", request_file, "--home", home.path, typed="y\n")
    assert agreed.code == 0
    for said in (unasked, denied, agreed):
        assert shown in said.err
    assert agreed.out.strip() == "north.bundle.json"


def test_a_bundle_and_a_record_are_their_owners_alone(run: Run, home: Home, request_file: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        out = tmp_path / "out.json"
        assert run("enroll", request_file, "--home", home.path, "--yes", "--out", out, "--days", 30).code == 0
    finally:
        os.umask(before)
    for path in (out, home.agents / "north.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "harm",
    [
        lambda _: b"",
        lambda _: b"{}",
        lambda _: b"\x00" * 100,
        lambda data: data[:-20],
        lambda data: data + b" " * MAX_FILE_BYTES,
        lambda data: data.replace(b"fedpipe-request", b"fedpipe-bundle"),
        lambda data: data.replace(b'"north"', b'"_coordinator"'),
        lambda data: data.replace(b'"north"', b'"south"'),
        lambda data: data.replace(b'"north"', json.dumps("\x1b[2J" + "x" * 10_000).encode()),
        lambda _: b"[" * 100_000,
    ],
)
def test_a_harmed_request_is_refused_in_a_line(
    run: Run, home: Home, request_file: Path, harm: Callable[[bytes], bytes]
) -> None:
    request_file.write_bytes(harm(request_file.read_bytes()))
    said = run("enroll", request_file, "--home", home.path, "--yes")
    assert said.code in {ExitCode.ENROLMENT_REFUSED, ExitCode.CREDENTIALS_UNUSABLE}, said
    assert "Traceback" not in said.err
    assert "\x1b" not in said.err
    assert len(said.err) < 2000
    assert not list(home.agents.glob("*.json"))


def test_a_request_that_is_not_there_is_said(run: Run, home: Home) -> None:
    said = run("enroll", "no.json", "--home", home.path, "--yes")
    assert said.code == ExitCode.CREDENTIALS_UNUSABLE
    assert "no.json" in said.err


def test_other_keys_are_refused_without_a_question(run: Run, home: Home, tmp_path: Path, request_file: Path) -> None:
    assert run("enroll", request_file, "--home", home.path, "--yes").code == 0
    other = write_request(tmp_path / "other.json", "north", new_keys())
    said = run("enroll", other, "--home", home.path, "--yes")
    assert said.code == ExitCode.ENROLMENT_REFUSED
    assert "OTHER KEYS" in said.err
    assert "--replace" in said.err
    assert run("enroll", other, "--home", home.path, "--yes", "--replace").code == 0


def test_who_is_enrolled_is_shown_without_a_coordinator(run: Run, home: Home, tmp_path: Path) -> None:
    for name in ("north", "south"):
        path = write_request(tmp_path / f"{name}.json", name, new_keys())
        assert run("enroll", path, "--home", home.path, "--yes", "--days", "10").code == 0
    assert run("revoke", "south", "--home", home.path, "--yes", "--reason", "sold \x1b[2J").code == 0
    shown = json.loads(run("agents", "--home", home.path, "--format", "json").out)
    assert shown["running"] is False
    assert {name: entry["state"] for name, entry in shown["enrolled"].items()} == {
        "north": "enrolled",
        "south": "revoked",
    }
    assert shown["enrolled"]["north"]["note"] == "runs out in 9 days"
    table = run("agents", "--home", home.path)
    assert table.code == 0
    assert "sold" in table.out
    assert "\x1b[2J" not in table.out


def test_a_name_that_nobody_has_is_not_revoked(run: Run, home: Home) -> None:
    said = run("revoke", "nobody", "--home", home.path, "--yes")
    assert said.code == ExitCode.ENROLMENT_REFUSED
    said = run("revoke", "nobody", "--home", home.path)
    assert said.code == ExitCode.USAGE
    said = run("revoke", "nobody", "--home", home.path, "--yes", "--reason", "x" * 501)
    assert said.code == ExitCode.USAGE


def test_renewing_keeps_the_keys_and_makes_new_certificates(run: Run, home: Home) -> None:
    before = {path.name: path.read_bytes() for path in home.path.rglob("*") if path.suffix in {".key", ".crt"}}
    said = run("renew", "--home", home.path)
    assert [line.split()[0] for line in said.out.splitlines()] == ["broker", "login"]
    after = {path.name: path.read_bytes() for path in home.path.rglob("*") if path.suffix in {".key", ".crt"}}
    assert {name for name in before if before[name] != after[name]} == {"broker.crt", "login.crt"}


def test_a_doctor_that_finds_no_broker_ends_with_its_code(run: Run, home: Home) -> None:
    text = home.settings.read_text().replace("broker.example.org", "127.0.0.1").replace("8883", "1")
    home.settings.write_text(text)
    said = run("doctor", "--home", home.path, "--format", "json")
    assert said.code == ExitCode.CHECKS_FAILED
    shown = json.loads(said.out)
    assert shown["sound"] is False
    states = {each["check"]: each["state"] for each in shown["checks"]}
    assert states.pop("login") == "failed"
    assert set(states.values()) == {"ok"}


def test_a_folder_whose_settings_are_lost_keeps_its_authority(run: Run, home: Home) -> None:
    before = home.authority_key.read_bytes()
    home.settings.unlink()
    said = run("init", home.path)
    assert said.code == ExitCode.CREDENTIALS_UNUSABLE
    assert "restore the federation.toml" in said.err
    assert home.authority_key.read_bytes() == before
    assert not home.settings.exists()


def test_a_bundle_is_what_the_agents_side_takes(run: Run, home: Home, request_file: Path, tmp_path: Path) -> None:
    assert run("enroll", request_file, "--home", home.path, "--yes").code == 0
    data = (tmp_path / "north.bundle.json").read_bytes()
    bundle = decode(Bundle, data)
    assert encode(bundle) == data
    assert (bundle.host, bundle.port, bundle.federation, bundle.agent) == (
        "broker.example.org",
        8883,
        "clinics",
        "north",
    )


def test_who_was_let_in_and_out_is_in_the_federations_record(run: Run, home: Home, request_file: Path) -> None:
    assert run("enroll", request_file, "--home", home.path, "--yes").code == 0
    assert run("renew", "--home", home.path).code == 0
    assert run("revoke", "north", "--home", home.path, "--yes", "--reason", "stolen\x1b[2J").code == 0
    lines = FederationAudit(home.path).lines()
    assert [(line["kind"], line["who"]) for line in lines] == [
        ("enrolled", "north"),
        ("renewed", COORDINATOR),
        ("renewed", COORDINATOR),
        ("revoked", "north"),
    ]
    asked = decode(Request, request_file.read_bytes())
    assert lines[0]["data"]["request"] == request_fingerprint(asked)
    assert "stolen" in lines[3]["text"]
    assert lines[3]["text"].isprintable()
    assert run("audit", "verify", "--home", home.path).code == 0


def _full(*_: object) -> None:
    raise OwnedFileError("no space left on device")


@pytest.mark.parametrize("broken", ["publish", "append"])
def test_what_kept_a_revocation_from_its_end_is_made_up_for_by_running_it_again(
    run: Run, home: Home, request_file: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    assert run("enroll", request_file, "--home", home.path, "--yes").code == 0
    with monkeypatch.context() as context:
        context.setattr(Office if broken == "publish" else FederationAudit, broken, _full)
        assert run("revoke", "north", "--home", home.path, "--yes", "--reason", "stolen").code != 0
    for _ in range(2):
        said = run("revoke", "north", "--home", home.path, "--yes", "--reason", "once more")
        assert said.code == 0, said
        assert re.search(r"Agent north is revoked. It was on [0-9-]+: stolen", said.err)
    assert denied_in(home.access.read_text()) == {"north"}
    ca = load_certificate(home.authority_certificate.read_text(), "the authority")
    found = read_revocations(home, ca)
    assert found is not None
    assert len(revoked_in(found)) == 3
    lines = [line["text"] for line in FederationAudit(home.path).lines() if line["kind"] == "revoked"]
    assert lines == ["agent north was revoked: stolen"]


@pytest.mark.parametrize("broken", ["publish", "append"])
def test_what_kept_an_enrolment_from_its_end_is_made_up_for_by_running_it_again(
    run: Run, home: Home, request_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    with monkeypatch.context() as context:
        context.setattr(Office if broken == "publish" else FederationAudit, broken, _full)
        assert run("enroll", request_file, "--home", home.path, "--yes").code != 0
    assert not (tmp_path / "north.bundle.json").exists()
    assert run("enroll", request_file, "--home", home.path, "--yes").code == 0
    assert (tmp_path / "north.bundle.json").exists()
    (line,) = [line for line in FederationAudit(home.path).lines() if line["kind"] == "enrolled"]
    assert line["who"] == "north"
    assert line["data"]["request"] == request_fingerprint(decode(Request, request_file.read_bytes()))
