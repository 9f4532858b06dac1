"""A network namespace with one cable to this machine, in which every packet of every interface is written down.

Its default route goes over the cable too, so that whatever a process tries to reach is seen, and reaches nobody: this
machine forwards nothing.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE, THERE = "10.213.77.1", "10.213.77.2"
_ETH_P_ALL, _IPV4, _IPV6, _ARP = 3, 0x0800, 0x86DD, 0x0806
_TCP, _SYSTEM_PORTS = 6, 1023
_ICMPV6, _HOP_BY_HOP = 58, 0
"""The second stands before ICMPv6 of listeners to multicast; no TCP, UDP or QUIC begins with it."""
WATCHER = f"""
import json, socket, struct, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons({_ETH_P_ALL}))
print("ready", flush=True)
while True:
    data, (device, kind, *_) = sock.recvfrom(65536)
    if kind == {_IPV4}:
        at, protocol = (data[0] & 15) * 4, data[9]
        ends = [socket.inet_ntop(socket.AF_INET, data[n:n + 4]) for n in (12, 16)]
    elif kind == {_IPV6}:
        at, protocol = 40, data[6]
        ends = [socket.inet_ntop(socket.AF_INET6, data[n:n + 16]) for n in (8, 24)]
    else:
        print(json.dumps([device, kind]), flush=True)
        continue
    ports = struct.unpack_from(">HH", data, at) if protocol in (6, 17) and len(data) >= at + 4 else (0, 0)
    print(json.dumps([device, kind, protocol, *ends, *ports]), flush=True)
"""


@dataclass(frozen=True)
class Watched:
    """The namespace; `log` has a line for each packet."""

    name: str
    log: Path

    @property
    def inside(self) -> list[str]:
        """What to put before a command to run it there."""
        return ["ip", "netns", "exec", self.name]

    def packets(self) -> list[list[Any]]:
        """What was seen so far: device, kind, and for IP protocol, both addresses and both ports.

        Without what the kernel says by itself on any cable: ARP, and ICMPv6 for neighbours.
        """
        lines = self.log.read_text().splitlines()
        seen = [json.loads(line) for line in lines if line.startswith("[")]
        return [each for each in seen if each[1] != _ARP and each[2:3] not in ([_ICMPV6], [_HOP_BY_HOP])]

    def strangers(self, host: str, port: int) -> list[list[Any]]:
        """The packets that do not belong to TCP connections with this host and port.

        Nor to those that a process makes to itself: paho wakes its own thread over loopback, by ports above 1023.
        """
        return [each for each in self.packets() if not (each[1:3] == [_IPV4, _TCP] and _known(each, (host, port)))]


def _known(packet: list[Any], broker: tuple[str, int]) -> bool:
    ends = {(packet[3], packet[5]), (packet[4], packet[6])}
    to_itself = packet[3] == packet[4] == "127.0.0.1" and min(packet[5], packet[6]) > _SYSTEM_PORTS
    return broker in ends or to_itself


@contextlib.contextmanager
def watched_network(folder: Path) -> Iterator[Watched]:
    """The namespace for the time of a block; skips the test, with the reason, where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    name, near, far = f"fpw{os.getpid()}", f"fpn{os.getpid() % 10**6}", f"fpf{os.getpid() % 10**6}"
    watched = Watched(name, folder / "packets")
    inside = watched.inside
    try:
        for command in (
            ["ip", "netns", "add", name],
            ["ip", "link", "add", near, "type", "veth", "peer", "name", far],
            ["ip", "link", "set", far, "netns", name],
            ["ip", "address", "add", f"{HERE}/30", "dev", near],
            ["ip", "link", "set", near, "up"],
            [*inside, "ip", "address", "add", f"{THERE}/30", "dev", far],
            [*inside, "ip", "link", "set", far, "up"],
            [*inside, "ip", "link", "set", "lo", "up"],
            [*inside, "ip", "route", "add", "default", "via", HERE],
        ):
            subprocess.run(command, check=True, capture_output=True)
        with watched.log.open("wb") as log:
            watcher = subprocess.Popen([*inside, sys.executable, "-c", WATCHER], stdout=log)
    except (OSError, subprocess.CalledProcessError) as error:
        _take_away(name, near)
        pytest.skip(f"no watched network can be made here: {error}")
    try:
        yield watched
    finally:
        watcher.kill()
        watcher.wait()
        _take_away(name, near)


def _take_away(name: str, near: str) -> None:
    subprocess.run(["ip", "link", "del", near], check=False, capture_output=True)
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
