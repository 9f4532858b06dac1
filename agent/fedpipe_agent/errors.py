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


def unusable(folder: Path, error: OSError) -> StateFolderError:
    """What to tell of an operating system's refusal in the state folder."""
    what = "" if error.filename in (None, str(folder), folder) else f" ({error.filename})"
    return StateFolderError(
        f"the state folder {folder} cannot be used: {error.strerror or error}{what}. Make room there and make it "
        "readable and writable for this user, or set 'state' in agent.toml"
    )
