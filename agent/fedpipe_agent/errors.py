"""What an agent can end with, besides what its libraries and its settings say."""


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
