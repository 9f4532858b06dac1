"""The topic tree: who writes where. Names are checked before they become part of a topic.

fedpipe/<federation>/agents/<agent>/up/{presence,profile,contribution,report,blob/<sha256>/<n>}
fedpipe/<federation>/agents/<agent>/down/{presence,task,ack,blob,blob/<sha256>/<n>}
fedpipe/<federation>/broadcast/{run,blob/<sha256>/<n>}
"""

import re
from dataclasses import dataclass

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_CHUNKS = 1 << 20


class TopicError(ValueError):
    """A topic or a name in it is not of the documented form."""


def check_name(name: str, what: str) -> str:
    """Return `name` if it may stand in a topic.

    Raises:
        TopicError: if it holds anything but lower-case letters, digits, dot, dash and underscore, or is too long.
    """
    if _NAME.fullmatch(name) is None:
        raise TopicError(
            f"{what} {name[:80]!r} is not usable: use 1 to 64 lower-case letters, digits, '.', '-' or '_', "
            "beginning and ending with a letter or digit"
        )
    return name


@dataclass(frozen=True, slots=True)
class Address:
    """A topic taken apart. `agent` is None on the broadcast; blobs carry their name and chunk number."""

    agent: str | None
    direction: str
    channel: str
    sha256: str | None = None
    chunk: int | None = None


@dataclass(frozen=True, slots=True)
class Topics:
    """Builds and parses the topics of one federation."""

    federation: str

    def __post_init__(self) -> None:
        check_name(self.federation, "federation name")

    def up(self, agent: str, channel: str) -> str:
        """Topic that only this agent writes: presence, profile, contribution or report."""
        return f"fedpipe/{self.federation}/agents/{agent}/up/{channel}"

    def down(self, agent: str, channel: str) -> str:
        """Topic that only this agent reads: presence, task, ack or blob."""
        return f"fedpipe/{self.federation}/agents/{agent}/down/{channel}"

    def up_chunk(self, agent: str, sha256: str, index: int) -> str:
        """Topic of one chunk of an agent's blob."""
        return f"fedpipe/{self.federation}/agents/{agent}/up/blob/{sha256}/{index}"

    def down_chunk(self, agent: str, sha256: str, index: int) -> str:
        """Topic of one chunk of a broadcast blob that only this agent misses."""
        return f"fedpipe/{self.federation}/agents/{agent}/down/blob/{sha256}/{index}"

    def broadcast(self, channel: str) -> str:
        """Topic that only the coordinator writes, for all agents."""
        return f"fedpipe/{self.federation}/broadcast/{channel}"

    def broadcast_chunk(self, sha256: str, index: int) -> str:
        """Topic of one chunk of a broadcast blob."""
        return f"fedpipe/{self.federation}/broadcast/blob/{sha256}/{index}"

    def all_up(self) -> str:
        """What the coordinator subscribes to."""
        return f"fedpipe/{self.federation}/agents/+/up/#"

    def all_down(self, agent: str) -> str:
        """What an agent subscribes to for itself."""
        return f"fedpipe/{self.federation}/agents/{agent}/down/#"

    def all_broadcast(self) -> str:
        """What every agent subscribes to."""
        return f"fedpipe/{self.federation}/broadcast/#"

    def parse(self, topic: str) -> Address:
        """Take a received topic apart.

        Raises:
            TopicError: if it is not of this federation or not of the documented form.
        """
        match topic.split("/"):
            case ["fedpipe", self.federation, "agents", agent, ("up" | "down") as direction, channel]:
                return Address(check_name(agent, "agent name"), direction, channel)
            case ["fedpipe", self.federation, "agents", agent, ("up" | "down") as direction, "blob", sha256, index]:
                name = check_name(agent, "agent name")
                return Address(name, direction, "blob", _sha256(sha256), _chunk(index))
            case ["fedpipe", self.federation, "broadcast", "blob", sha256, index]:
                return Address(None, "broadcast", "blob", _sha256(sha256), _chunk(index))
            case ["fedpipe", self.federation, "broadcast", channel]:
                return Address(None, "broadcast", channel)
            case _:
                raise TopicError(f"topic {topic[:200]!r} is not one of federation {self.federation!r}")


def _sha256(text: str) -> str:
    if _SHA256.fullmatch(text) is None:
        raise TopicError(f"blob name {text[:80]!r} is not 64 lower-case hexadecimal digits")
    return text


def _chunk(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_CHUNKS)) and int(text) < MAX_CHUNKS):
        raise TopicError(f"chunk number {text[:80]!r} is not a number from 0 to {MAX_CHUNKS - 1}")
    return int(text)
