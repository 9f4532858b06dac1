"""Named places in a process where it can be killed, and the file through which it is told to be.

Owns the names of hooks, the count of how often each is passed, and the kill. What is wrapped is `patches.py`'s matter.
A hook's name is `<kind>:<operation>@<site>:<edge>`: the kind of process, what is done, the function of FedPipe that
does it (a private one with the public one that called it), and whether that is about to happen or has happened.

A process reads its orders from a small file that is mapped into memory, so an order reaches a process that is already
running as well as one that is about to start, and holds until it is carried out, over any number of restarts.
"""

import mmap
import os
import signal
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

SIZE = 4096
_HEAD = struct.Struct("<IiiHH")
_IDLE, _ARMED, _FIRED = 0, 1, 2
_OURS = ("fedpipe_", "benchmarks.echo_trainer")
_BETWEEN = ("pathlib", "contextlib", "tempfile", "shutil", "benchmarks.", "os", "io")
"""Modules that may stand between FedPipe's code and the operation; under others it is not FedPipe's operation."""
_THROUGH = ("fedpipe_agent.audited_transport",)
"""FedPipe's own modules through which others of it publish: a site is who asked them to."""
_PLUMBING = frozenset(("sync_folder", "write_atomically", "execute", "transaction"))
"""Public functions whose caller says more than they do."""


@dataclass(frozen=True, slots=True)
class Order:
    """Kill when `hook` is passed for the `nth` time from now.

    Attributes:
        hook: The name of a hook.
        nth: From 1.
        victim: A process, or 0 for the one that passes the hook.
        wipe: A file that is removed right after the kill.
    """

    hook: str
    nth: int = 1
    victim: int = 0
    wipe: str = ""


class OrderFile:
    """The orders of one process; both sides map the same file."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < SIZE:
                os.truncate(descriptor, SIZE)
            self._map = mmap.mmap(descriptor, SIZE)
        finally:
            os.close(descriptor)

    def give(self, order: Order) -> None:
        """Replace the order."""
        self.clear()
        hook, wipe = order.hook.encode(), order.wipe.encode()
        text = hook + wipe
        self._map[_HEAD.size : _HEAD.size + len(text)] = text
        self._map[: _HEAD.size] = _HEAD.pack(_ARMED, order.nth, order.victim, len(hook), len(wipe))

    def clear(self) -> None:
        """No order."""
        self._map[: _HEAD.size] = _HEAD.pack(_IDLE, 0, 0, 0, 0)

    @property
    def fired(self) -> bool:
        """Whether the order was carried out."""
        return bool(_HEAD.unpack_from(self._map)[0] == _FIRED)

    def passed(self, hook: str) -> Order | None:
        """Count one passing; the order, if it is to be carried out now. It is marked as carried out."""
        state, left, victim, size, wiped = _HEAD.unpack_from(self._map)
        if state != _ARMED or self._map[_HEAD.size : _HEAD.size + size] != hook.encode():
            return None
        left -= 1
        state = _ARMED if left > 0 else _FIRED
        self._map[: _HEAD.size] = _HEAD.pack(state, left, victim, size, wiped)
        if left > 0:
            return None
        wipe = self._map[_HEAD.size + size : _HEAD.size + size + wiped].decode()
        return Order(hook, 0, victim, wipe)

    def close(self) -> None:
        """Let go of the file."""
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Hooks:
    """The hooks of this process.

    Args:
        kind: First part of every name.
        orders: Where orders come from.
        hits: A file that gets one line per passing; what was written survives the kill.
    """

    def __init__(self, kind: str, orders: OrderFile, hits: Path) -> None:
        self._kind, self._orders = kind, orders
        self._hits = os.open(hits, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()
        self._write = os.write  # before it is wrapped
        self._unlink = os.unlink

    def reach(self, operation: str, site: str, edge: str) -> None:
        """A hook is passed; the process may end here."""
        name = f"{self._kind}:{operation}@{site}:{edge}"
        with self._lock:
            self._write(self._hits, f"{name}\n".encode())
            order = self._orders.passed(name)
            if order is not None:
                self._carry_out(order)

    def _carry_out(self, order: Order) -> None:
        os.kill(order.victim or os.getpid(), signal.SIGKILL)
        if order.wipe:
            try:
                self._unlink(order.wipe)
            except FileNotFoundError:
                return
        while not order.victim:
            time.sleep(1.0)  # the signal is on its way: nothing more may happen here


def site_of(frame: FrameType | None) -> str | None:
    """The function of FedPipe's code that began an operation; None if another library did.

    Args:
        frame: Of the operation's wrapper.

    Returns:
        For example "wire.tensor_writer._finish<aggregate_files".
    """
    site = ""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(_OURS) and module not in _THROUGH:
            function = frame.f_code.co_name
            if not site:
                site = f"{module.removeprefix('fedpipe_').removeprefix('benchmarks.')}.{function}"
            elif _is_public(function):
                return f"{site}<{function}"
            if _is_public(function):
                return site
        elif not module.startswith((*_BETWEEN, *_THROUGH)):
            break
        frame = frame.f_back
    return site or None


def _is_public(function: str) -> bool:
    return not function.startswith(("_", "<")) and function not in _PLUMBING
