"""What the process holds, what it held at most, and the limit that it cannot pass.

On CPU the limit is RLIMIT_DATA: an allocation beyond it fails with an error that can be caught, where the machine's own
limit would kill the process or its neighbours. On CUDA it is the caching allocator's own fraction.
"""

import contextlib
import ctypes
import errno
import gc
import os
import resource
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch.utils.checkpoint import checkpoint

from fedpipe_agent.train.errors import MemoryExceededError
from fedpipe_profiles.device import MIB

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""Written to clear_refs, sets VmHWM to the present VmRSS (proc(5))."""

_MAX_CUDA_CONTEXT = 1024 * MIB
"""On a shared GPU the driver's figures include other processes; a context of its own is never larger than this."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
"""Of mallopt(3)."""
_LOADING_BLOCK = 128 * 1024
"""In bytes: where the C library begins, before blocks that were freed raise it."""

_SIGNS = (
    "defaultcpuallocator",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "cublas_status_alloc_failed",
    "could not create a memory",
    "could not create a primitive",  # oneDNN: its code and scratch space found no room
    "could not execute a primitive",
    "bad_alloc",
    "can't start new thread",
)


def status_bytes(field: str) -> int:
    """One of the kernel's figures of this process, such as VmRSS, VmHWM or VmData, in bytes.

    Raises:
        KeyError: if the kernel does not report the field.
    """
    for line in _STATUS.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    raise KeyError(field)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch, Python or the system says that memory ran out, or one that it came of.

    While a base is converted, transformers puts an error of its own in the place of the one that tells.
    """
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and not any(at is each for each in seen):
        if _says_out_of_memory(at):
            return True
        seen.append(at)
        at = at.__cause__ or at.__context__
    return False


def _says_out_of_memory(error: BaseException) -> bool:
    # a SystemError is what CPython makes of an extension's allocation that failed unnoticed
    if isinstance(error, MemoryError | torch.OutOfMemoryError | SystemError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch has no class of its own for a failed allocation on CPU: only the text tells
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


class Meter(ABC):
    """Measures the memory that training takes above `context_bytes`, and enforces the limit."""

    context_bytes: int
    limit_bytes: int

    @property
    def available_bytes(self) -> int:
        """What base, adapters and training may take together."""
        return self.limit_bytes - self.context_bytes

    @abstractmethod
    def relimit(self, limit_bytes: int) -> None:
        """Hold the process to another limit from now on; what it holds already stays, but grows no more.

        Raises:
            MemoryExceededError: if the runtime's context alone is larger.
        """

    @abstractmethod
    def reset(self) -> None:
        """Begin a new peak at what is held now."""

    @abstractmethod
    def peak_bytes(self) -> int:
        """The most that was held since `reset`, without the runtime's context."""

    @abstractmethod
    def release(self) -> None:
        """Give what nobody refers to any more back to the system."""

    @contextlib.contextmanager
    def mapping(self, size_bytes: int) -> Iterator[None]:
        """Allow files of `size_bytes` to be mapped while this lasts: their pages can be dropped at any time."""
        del size_bytes
        yield


class HostMeter(Meter):
    """Memory of the process on the host.

    Args:
        limit_bytes: For the whole process, the libraries' own memory included.

    Raises:
        MemoryExceededError: if the libraries alone hold more than the limit.
    """

    def __init__(self, limit_bytes: int) -> None:
        # a limit that an earlier run in this process had is not this one's
        self._set(resource.RLIM_INFINITY)
        _warm_up()
        self.release()
        self.limit_bytes = limit_bytes
        self.context_bytes = status_bytes("VmRSS")
        if self.available_bytes <= 0:
            raise MemoryExceededError(
                f"the memory limit of {limit_bytes // MIB} MiB is below the {self.context_bytes // MIB} MiB that the "
                "training libraries take by themselves: raise limits.memory_mib in agent.toml",
                self.context_bytes,
            )
        # VmData counts what is reserved, VmRSS what is used: only growth from here on is limited
        self._data_bytes = status_bytes("VmData") + self.available_bytes
        self._set(self._data_bytes)

    def relimit(self, limit_bytes: int) -> None:
        """Another limit, of RLIMIT_DATA."""
        _check_above_context(limit_bytes, self.context_bytes)
        self._data_bytes += limit_bytes - self.limit_bytes
        self.limit_bytes = limit_bytes
        self._set(self._data_bytes)

    @staticmethod
    def _set(data_bytes: int) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        bounds = [bound for bound in (data_bytes, hard) if bound != resource.RLIM_INFINITY]
        soft = min(bounds, default=resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def reset(self) -> None:
        """Begin a new peak; where the kernel forbids it the old peak stands, and figures err on the safe side."""
        with contextlib.suppress(OSError):
            _CLEAR_REFS.write_text(_RESET_PEAK)

    def peak_bytes(self) -> int:
        """Peak resident set since `reset`, less the context."""
        return max(1, status_bytes("VmHWM") - self.context_bytes)

    def release(self) -> None:
        """Collect garbage, then let the C library return its free pages."""
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)

    @contextlib.contextmanager
    def mapping(self, size_bytes: int) -> Iterator[None]:
        """Leave room for private mappings of checkpoint files, which RLIMIT_DATA counts in full.

        What is copied out of them to be converted, tensor by tensor, goes back to the system at once. In the heap it
        would leave holes between what stays, which RLIMIT_DATA counts: more than fewer bits save.
        """
        self._set(self._data_bytes + size_bytes)
        _map_from(_LOADING_BLOCK, trim=_LOADING_BLOCK)
        try:
            yield
        finally:
            _map_from(_from_environment("MMAP", 32 * MIB), trim=_from_environment("TRIM", 64 * MIB))
            self._set(self._data_bytes)


