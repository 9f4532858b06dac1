"""What `fedpipe-agent` ends with. Codes 0 to 2 mean the same on both sides; 40 to 59 are the agent's.

Each has a section in docs/reference/exit-codes.md.
"""

from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """Exit status of the agent; `help` says in one sentence what to do."""

    help: str

    def __new__(cls, value: int, help_text: str) -> Self:
        """Make a member that is the number and carries its help."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.help = help_text
        return member

    OK = 0, "Nothing to do."
    INTERNAL_ERROR = 1, "An unexpected error: report it with the log."
    USAGE = 2, "The command line is wrong: see --help."
    BAD_AGENT_FILE = 40, "Put right what the report says about agent.toml."
    BROKER_UNREACHABLE = (
        41,
        "Check [broker] in agent.toml, the network, and that the broker runs and accepts this agent.",
    )
    DATASET_UNUSABLE = 42, "Check path, format and fields of the dataset that the message names."
    MODEL_UNUSABLE = 43, "Check the model's folder or hub id, and [models] in agent.toml."
    IDENTITY_IN_USE = (
        44,
        "Another agent works in this state folder, or under this name: stop it, or give this one its own of both.",
    )
    STATE_FOLDER_UNUSABLE = 45, "Check owner, mode and free space of the state folder."
    TRAINER_CANNOT_START = 46, "Install the training stack: pip install 'fedpipe[agent]'."
    NOT_JOINED = 47, "Make a request with fedpipe-agent init, have it enrolled, and join the bundle that comes back."
    WRONG_FINGERPRINT = 48, "Ask the federation's owner for its fingerprint, by another way than the bundle came."
    CERTIFICATE_EXPIRED = 49, "Set this machine's clock, or have the certificates renewed: fedpipe-agent renew."
    KEYS_UNUSABLE = 50, "Put the files of the folder identity right, or make new keys with fedpipe-agent init --force."
    FOREIGN_BUNDLE = 51, "Have a bundle made from this agent's own request.json."
    AUDIT_BROKEN = 52, "Compare the record with a backup and with the coordinator's."
