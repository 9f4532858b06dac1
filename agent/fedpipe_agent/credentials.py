"""What makes an agent a member of its federation: keys, certificates and the federation that it trusts, as one value.

Owns reading them from disk and the checks of a bundle that is to be joined. Nothing is installed that was not checked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedpipe_agent import key_folder
from fedpipe_agent.durable import read_file
from fedpipe_agent.errors import ExpiredError, ForeignBundleError, KeyFilesError, NotJoinedError, unusable
from fedpipe_agent.key_folder import BUNDLE, CURRENT, NEXT, Keys
from fedpipe_wire.certificates import (
    CertificateError,
    CertificateTimeError,
    fingerprint,
    load_certificate,
    signing_key_of,
)
from fedpipe_wire.enrolment import MAX_FILE_BYTES, Bundle, EnrolmentError, Membership, check_bundle, decode, encode


@dataclass(frozen=True, slots=True)
class Credentials:
    """A membership with its keys.

    Attributes:
        folder: Where their files are.
        membership: The bundle, checked.
        signing: Signs this agent's messages.
        until: When the first of all certificates ends.
    """

    folder: Path
    membership: Membership
    signing: Ed25519PrivateKey
    until: datetime


def load_credentials(state: Path, name: str, now: datetime) -> Credentials:
    """What an agent has joined its federation with.

    Raises:
        NotJoinedError: if it has joined none.
        ExpiredError: if a certificate's time is over, with the clock's time.
        KeyFilesError: if a file is missing, damaged, or readable by others.
        ForeignBundleError: if it is another agent's.
        StateFolderError: if the folder cannot be used.
    """
    folder = state / CURRENT
    try:
        key_folder.recover(state)
    except OSError as error:
        raise unusable(state, error) from error
    if not (folder / BUNDLE).exists():
        raise NotJoinedError(_not_joined(folder, name))
    keys = key_folder.read_keys(folder)
    bundle = _read(folder / BUNDLE, KeyFilesError, "join the bundle again")
    membership = _checked(bundle, now, KeyFilesError)
    if bundle.agent != name:
        raise ForeignBundleError(f"{folder} is of agent {bundle.agent!r}, agent.toml says {name!r}: correct the name")
    if not fits(bundle, keys):
        raise KeyFilesError(f"keys and certificates in {folder} do not fit together: join the bundle again")
    return Credentials(folder, membership, keys.signing, min(each.not_valid_after_utc for each in _all(membership)))


def join(
    state: Path,
    name: str,
    federation: str | None,
    path: Path,
    meant: Callable[[str, bool], None],
    now: datetime,
) -> Membership:
    """Join the federation of a bundle, or take its renewed certificates.

    Args:
        state: the agent's state folder.
        name: of the agent.
        federation: its name, where agent.toml says one.
        path: the bundle's file.
        meant: takes the bundle's fingerprint, and whether it is that of the federation that was joined before; raises
            unless it is the one that was meant.
        now: the time, with its zone.

    Raises:
        ForeignBundleError: if it was not made for this agent, its keys and its federation.
        ExpiredError: if a certificate's time is over, with the clock's time.
        KeyFilesError: if the agent's own keys cannot be read.
        StateFolderError: if the folder cannot be used.
    """
    bundle = _read(path, ForeignBundleError, "ask the federation's owner for it again")
    if bundle.agent != name:
        raise ForeignBundleError(f"the bundle is for agent {bundle.agent!r}, this is {name!r}")
    if federation not in (None, bundle.federation):
        raise ForeignBundleError(f"the bundle is of federation {bundle.federation!r}, agent.toml says {federation!r}")
    membership = _checked(bundle, now, ForeignBundleError)
    try:
        key_folder.recover(state)
        folder = _folder_of(state, bundle)
        pinned = _pinned(state / CURRENT)
        if pinned not in (None, membership.authority):
            raise ForeignBundleError(
                f"this agent has joined the federation with fingerprint {_shown(pinned)}, the bundle is of "
                f"{fingerprint(membership.authority)}. To change federations, run fedpipe-agent init --force with an "
                "empty 'state' folder"
            )
        meant(fingerprint(membership.authority), pinned is not None)
        _install(state, folder, bundle)
    except OSError as error:
        raise unusable(state, error) from error
    return membership


def fits(bundle: Bundle, keys: Keys) -> bool:
    """Whether a bundle's certificates are for these keys."""
    try:
        login = load_certificate(bundle.login, "the login certificate").public_key()
        signing = signing_key_of(load_certificate(bundle.signing, "the signing certificate"))
    except CertificateError:
        return False
    return login == keys.login.public_key() and signing == keys.signing.public_key()


def _folder_of(state: Path, bundle: Bundle) -> Path:
    """Where the keys are that a bundle was made for."""
    there = [folder for folder in (state / CURRENT, state / NEXT) if key_folder.has_keys(folder)]
    if not there:
        raise NotJoinedError(_not_joined(state / CURRENT, bundle.agent))
    for folder in there:
        if fits(bundle, key_folder.read_keys(folder)):
            return folder
    raise ForeignBundleError(
        f"the bundle was made for other keys than those in {state / CURRENT}: have one made from this agent's newest "
        "request.json. If nobody here has made new keys since, somebody else may have asked in this agent's name: "
        "tell the federation's owner"
    )


def _install(state: Path, folder: Path, bundle: Bundle) -> None:
    key_folder.write_certificates(folder, bundle.login, bundle.signing, bundle.authority, encode(bundle).decode())
    if folder != state / CURRENT:
        key_folder.put_in_place(folder, state / CURRENT)


def _pinned(folder: Path) -> x509.Certificate | None:
    """The authority of the federation that was joined; its time may be over."""
    if not (folder / BUNDLE).exists():
        return None
    try:
        bundle = _read(folder / BUNDLE, KeyFilesError, "")
        return load_certificate(bundle.authority, "the federation's certificate")
    except (KeyFilesError, CertificateError):
        return None  # what is damaged pins nothing: the fingerprint is asked for again


def _shown(authority: x509.Certificate | None) -> str:
    return "" if authority is None else fingerprint(authority)


def _read(path: Path, refused: type[Exception], remedy: str) -> Bundle:
    try:
        return decode(Bundle, read_file(path, MAX_FILE_BYTES + 1))
    except OSError as error:
        raise refused(f"{path} cannot be read: {error.strerror}") from None
    except EnrolmentError as error:
        raise refused(f"{path}: {error}: {remedy}") from None


def _checked(bundle: Bundle, now: datetime, refused: type[Exception]) -> Membership:
    try:
        return check_bundle(bundle, now)
    except CertificateTimeError as error:
        raise ExpiredError(str(error)) from None
    except CertificateError as error:
        raise refused(str(error)) from None


def _all(membership: Membership) -> tuple[x509.Certificate, ...]:
    bundle = membership.bundle
    others = (bundle.login, bundle.signing, bundle.coordinator)
    return (membership.authority, *(load_certificate(pem, "a certificate") for pem in others))


def _not_joined(folder: Path, name: str) -> str:
    if not key_folder.has_keys(folder):
        return (
            f"this agent has no keys and has joined no federation: run fedpipe-agent init {name}, and have its "
            "request.json enrolled. To try things out on one machine without keys, set insecure = true in [broker]"
        )
    return (
        "this agent has joined no federation yet: give its request.json to the federation's owner, and run "
        "fedpipe-agent join with the bundle that comes back"
    )
