"""Blob throughput beside a raw transfer of the same bytes by the MQTT library, in the same run.

    python -m benchmarks.transfer [--mib 256] [--seed N] [--repeats 5] [--json FILE]

A Mosquitto is started on loopback; an agent's pump in one process sends a blob of random bytes to a coordinator's pump
in another. `mib_per_s` counts from the first request to the blob verified, forced to the disk and named; medians of the
repeats. `raw_mib_per_s` is of paho to paho at QoS 1 with chunks of the same size and paho's own window of 20: its
receiver counts bytes and drops them. It sends the first GiB at most, since the broker's queue silently drops what goes
beyond. Both are measured in turn; `ratio` is the median of the pairs' ratios. In `raw_durable_mib_per_s` the time that
this machine's disk takes to write and sync as many bytes stands on top of the raw transfer's. `rss_growth_mib` is the
largest growth of peak memory of any sender or receiver from before it connects, the session's thread and stacks
included. `longest_stall_s` is the longest time for which a pump's loop did not look at its queue.
"""

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from fedpipe_coordinator.broker.managed import ManagedBroker

CHUNK_KIB = 256
WINDOW = 4
RAW_WINDOW = 20
MAX_RAW_MIB = 1024
_MIB = 1 << 20
Figures = dict[str, Any]


class Process:
    """One side, spoken to in lines; use it in a `with` block."""

    def __init__(self, module: str, *arguments: str, prefix: Sequence[str] = ()) -> None:
        command = [*prefix, sys.executable, "-m", module, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said: list[Figures] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def tell(self, word: str) -> None:
        """Write a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def hear(self, *keys: str) -> Figures:
        """The next line that has one of these keys; those before it are kept in `said`.

        Raises:
            RuntimeError: if the process ends first.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            figures: Figures = json.loads(line)
            self.said.append(figures)
            if any(key in figures for key in keys):
                return figures
        raise RuntimeError(f"{self._process.args!r} ended early: see its last words above")


def make_blob(path: Path, size: int, seed: int) -> str:
    """Write random bytes; their sha256."""
    rng, digest = random.Random(seed), hashlib.sha256()
    with path.open("wb") as file:
        for left in range(size, 0, -_MIB):
            block = rng.randbytes(min(_MIB, left))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def pumps(port: int, folder: Path, sha256: str, size: int) -> tuple[Figures, Figures]:
    """One transfer by the project's pumps: the sender's and the receiver's figures."""
    common = ["--port", str(port), "--sha256", sha256, "--size", str(size)]
    common += ["--chunk-kib", str(CHUNK_KIB), "--window", str(WINDOW)]
    module = "benchmarks.transfer_sides"
    with (
        tempfile.TemporaryDirectory(dir=folder) as came,
        Process(module, "sender", "--folder", str(folder / "sent"), *common) as sender,
        Process(module, "receiver", "--folder", came, *common) as receiver,
    ):
        sender.hear("ready")
        receiver.hear("ready")
        receiver.tell("go")
        outcome = receiver.hear("arrived", "failed")
        if "failed" in outcome:
            raise RuntimeError(f"the transfer failed: {outcome['failed']}")
        for side in (sender, receiver):
            side.tell("stop")
        return sender.hear("rss_growth_mib"), receiver.hear("rss_growth_mib")


def raw(port: int, path: Path, size: int) -> float:
    """Seconds of one raw transfer of the first `size` bytes."""
    common = ["--port", str(port), "--file", str(path), "--size", str(size)]
    common += ["--chunk-kib", str(CHUNK_KIB), "--window", str(RAW_WINDOW)]
    with (
        Process("benchmarks.transfer_raw", "sender", *common) as sender,
        Process("benchmarks.transfer_raw", "receiver", *common) as receiver,
    ):
        sender.hear("ready")
        receiver.hear("ready")
        receiver.tell("go")
        receiver.hear("arrived")
        sender.tell("stop")
        receiver.tell("stop")
        return float(receiver.hear("seconds")["seconds"])


def disk_s(folder: Path, size: int) -> float:
    """Seconds to write and sync as many bytes."""
    block = os.urandom(_MIB)
    begin = time.monotonic()
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(-(-size // _MIB)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return time.monotonic() - begin


def measure(mib: int, seed: int, repeats: int) -> Figures:
    """All figures of the table."""
    size, raw_mib = mib * _MIB, min(mib, MAX_RAW_MIB)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "sent").mkdir()
        sha256 = make_blob(folder / "blob", size, seed)
        path = (folder / "blob").rename(folder / "sent" / sha256)
        broker = ManagedBroker(folder / "broker")
        broker.start()
        stack.callback(broker.stop)
        ours, plain, disk, sides = [], [], [], list[Figures]()
        for number in range(repeats):
            print(f"repeat {number + 1} of {repeats}", file=sys.stderr)
            sender, receiver = pumps(broker.port, folder, sha256, size)
            sides += [sender, receiver]
            ours.append(float(receiver["seconds"]))
            plain.append(raw(broker.port, path, raw_mib * _MIB))
            disk.append(disk_s(folder, size))
    return {
        "mib_per_s": mib / statistics.median(ours),
        "raw_mib_per_s": raw_mib / statistics.median(plain),
        "ratio": statistics.median(mib / mine * theirs / raw_mib for mine, theirs in zip(ours, plain, strict=True)),
        "raw_durable_mib_per_s": 1 / (statistics.median(plain) / raw_mib + statistics.median(disk) / mib),
        "disk_mib_per_s": mib / statistics.median(disk),
        "rss_growth_mib": max(side["rss_growth_mib"] for side in sides),
        "sender_rss_growth_mib": max(side["rss_growth_mib"] for side in sides[0::2]),
        "receiver_rss_growth_mib": max(side["rss_growth_mib"] for side in sides[1::2]),
        "longest_stall_s": max(side["longest_stall_s"] for side in sides),
        "chunks_sent": max(side["published"] for side in sides),
        "chunks": -(-size // (CHUNK_KIB * 1024)),
        "seconds": ours,
        "raw_seconds": plain,
        "mib": mib,
        "raw_mib": raw_mib,
        "window": WINDOW,
        "raw_window": RAW_WINDOW,
        "processors": len(os.sched_getaffinity(0)),
        "seed": seed,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="blob throughput beside a raw transfer")
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    figures = measure(given.mib, given.seed, given.repeats)
    for key, value in figures.items():
        print(f"{key:24} {value:.6g}" if isinstance(value, float) else f"{key:24} {value}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
