"""What a Mosquitto is told: its configuration, for a broker that this process manages and for one of its owner's.

Owns the lines and what they limit. Every option is one that Mosquitto 2.0 and later know, and none is on its way out;
what may not be in it at all is who gets in without a certificate, except on loopback.
"""

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedpipe_coordinator.broker.errors import BrokerError
from fedpipe_wire.tls import LOOPBACK

MAX_PACKET_BYTES = 2_000_000
"""A chunk of a blob and its envelope; what Mosquitto 2.1 takes when it is not told otherwise."""
EVERYWHERE = "*"
"""The address that stands for every address of this machine."""
DATABASE = "mosquitto.db"
_MIB = 1 << 20
_KEEPALIVE_S = 300
_IN_FLIGHT = 20
_QUEUED_MESSAGES = 20_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker takes; all of it together stays below `memory_mib`.

    Attributes:
        connections: At one time, agents and coordinator together.
        queue_mib: Per session that is slow or gone for a while. Beyond it a queue drops silently; the transfers notice
            and ask again.
        memory_mib: Of the broker; 0 for no limit.
    """

    connections: int = 256
    queue_mib: int = 256
    memory_mib: int = 8192


@dataclass(frozen=True, slots=True)
class Guard:
    """The files that say who gets in, and where to."""

    authority: Path
    certificate: Path
    key: Path
    revocations: Path
    access: Path

    def absolute(self) -> "Guard":
        """The same files, whatever the broker's working folder."""
        places = (self.authority, self.certificate, self.key, self.revocations, self.access)
        return Guard(*(place.absolute() for place in places))


def dial_host(listen: str) -> str:
    """Where on its own machine a broker answers that listens at an address."""
    return "localhost" if listen in (EVERYWHERE, "0.0.0.0", "::") else listen  # noqa: S104  # compared, not bound to


def guarded_lines(listen: str, port: int, guard: Guard) -> list[str]:
    """A listener of TLS 1.2 or newer that lets in who has a certificate, under the name in it, where the list says."""
    where = "" if listen == EVERYWHERE else f" {listen}"
    return [
        f"listener {port}{where}",
        f"cafile {guard.authority}",
        f"certfile {guard.certificate}",
        f"keyfile {guard.key}",
        f"crlfile {guard.revocations}",
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
        "allow_anonymous false",
        f"acl_file {guard.access}",
        # What was retained by an agent that may not write there any more is not handed out.
        "check_retain_source true",
        "max_qos 1",
    ]


def limit_lines(limits: Limits) -> list[str]:
    """How much of everything the broker takes."""
    return [
        f"max_connections {limits.connections}",
        f"max_packet_size {MAX_PACKET_BYTES}",
        f"max_inflight_messages {_IN_FLIGHT}",
        # Beyond these a queue drops silently; the transfers notice and ask again.
        f"max_queued_messages {_QUEUED_MESSAGES}",
        f"max_queued_bytes {limits.queue_mib * _MIB}",
        f"max_keepalive {_KEEPALIVE_S}",
        *([f"memory_limit {limits.memory_mib * _MIB}"] if limits.memory_mib else []),
        "persistent_client_expiration 7d",
        "set_tcp_nodelay true",
        "sys_interval 0",
    ]


def write_config(
    folder: Path,
    host: str,
    port: int,
    extra: Sequence[str] = (),
    *,
    guard: Guard | None = None,
    limits: Limits = Limits(),
) -> Path:
    """Write `mosquitto.conf` of a managed broker into a folder; its path. `extra` lines come last.

    Raises:
        BrokerError: if there is no guard and the host is not loopback.
    """
    if guard is None and host not in LOOPBACK:
        raise BrokerError(
            f"a broker without logins listens on loopback only ({', '.join(sorted(LOOPBACK))}), not on {host}: "
            "let agents on other machines in through a broker with logins, as `fedpipe init` makes it"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    plain = [f"listener {port} {host}", "allow_anonymous true"]
    lines = [
        "# Written by FedPipe at every start: changes here are lost.",
        *(plain if guard is None else guarded_lines(host, port, guard.absolute())),
        # Started by root, Mosquitto would become `mosquitto`, who may not write here.
        *_user(),
        "persistence true",
        f"persistence_location {folder.absolute()}/",
        f"persistence_file {DATABASE}",
        "autosave_interval 60",
        *limit_lines(limits),
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
        *extra,
    ]
    path = folder / "mosquitto.conf"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def external_config(port: int, guard: Guard, limits: Limits) -> str:
    """The same rules for a broker that its owner runs: a file for its `conf.d`."""
    lines = [
        "# The rules of FedPipe for a Mosquitto of your own, version 2.0 or newer; see docs/external-broker.md.",
        "# Copy the files that are named here to where they are named, readable for the broker's user only.",
        "# Check the broker with `fedpipe doctor` whenever it was set up or changed.",
        *guarded_lines(EVERYWHERE, port, guard),
        "persistence true",
        *limit_lines(limits),
    ]
    return "\n".join(lines) + "\n"


def _user() -> list[str]:
    try:
        return [f"user {pwd.getpwuid(os.geteuid()).pw_name}"]
    except KeyError:  # a container's user without a name: Mosquitto changes nobody but root
        return []
