"""What an agent asks its federation's owner for: the request file, and the settings file that it begins with.

Owns both files' content; neither holds a secret.
"""

from pathlib import Path

from fedpipe_agent.durable import read_file, write_durably
from fedpipe_agent.errors import KeyFilesError, StateFolderError
from fedpipe_agent.key_folder import Keys
from fedpipe_wire.enrolment import MAX_FILE_BYTES, EnrolmentError, Request, check_request, decode, encode, make_request

FILE_NAME = "request.json"


def write_request(path: Path, name: str, keys: Keys, renewed: Keys | None = None) -> Request:
    """Write a request for these keys, unless one of them is there already: its fingerprint may have been read out.

    Args:
        path: the file; a request of other keys is replaced.
        name: of the agent.
        keys: that certificates are wanted for.
        renewed: those that the agent is known by, when it asks for new ones.

    Raises:
        StateFolderError: if it cannot be written.
        KeyFilesError: if something else than a request lies there.
    """
    wanted = make_request(name, keys.login, keys.signing, None if renewed is None else renewed.signing)
    try:
        found = _read(path)
        if found is not None and _alike(found, wanted):
            return found
        write_durably(path, encode(wanted).decode())
    except OSError as error:
        raise StateFolderError(
            f"{path} cannot be written: {error.strerror}. Make its folder writable for this user, or name another file "
            "with --request"
        ) from None
    return wanted


def _read(path: Path) -> Request | None:
    try:
        return decode(Request, read_file(path, MAX_FILE_BYTES + 1))
    except FileNotFoundError:
        return None
    except EnrolmentError as error:
        raise KeyFilesError(f"{path} is in the way: {error}. Move it, or name another file with --request") from None


def _alike(found: Request, wanted: Request) -> bool:
    try:
        found_csr, _ = check_request(found)
    except EnrolmentError:
        return False
    wanted_csr, _ = check_request(wanted)
    same = (found.agent, found.signing_key, found.renews) == (wanted.agent, wanted.signing_key, wanted.renews)
    return same and found_csr.public_key() == wanted_csr.public_key()


def template(name: str) -> str:
    """A commented agent.toml to begin with."""
    return f"""\
# Settings of the FedPipe agent {name}. All keys: docs/reference/agent.toml.md
name = "{name}"

# Federation and broker come from the bundle that fedpipe-agent join takes. Where this machine reaches the broker under
# another name or port than the bundle says:
# [broker]
# host = "broker.example.org"
# port = 8883

# A dataset that jobs may ask for by its name; one table for each.
# [datasets.claims]
# path = "data/claims.jsonl"
# fields = {{ text = "note", label = "code" }}

# A job's model name, and the folder that holds it here.
# [models]
# "example/small-model" = "models/small-model"

# What this machine lends; what is left out lends all that is free.
# [limits]
# memory_mib = 12000
# uplink_mbit = 20
# hours = "20:00-06:00"

# [training]
# hub_models = []            # models that may be downloaded; all others must be folders here
# trust_remote_code = []     # models whose own code may be run here
"""
