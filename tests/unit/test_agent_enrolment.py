"""init, join and renew: what they make, what they refuse, and that a running agent takes renewed keys."""

import json
import os
import pty
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sealed_support import SealedFederation, now
from typer.testing import CliRunner

from fedpipe_agent import key_folder
from fedpipe_agent.cli import app
from fedpipe_agent.credentials import load_credentials
from fedpipe_agent.errors import (
    ExpiredError,
    ForeignBundleError,
    KeyFilesError,
    NotJoinedError,
    StateFolderError,
    WrongFingerprintError,
)
from fedpipe_agent.passport import WARN_BEFORE, WARN_EVERY, Enrolled
from fedpipe_profiles.settings_file import SettingsError
from fedpipe_wire.certificates import CertificateError, fingerprint, load_certificate
from fedpipe_wire.enrolment import Bundle, Request, consents, decode, encode, request_fingerprint
from fedpipe_wire.sealing import COORDINATOR, key_id

FEDERATION, OTHER = SealedFederation(), SealedFederation()
PRINT = fingerprint(FEDERATION.authority.certificate)


@dataclass
class Silo:
    """A folder with agent.toml, and the commands in it."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "agent.toml"

    @property
    def identity(self) -> Path:
        return self.folder / "state" / "identity"

    @property
    def request(self) -> Request:
        return decode(Request, (self.folder / "request.json").read_bytes())

    def run(self, *arguments: str | Path) -> str:
        """What a command prints; raises what it raises."""
        verb, *rest = map(str, arguments)
        result = CliRunner().invoke(app, [verb, *rest, "--config", str(self.config)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    def bundle(self, federation: SealedFederation = FEDERATION, **more: Any) -> Path:
        path = self.folder / "bundle.json"
        path.write_bytes(encode(federation.bundle(self.request, **more)))
        return path

    def credentials(self) -> Any:
        return load_credentials(self.folder / "state", "north", now())


@pytest.fixture
def silo(tmp_path: Path) -> Silo:
    made = Silo(tmp_path / "silo")
    made.run("init", "north")
    return made


@pytest.fixture
def joined(silo: Silo) -> Silo:
    silo.run("join", silo.bundle(), "--fingerprint", PRINT)
    return silo


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*.key")}


# --- init -------------------------------------------------------------------------------------------------------


def test_init_makes_keys_for_nobody_else_and_a_request_that_can_be_enrolled(silo: Silo) -> None:
    assert modes(silo.identity) == {"login.key": 0o600, "signing.key": 0o600}
    assert stat.S_IMODE(silo.identity.stat().st_mode) == stat.S_IMODE(silo.identity.parent.stat().st_mode) == 0o700
    assert silo.request.agent == "north"
    assert FEDERATION.bundle(silo.request).agent == "north"
    text = (silo.folder / "request.json").read_text()
    assert "PRIVATE" not in text
    assert not any(line in text for line in (silo.identity / "login.key").read_text().splitlines())


def test_no_key_can_be_read_by_others_not_even_while_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    fsync = os.fsync

    def looking(descriptor: int) -> None:
        seen.extend(path.stat().st_mode for path in tmp_path.rglob("*.key"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", looking)
    before = os.umask(0)
    try:
        key_folder.make_keys(tmp_path / "state", key_folder.CURRENT)
    finally:
        os.umask(before)
    assert seen
    assert not any(mode & 0o077 for mode in seen)
    assert not any(path.stat().st_mode & 0o077 for path in (tmp_path / "state").rglob("*"))


def test_init_again_changes_nothing_and_with_force_everything(silo: Silo) -> None:
    keys = (silo.identity / "signing.key").read_bytes()
    settings, request = silo.config.read_bytes(), (silo.folder / "request.json").read_bytes()
    said = silo.run("init", "north")
    assert request_fingerprint(silo.request) in said
    assert (silo.identity / "signing.key").read_bytes() == keys
    assert (silo.config.read_bytes(), (silo.folder / "request.json").read_bytes()) == (settings, request)
    silo.run("init", "north", "--force")
    assert (silo.identity / "signing.key").read_bytes() != keys
    assert silo.config.read_bytes() == settings
    assert silo.request.signing_key not in request.decode()


def test_a_settings_file_of_another_name_is_left_alone(silo: Silo) -> None:
    with pytest.raises(SettingsError, match='name = "north": expected "south"'):
        silo.run("init", "south")
    silo.config.write_text('name = "north"\nfederation = "f"\n# mine\n')
    silo.run("init", "north")
    assert "# mine" in silo.config.read_text()


def test_something_else_in_the_place_of_the_request_is_not_overwritten(silo: Silo) -> None:
    (silo.folder / "request.json").write_text("my own notes")
    with pytest.raises(KeyFilesError, match="in the way"):
        silo.run("init", "north")
    assert (silo.folder / "request.json").read_text() == "my own notes"
    silo.run("init", "north", "--request", silo.folder / "other.json")


def test_a_name_that_cannot_stand_in_a_topic_makes_nothing(tmp_path: Path) -> None:
    silo = Silo(tmp_path / "silo")
    with pytest.raises(ValueError, match="agent name"):
        silo.run("init", "North/../Wing")
    assert not silo.folder.exists()


# --- join -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelled", [PRINT, PRINT.upper().replace("-", ""), PRINT.replace("-", ":")], ids=range(3))
def test_a_bundle_with_the_right_fingerprint_is_joined(silo: Silo, spelled: str) -> None:
    with pytest.raises(NotJoinedError, match="has joined no federation yet"):
        silo.credentials()
    said = silo.run("join", silo.bundle(host="broker.example.org", port=8884), "--fingerprint", spelled)
    assert "broker.example.org:8884, by TLS" in said
    found = silo.credentials()
    assert found.membership.bundle.federation == "f"
    assert set(found.membership.coordinator_keys) == {key_id(FEDERATION.signing.public_key())}
    assert {path.name for path in silo.identity.iterdir()} == {
        "login.key", "login.crt", "signing.key", "signing.crt", "ca.crt", "bundle.json",
    }  # fmt: skip


def _edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Silo], Path]:
    def make(silo: Silo) -> Path:
        path = silo.bundle()
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))
        return path

    return make


def _for_others_keys(silo: Silo) -> Path:
    path = silo.bundle()
    silo.run("init", "north", "--force")
    return path


def _huge(silo: Silo) -> Path:
    path = silo.folder / "bundle.json"
    path.write_bytes(b" " * 50_000_000)
    return path


def _of_another_coordinator(values: dict[str, Any]) -> None:
    values["coordinator"] = OTHER.bundle(_REQUESTS[0]).coordinator


_REQUESTS: list[Request] = []
HOSTILE: dict[str, tuple[Callable[[Silo], Path], type[Exception], str]] = {
    "another federation's": (lambda s: s.bundle(OTHER), WrongFingerprintError, "is of another federation.*expected"),
    "no file": (lambda s: s.folder / "nowhere", ForeignBundleError, "No such file"),
    "a folder": (lambda s: s.folder, ForeignBundleError, "directory"),
    "50 MB": (_huge, ForeignBundleError, "at most 131072"),
    "a request": (lambda s: s.folder / "request.json", ForeignBundleError, "not a bundle of FedPipe"),
    "for other keys": (_for_others_keys, ForeignBundleError, "made for other keys"),
    "another name": (_edited(lambda v: v.update(agent="south")), ForeignBundleError, "is for agent 'south'"),
    "another federation's name": (_edited(lambda v: v.update(federation="g")), ForeignBundleError, "expected 'g'"),
    "a host with an escape": (_edited(lambda v: v.update(host="b\x1b[2J")), ForeignBundleError, "host"),
    "port 0": (_edited(lambda v: v.update(port=0)), ForeignBundleError, "port"),
    "swapped certificates": (
        _edited(lambda v: v.update(login=v["signing"], signing=v["login"])),
        ForeignBundleError,
        "is for another purpose",
    ),
    "the agent as coordinator": (
        _edited(lambda v: v.update(coordinator=v["signing"])),
        ForeignBundleError,
        "is for 'north'",
    ),
    "another's coordinator": (_edited(_of_another_coordinator), ForeignBundleError, "not issued by this federation"),
    "a leaf as authority": (_edited(lambda v: v.update(authority=v["login"])), ForeignBundleError, "stand for itself"),
    "not PEM": (_edited(lambda v: v.update(login="-----BEGIN")), ForeignBundleError, "not a certificate"),
    "expired": (lambda s: s.bundle(at=now() - timedelta(days=40), days=30), ExpiredError, "clock says .*set the clock"),
    "of tomorrow": (lambda s: s.bundle(at=now() + timedelta(days=2)), ExpiredError, "clock says"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bundle_that_does_not_count_installs_nothing(silo: Silo, name: str) -> None:
    _REQUESTS[:] = [silo.request]
    make, error, told = HOSTILE[name]
    path = make(silo)
    before = sorted(each.name for each in silo.identity.iterdir())
    with pytest.raises(error, match=told) as caught:
        silo.run("join", path, "--fingerprint", PRINT)
    assert len(str(caught.value)) < 1500
    assert str(caught.value).isprintable()
    assert sorted(each.name for each in silo.identity.iterdir()) == before == ["login.key", "signing.key"]


def test_the_settings_may_name_the_only_federation_that_is_meant(silo: Silo) -> None:
    silo.config.write_text('name = "north"\nfederation = "clinics"\n')
    with pytest.raises(ForeignBundleError, match=r"of federation 'f', agent.toml says 'clinics'"):
        silo.run("join", silo.bundle(), "--fingerprint", PRINT)


@pytest.mark.parametrize("given", ["", "0a1b", PRINT[:-1], PRINT + "0", "z" * 64], ids=range(5))
def test_what_is_no_fingerprint_is_told(silo: Silo, given: str) -> None:
    with pytest.raises(WrongFingerprintError, match="64 hexadecimal digits"):
        silo.run("join", silo.bundle(), "--fingerprint", given)


def test_without_a_fingerprint_and_a_terminal_nothing_is_joined(silo: Silo) -> None:
    with pytest.raises(WrongFingerprintError, match="--fingerprint"):
        silo.run("join", silo.bundle())


@pytest.mark.parametrize(("answer", "code"), [("yes", 0), (PRINT[::-1], 48)], ids=range(2))
def test_at_a_terminal_a_person_is_asked_to_compare(silo: Silo, answer: str, code: int) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "fedpipe_agent", "join", str(silo.bundle()), "--config", str(silo.config)]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        os.close(theirs)
        os.write(ours, f"{answer}\n".encode())
        said, _ = child.communicate(timeout=60)
    os.close(ours)
    assert child.returncode == code, said
    assert PRINT in said.decode()
    assert (silo.identity / "bundle.json").exists() == (code == 0)


def test_another_federation_cannot_be_joined_over_the_first_not_even_with_its_fingerprint(joined: Silo) -> None:
    before = (joined.identity / "bundle.json").read_bytes()
    with pytest.raises(ForeignBundleError, match=f"has joined the federation with fingerprint {PRINT}"):
        joined.run("join", joined.bundle(OTHER), "--fingerprint", fingerprint(OTHER.authority.certificate))
    assert (joined.identity / "bundle.json").read_bytes() == before


def test_a_new_bundle_for_the_same_keys_moves_the_broker(joined: Silo) -> None:
    assert "elsewhere:99" in joined.run("join", joined.bundle(host="elsewhere", port=99))
    with pytest.raises(WrongFingerprintError, match="another federation"):
        joined.run("join", joined.bundle(), "--fingerprint", "0" * 64)


# --- what is in the folder ----------------------------------------------------------------------------------------

HARM: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "a key that others may read": (lambda f: (f / "signing.key").chmod(0o640), KeyFilesError, "mode 0640, 0600 is"),
    "a login key for all": (lambda f: (f / "login.key").chmod(0o644), KeyFilesError, "chmod 600"),
    "no key": (lambda f: (f / "login.key").unlink(), KeyFilesError, "No such file.*backup"),
    "a key of noise": (lambda f: (f / "signing.key").write_bytes(b"\xff" * 99), KeyFilesError, "not a private key"),
    "a key of another kind": (
        lambda f: (f / "signing.key").write_bytes((f / "login.key").read_bytes()),
        KeyFilesError,
        "not an Ed25519 key",
    ),
    "a bundle of noise": (lambda f: (f / "bundle.json").write_text("{"), KeyFilesError, "join the bundle again"),
    "no bundle": (lambda f: (f / "bundle.json").unlink(), NotJoinedError, "fedpipe-agent join"),
    "nothing": (shutil.rmtree, NotJoinedError, "fedpipe-agent init north"),
}


@pytest.mark.parametrize("name", HARM)
def test_what_is_wrong_with_the_files_is_told_with_what_to_do(joined: Silo, name: str) -> None:
    harm, error, told = HARM[name]
    harm(joined.identity)
    with pytest.raises(error, match=told):
        joined.credentials()


def test_credentials_are_for_their_agent_and_their_time(joined: Silo) -> None:
    state = joined.folder / "state"
    with pytest.raises(ForeignBundleError, match=r"is of agent 'north', agent.toml says 'south'"):
        load_credentials(state, "south", now())
    with pytest.raises(ExpiredError, match="clock says"):
        load_credentials(state, "north", now() + timedelta(days=366))


# --- renewal ----------------------------------------------------------------------------------------------------


def test_renewed_keys_are_asked_for_with_consent_and_swapped_when_their_bundle_comes(joined: Silo) -> None:
    old = joined.credentials()
    said = joined.run("renew")
    again = joined.run("renew")
    request = joined.request
    assert request_fingerprint(request) in said
    assert request_fingerprint(request) in again
    assert consents(request, {key_id(old.signing.public_key()): old.signing.public_key()})
    assert joined.credentials().signing.private_bytes_raw() == old.signing.private_bytes_raw()
    joined.run("join", joined.bundle())
    new = joined.credentials()
    assert new.signing.public_key().public_bytes_raw().hex() == request.signing_key
    assert modes(joined.folder / "state") == {"login.key": 0o600, "signing.key": 0o600}
    assert [each.name for each in (joined.folder / "state").iterdir()] == ["identity"]


def test_a_bundle_of_another_federation_does_not_come_in_by_a_renewal(joined: Silo) -> None:
    joined.run("renew")
    with pytest.raises(ForeignBundleError, match="has joined the federation"):
        joined.run("join", joined.bundle(OTHER))
    assert joined.credentials().membership.authority == FEDERATION.authority.certificate


def test_a_crash_at_any_step_of_the_swap_leaves_one_whole_set(joined: Silo, monkeypatch: pytest.MonkeyPatch) -> None:
    joined.run("renew")
    bundle, rename = joined.bundle(), Path.rename
    old, new = joined.credentials().signing.public_key().public_bytes_raw().hex(), joined.request.signing_key
    seen = []
    for steps in range(4):
        left = [steps]

        def failing(self: Path, target: Path, left: list[int] = left) -> Path:
            if left[0] == 0:
                raise OSError(5, "the power went")
            left[0] -= 1
            return rename(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", failing)
            try:
                joined.run("join", bundle)
            except StateFolderError:
                seen.append("crashed")
        found = joined.credentials().signing.public_key().public_bytes_raw().hex()
        assert found in (old, new)
        seen.append("new" if found == new else "old")
        if found == new:
            break
    assert seen == ["crashed", "old", "crashed", "new"]
    assert not (joined.folder / "state" / "identity-former").exists()


def test_a_crash_while_new_keys_replace_the_old_by_force_leaves_the_old_ones(joined: Silo) -> None:
    joined.run("renew")  # its keys have no certificates yet, and must not take the place
    joined.identity.rename(joined.identity.with_name("identity-former"))
    key_folder.recover(joined.folder / "state")
    assert joined.credentials().signing.public_key().public_bytes_raw().hex() != joined.request.signing_key
    assert not (joined.folder / "state" / "identity-former").exists()


def test_a_running_agent_takes_renewed_keys_by_itself(joined: Silo) -> None:
    said: list[str] = []
    passport = Enrolled(joined.folder / "state", "north", said.append)
    old = passport.signing
    passport.context()
    assert not passport.renewed()
    joined.run("renew")
    assert not passport.renewed()
    joined.run("join", joined.bundle())
    passport.context()  # the new files already
    assert passport.renewed()
    assert not passport.renewed()
    assert passport.signing is not None
    assert old is not None
    assert passport.signing.public_key() != old.public_key()
    assert "new keys and certificates are used" in said[-1]


def test_a_bundle_that_was_damaged_meanwhile_leaves_a_running_agent_as_it_is(joined: Silo) -> None:
    said: list[str] = []
    passport = Enrolled(joined.folder / "state", "north", said.append)
    key = passport.signing
    (joined.identity / "bundle.json").write_text("{}")
    assert not passport.renewed()
    assert not passport.renewed()
    assert passport.signing is key
    assert len(said) == 1
    assert "the former ones are" in said[0]
    (joined.identity / "bundle.json").unlink()
    assert not passport.renewed()


def test_a_certificate_that_ends_is_told_from_30_days_before_on_once_a_day(joined: Silo) -> None:
    said: list[str] = []
    clock = [now()]
    passport = Enrolled(joined.folder / "state", "north", said.append, lambda: clock[0])
    until = passport.credentials.until
    for at in (until - WARN_BEFORE - timedelta(hours=1), until - WARN_BEFORE + timedelta(hours=1)):
        clock[0] = at
        passport.renewed()
        passport.renewed()
    assert len(said) == 1
    assert "WARNING: this agent's certificates end in 29 days" in said[0]
    clock[0] += WARN_EVERY
    passport.renewed()
    assert len(said) == 2
    clock[0] = until + timedelta(hours=1)
    passport.renewed()
    assert len(said) == 3
    assert "have ended" in said[-1]
    with pytest.raises(CertificateError, match=r"clock says .*renew"):
        passport.context()
    assert passport.keys is not None
    assert passport.keys(COORDINATOR) == {}
    joined.run("renew")  # also then


def test_only_the_coordinators_keys_count(joined: Silo) -> None:
    passport = Enrolled(joined.folder / "state", "north", lambda _: None)
    assert passport.keys is not None
    assert passport.keys("north") is None
    assert passport.keys(COORDINATOR)


def test_a_bundle_holds_no_secret(joined: Silo) -> None:
    bundle = decode(Bundle, (joined.identity / "bundle.json").read_bytes())
    assert "PRIVATE" not in encode(bundle).decode()
    assert load_certificate(bundle.login, "login").public_key() is not None
