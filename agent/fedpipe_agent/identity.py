"""Who an agent is to its federation: its name, this session of it, and the state folder that it works in."""

import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedpipe_agent.durable import write_durably
from fedpipe_wire.agent_messages import Presence
from fedpipe_wire.messages import encode
from fedpipe_wire.sealing import WILL, Sealer
from fedpipe_wire.topics import Topics
from fedpipe_wire.transport import Will

_RANDOM = re.compile(r"[0-9a-f]{32}")
_INSTANCE_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this agent is to its federation in this session."""

    name: str
    topics: Topics
    session: str
    instance: str = ""

    @property
    def client_id(self) -> str:
        """What the broker knows it by: of two machines with one name, neither throws the other out."""
        return f"fedpipe-{self.topics.federation}-agent-{self.name}" + (f"-{self.instance}" if self.instance else "")

    def will(self, sealer: Sealer) -> Will:
        """What the broker says when this session dies; uses up a number."""
        payload = encode(Presence(state="offline", session=self.session, instance=self.instance))
        topic = self.topics.up(self.name, "presence")
        outside = sealer.seal(topic, payload, retain=True, message_id=f"{WILL}{self.session}")
        return Will(topic, payload, outside.properties())


def instance_of(folder_name: str, inode: int, machine: str) -> str:
    """Names a state folder on its machine: a copy of the folder, here or elsewhere, has another name."""
    text = f"{machine}\n{folder_name}\n{inode}"
    return hashlib.sha256(text.encode()).hexdigest()[:_INSTANCE_DIGITS]


def read_instance(
    folder: Path,
    machine_file: Path = Path("/etc/machine-id"),
    draw: Callable[[], str] = lambda: secrets.token_hex(16),
) -> str:
    """The name of this state folder on this machine; the folder's part of it is made at the first call.

    Raises:
        OSError: if it can be neither read nor made.
    """
    file = folder / "instance"
    found = file.read_text(errors="replace").strip() if file.exists() else ""
    if _RANDOM.fullmatch(found) is None:
        found = draw()
        write_durably(file, found)
    try:
        machine = machine_file.read_text().strip()
    except OSError:
        machine = ""
    return instance_of(found, folder.stat().st_ino, machine)
