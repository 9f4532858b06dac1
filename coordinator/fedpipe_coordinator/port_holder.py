"""Who listens on a TCP port, as far as /proc tells this user.

Owns the reading of /proc only; it is for messages to people, and no decision depends on it.
"""

import contextlib
from pathlib import Path

_LISTEN = "0A"
_PROC = Path("/proc")


def port_holder(port: int, proc: Path = _PROC) -> str | None:
    """Name and number of the process that listens on a port, or None if that cannot be seen."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port, proc)}
    if not sockets:
        return None
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # of other users, or gone in the meantime
            if any(str(link.readlink()) in sockets for link in (folder / "fd").iterdir()):
                return f"{(folder / 'comm').read_text(encoding='utf-8').strip()} (process {folder.name})"
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
