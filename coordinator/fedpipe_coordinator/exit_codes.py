"""What `fedpipe` ends with. Codes 0 to 2 mean the same on both sides; 10 to 29 are the coordinator's.

30 to 39 are the export's, which runs in a process of its own.

Each has a section in docs/reference/exit-codes.md.
"""

from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """Exit status of the coordinator's commands; `help` says in one sentence what to do."""

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
    BAD_SETTINGS = 10, "Put right what the report says about the job file or federation.toml."
    BROKER_UNREACHABLE = 11, "Check [broker] in federation.toml, the network, and that the broker runs."
    BROKER_CANNOT_START = 12, "Install Mosquitto 2, or free the port, or set managed = false and start your own."
    COORDINATOR_NOT_RUNNING = 13, "Start it with `fedpipe up` in the federation's folder."
    RUN_FAILED = 14, "Read why in the message and in the run's audit.jsonl, then run the job again."
    COORDINATOR_BUSY = 15, "See whether the coordinator's process is stopped, then ask again."
    NOT_ENOUGH_AGENTS = 16, "Start more agents, or lower rounds.min_agents, or raise rounds.wait_s."
    DATA_UNUSABLE = 17, "Check that the demo's extra is installed and its folder can be written."
    MODEL_UNUSABLE = 18, "Check the model's folder or hub id in the job file."
    STORE_UNUSABLE = 19, "Check the federation's folder: free space, rights, and that one version of FedPipe writes it."
    ALREADY_RUNNING = 20, "Use the one that runs, or stop it first, or work in another folder."
    CREDENTIALS_UNUSABLE = 21, "Put right the key or certificate that the message names, or restore it from a backup."
    ENROLMENT_REFUSED = 22, "Read why in the message; ask the agent's owner before you enrol it in another way."
    CHECKS_FAILED = 23, "Do what the table says beside each check that failed, and run `fedpipe doctor` again."
    NOTHING_FITS = 24, "Take one of the devices that the message names, a smaller model, or a longer deadline."
    INPUT_UNUSABLE = 25, "Put right the device, profile or record that the message names; see `fedpipe plan --help`."
    OUTPUT_UNWRITABLE = 26, "Name another file, or make its folder writable."
    AUDIT_BROKEN = 28, "Look at the named file and line; compare with a backup, and find out who could write there."
    AUDIT_DIFFERS = 29, "Ask the silo for its record, see which of the two is wrong, and treat it as an incident."
    EXPORT_FAILED = 30, "Read the message; the run itself is unharmed, so put it right and export again."
    EXPORT_EXTRAS_MISSING = 31, "Install what merging needs: pip install 'fedpipe[export]'."
