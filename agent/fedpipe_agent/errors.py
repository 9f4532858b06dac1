"""What an agent can end with, besides what its libraries and its settings say."""

from pathlib import Path


class AgentError(Exception):
    """The agent cannot begin or go on."""


class StateFolderError(AgentError):
    """The state folder cannot be used."""


class InUseError(StateFolderError):
    """Another agent works in this folder."""


class JournalError(StateFolderError):
    """What the agent remembers cannot be read or written."""


class TurnedAwayError(AgentError):
    """Another agent of this name lives, and the coordinator keeps to that one."""


class MembershipError(AgentError):
    """This agent cannot come into its federation as things are."""


class NotJoinedError(MembershipError):
    """It has joined no federation yet."""


class WrongFingerprintError(MembershipError):
    """The bundle's federation is not the one that was meant, or nobody said which was."""


class ExpiredError(MembershipError):
    """A certificate's time is over or has not come, by this machine's clock."""


class KeyFilesError(MembershipError):
    """A key or certificate file is missing, damaged, or readable by others."""


class ForeignBundleError(MembershipError):
    """A bundle that was not made for this agent, its keys and its federation."""


class AuditError(AgentError):
    """The agent's record of what left the silo was changed."""


def unusable(folder: Path, error: OSError) -> StateFolderError:
    """What to tell of an operating system's refusal in the state folder."""
    what = "" if error.filename in (None, str(folder), folder) else f" ({error.filename})"
    return StateFolderError(
        f"the state folder {folder} cannot be used: {error.strerror or error}{what}. Make room there and make it "
        "readable and writable for this user, or set 'state' in agent.toml"
    )