class CudaMeter(Meter):
    """Memory of the process on the current GPU.

    Args:
        limit_bytes: For the whole process on the GPU, the CUDA context included.

    Raises:
        MemoryExceededError: if the context alone is larger than the limit.
    """

    def __init__(self, limit_bytes: int) -> None:
        torch.zeros(1, device="cuda")
        free, total = torch.cuda.mem_get_info()
        self.limit_bytes = limit_bytes
        used = total - free - torch.cuda.memory_reserved()
        self.context_bytes = min(used, _MAX_CUDA_CONTEXT)
        if self.available_bytes <= 0:
            raise MemoryExceededError(
                f"the memory limit of {limit_bytes // MIB} MiB is below the {self.context_bytes // MIB} MiB of the "
                "CUDA context: raise limits.memory_mib in agent.toml",
                self.context_bytes,
            )
        torch.cuda.set_per_process_memory_fraction(min(1.0, self.available_bytes / total))

    def relimit(self, limit_bytes: int) -> None:
        """Another limit, of the caching allocator."""
        _check_above_context(limit_bytes, self.context_bytes)
        self.limit_bytes = limit_bytes
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(min(1.0, self.available_bytes / total))

    def reset(self) -> None:
        """Begin a new peak."""
        torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """Peak of allocated memory since `reset`."""
        return max(1, torch.cuda.max_memory_allocated())

    def release(self) -> None:
        """Collect garbage, then empty the caching allocator."""
        gc.collect()
        torch.cuda.empty_cache()


def _check_above_context(limit_bytes: int, context_bytes: int) -> None:
    if limit_bytes <= context_bytes:
        raise MemoryExceededError(
            f"{limit_bytes // MIB} MiB are free for the trainer now, and its libraries alone take "
            f"{context_bytes // MIB} MiB: free memory on this machine, or raise limits.memory_mib in agent.toml",
            context_bytes,
        )


def open_meter(device: Literal["cpu", "cuda"], limit_bytes: int) -> Meter:
    """The meter of a device; from here on the limit holds.

    Raises:
        MemoryExceededError: if the limit is below what the runtime takes by itself.
    """
    return HostMeter(limit_bytes) if device == "cpu" else CudaMeter(limit_bytes)


def _map_from(size_bytes: int, *, trim: int) -> None:
    """Have the C library map blocks from `size_bytes` on by themselves, and keep `trim` bytes at the heap's end."""
    with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, size_bytes)
        library.mallopt(_M_TRIM_THRESHOLD, trim)


def _from_environment(threshold: str, otherwise: int) -> int:
    """A threshold as this process was started with it; `otherwise` is as far as the C library itself would raise it."""
    said = os.environ.get(f"MALLOC_{threshold}_THRESHOLD_", "")
    return min(int(said), otherwise) if said.isascii() and said.isdigit() else otherwise


def _warm_up() -> None:
    """Take a step of nothing, so that what torch loads and starts at its first step counts as context."""
    layer = torch.nn.Linear(256, 256)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    checkpoint(layer, torch.ones(256, 256), use_reentrant=False).sum().backward()
    torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
    optimizer.step()
