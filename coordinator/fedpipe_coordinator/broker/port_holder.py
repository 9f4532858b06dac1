"""Who listens on a TCP port, as far as /proc tells this user.

Owns the reading of /proc only.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class PortHolder:
    """A process that listens on a port; as text, its name and number."""

    name: str
    pid: int
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"


def port_holder(port: int, proc: Path = _PROC) -> PortHolder | None:
    """The process that listens on a port, or None if that cannot be seen."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port, proc)}
    if not sockets:
        return None
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # of other users, or gone in the meantime
            if any(str(link.readlink()) in sockets for link in (folder / "fd").iterdir()):
                name = (folder / "comm").read_text(encoding="utf-8").strip()
                arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                return PortHolder(name, int(folder.name), tuple(arguments))
    return None


def _listening(port: int, proc: Path) -> list[str]:
    """Inodes of the sockets that listen on a port; columns as in proc_net_tcp(5)."""
    inodes = []
    for table in ("net/tcp", "net/tcp6"):
        with contextlib.suppress(OSError):
            for line in (proc / table).read_text(encoding="ascii").splitlines()[1:]:
                _, local, _, state, *rest = line.split()
                if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                    inodes.append(rest[5])
    return inodes
