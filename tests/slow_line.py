"""Two network namespaces and a line between them that is slow, long, lossy or cut, as a test says.

The line is two TUN devices and a thread that carries packets from one to the other. The kernel's own emulation (netem)
is a module that containers and small virtual machines often lack; this needs root and /dev/net/tun only, and loses the
same packets for the same seed. TCP, routes and counters on both sides are the kernel's.
"""

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_ADDRESSES = ("10.77.0.1", "10.77.0.2")
_MAX_PACKET = 65_536


@dataclass(frozen=True)
class Quality:
    """What a line is like in each direction; `queue_s` is how much the narrow end holds back before it drops."""

    bps: float | None = None
    delay_s: float = 0.0
    lost: float = 0.0
    queue_s: float = 0.2


class _Direction:
    """Packets from one end to the other."""

    def __init__(self, source: int, target: int, seed: int) -> None:
        self.source, self._target = source, target
        self._rng = random.Random(seed)
        self._free_at = 0.0
        self._heap: list[tuple[float, int, bytes]] = []
        self._count = 0

    def take(self, quality: Quality, now: float) -> None:
        """Read one packet; it is lost, dropped at a full queue, or on its way."""
        packet = os.read(self.source, _MAX_PACKET)
        if self._rng.random() < quality.lost or (quality.bps and self._free_at - now > quality.queue_s):
            return
        self._free_at = max(now, self._free_at) + (8 * len(packet) / quality.bps if quality.bps else 0.0)
        self._count += 1
        heapq.heappush(self._heap, (self._free_at + quality.delay_s, self._count, packet))

    def deliver(self, now: float) -> float:
        """Hand over what is due; seconds until the next packet is."""
        while self._heap and self._heap[0][0] <= now:
            with contextlib.suppress(OSError):  # an interface that is down takes nothing
                os.write(self._target, heapq.heappop(self._heap)[2])
        return self._heap[0][0] - now if self._heap else 0.2


class Line:
    """A line in use. `near` and `far` are the namespaces' names, `near_host` and `far_host` their addresses."""

    near_host, far_host = _ADDRESSES

    def __init__(self, name: str, quality: Quality, *, seed: int = 1) -> None:
        self.near, self.far = f"{name}-near", f"{name}-far"
        self.quality = quality
        self._stop = threading.Event()
        near, far = (_end(space, f"tun{name[-6:]}{end}", end) for end, space in enumerate((self.near, self.far)))
        self._directions = (_Direction(near, far, seed), _Direction(far, near, seed + 1))
        self._ends = (near, far)
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def inside(self, space: str) -> list[str]:
        """What to put before a command to run it in a namespace."""
        return ["ip", "netns", "exec", space]

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Every packet is lost for the time of a block, and those under way with them."""
        whole, self.quality = self.quality, Quality(lost=1.0)
        try:
            yield
        finally:
            self.quality = whole

    def sent_bytes(self, space: str) -> int:
        """What a namespace has put on the line, by the kernel's count."""
        command = [*self.inside(space), "sh", "-c", "cat /sys/class/net/tun*/statistics/tx_bytes"]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def close(self) -> None:
        """Take it away."""
        self._stop.set()
        self._thread.join()
        for end in self._ends:
            os.close(end)
        for space in (self.near, self.far):
            subprocess.run(["ip", "netns", "del", space], check=False)

    def _carry(self) -> None:
        while not self._stop.is_set():
            now = time.monotonic()
            wait_s = min(direction.deliver(now) for direction in self._directions)
            readable, _, _ = select.select(self._ends, [], [], max(0.0, wait_s))
            for direction in self._directions:
                if direction.source in readable:
                    direction.take(self.quality, time.monotonic())


def _end(space: str, device: str, number: int) -> int:
    """A namespace with one end of the line in it; the end's file descriptor."""
    here, there = _ADDRESSES[number], _ADDRESSES[1 - number]
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", device.encode(), _IFF_TUN_NO_PI))
    inside = ["ip", "netns", "exec", space]
    for command in (
        ["ip", "netns", "add", space],
        ["ip", "link", "set", device, "netns", space],
        [*inside, "ip", "address", "add", here, "peer", there, "dev", device],
        [*inside, "ip", "link", "set", device, "up", "mtu", "1500"],
        [*inside, "ip", "link", "set", "lo", "up"],
        # the one that every kernel has, and that suffers most from loss
        [*inside, "sysctl", "-qw", "net.ipv4.tcp_congestion_control=reno"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return descriptor


@contextlib.contextmanager
def line(quality: Quality, *, seed: int = 1) -> Iterator[Line]:
    """A line for the time of a block; skips the test, with the reason, where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun here")
    try:
        made = Line(f"fp{os.getpid()}", quality, seed=seed)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces can be made here: {error}")
    try:
        yield made
    finally:
        made.close()
