"""The files of an agent's keys and certificates: `identity` in its state folder, made, read and replaced as a whole.

Owns names and rights. New keys lie in `identity-next` until their certificates are there; then that folder takes the
place of `identity`. A crash between the two renames leaves `identity-former`, and `recover` ends what was begun.
"""

import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedpipe_agent.durable import write_durably
from fedpipe_agent.errors import KeyFilesError
from fedpipe_wire.blob_partial import sync_folder
from fedpipe_wire.certificates import (
    MAX_PEM_BYTES,
    CertificateError,
    load_login_key,
    load_signing_key,
    private_pem,
)

CURRENT, NEXT, FORMER = "identity", "identity-next", "identity-former"
LOGIN_KEY, SIGNING_KEY = "login.key", "signing.key"
LOGIN_CERTIFICATE, SIGNING_CERTIFICATE, AUTHORITY, BUNDLE = "login.crt", "signing.crt", "ca.crt", "bundle.json"
_FOR_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class Keys:
    """An agent's two private keys."""

    login: EllipticCurvePrivateKey
    signing: Ed25519PrivateKey


def has_keys(folder: Path) -> bool:
    """Whether keys were made in a folder; they may still be unusable."""
    return (folder / LOGIN_KEY).exists() or (folder / SIGNING_KEY).exists()


def make_keys(state: Path, name: str) -> Keys:
    """Make two keys in a folder of the state folder, in place of what was there; nobody else can ever read them.

    Args:
        state: the agent's state folder; made where it is not there.
        name: `CURRENT` or `NEXT`.

    Raises:
        OSError: if it cannot be written; what was there before still is.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = Keys(generate_private_key(SECP256R1()), Ed25519PrivateKey.generate())
    made = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=state))  # of mode 0700
    try:
        _write_private(made / LOGIN_KEY, private_pem(keys.login))
        _write_private(made / SIGNING_KEY, private_pem(keys.signing))
        sync_folder(made)
        put_in_place(made, state / name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return keys


def read_keys(folder: Path) -> Keys:
    """The keys of a folder.

    Raises:
        KeyFilesError: if one is missing, damaged, or others may read it.
    """
    try:
        login = load_login_key(_read_private(folder / LOGIN_KEY), str(folder / LOGIN_KEY))
        signing = load_signing_key(_read_private(folder / SIGNING_KEY), str(folder / SIGNING_KEY))
    except CertificateError as error:
        raise KeyFilesError(f"{error}: restore it from a backup, or make new keys") from None
    return Keys(login, signing)


def write_certificates(folder: Path, login: str, signing: str, authority: str, bundle: str) -> None:
    """Put certificates beside their keys; the bundle comes last, and with it they count.

    Raises:
        OSError: if they cannot be written.
    """
    write_durably(folder / AUTHORITY, authority)
    write_durably(folder / LOGIN_CERTIFICATE, login)
    write_durably(folder / SIGNING_CERTIFICATE, signing)
    write_durably(folder / BUNDLE, bundle)


def put_in_place(made: Path, place: Path) -> None:
    """Let a folder take the place of another, whose content is gone afterwards.

    Raises:
        OSError: if it cannot be done; `recover` puts right what was left.
    """
    former = place.with_name(FORMER)
    shutil.rmtree(former, ignore_errors=True)
    if place.exists():
        place.rename(former)
    made.rename(place)
    sync_folder(place.parent)
    shutil.rmtree(former, ignore_errors=True)


def forget_next(state: Path) -> None:
    """Drop keys that were to take the place of others, which are gone."""
    shutil.rmtree(state / NEXT, ignore_errors=True)


def recover(state: Path) -> None:
    """End an exchange of keys that a crash has cut short.

    Raises:
        OSError: if it cannot be done.
    """
    current, coming, former = state / CURRENT, state / NEXT, state / FORMER
    if not former.exists():
        return
    if not current.exists():
        (coming if (coming / BUNDLE).exists() else former).rename(current)
        sync_folder(state)
    shutil.rmtree(former, ignore_errors=True)


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            data = file.read(MAX_PEM_BYTES)
    except OSError as error:
        raise KeyFilesError(
            f"{path} cannot be read: {error.strerror}. Restore it from a backup, run as the user who owns it, "
            "or make new keys with fedpipe-agent init --force and have them enrolled"
        ) from None
    if not stat.S_ISREG(found.st_mode) or found.st_mode & _FOR_OTHERS:
        raise KeyFilesError(
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, 0600 is needed: others may have read it. If they may "
            f"have, make new keys with fedpipe-agent init --force; else chmod 600 {path}"
        )
    return data
