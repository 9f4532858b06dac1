"""What NVML, NVIDIA's management library, says about the GPU that a trainer will use.

NVML comes in as an argument: only `probe.py` imports it. Each call may be missing on some device, so each is asked for
on its own; no GPU and no driver is the normal case. Of several GPUs the first that CUDA_VISIBLE_DEVICES names is used,
or else the first of the machine in PCI bus order: a trainer must be started with CUDA_DEVICE_ORDER=PCI_BUS_ID to get
the same one.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fedpipe_agent.rates import Rates
from fedpipe_profiles.device import Accelerator, BandwidthRate, Host, MatmulRate

INTEGRATED = ("GB10", "ORIN", "THOR", "XAVIER", "TEGRA")
"""Parts of the names of GPUs without a memory of their own."""

_BITS_PER_BYTE = 8
_FLOPS_PER_CORE_CYCLE = 2
_TRANSFERS_PER_CYCLE = 2
_HZ_PER_MHZ = 1_000_000

T = TypeVar("T")


def describe_gpu(nvml: Any, host: Host, environment: Mapping[str, str]) -> Accelerator | None:
    """Describe the GPU that a trainer will use, or return None.

    Args:
        nvml: The pynvml module, or an object with its functions.
        host: Gives the memory of a GPU that has none of its own.
        environment: CUDA_VISIBLE_DEVICES in it chooses the GPU.
    """
    return _with_gpu(nvml, environment, lambda handle: _describe(nvml, handle, host))


def used_by(nvml: Any, environment: Mapping[str, str], pid: int) -> int | None:
    """Bytes that a process holds on the GPU that a trainer will use; None where the driver does not tell.

    Within a container the driver may name processes by other numbers than those that are known inside.
    """
    return _with_gpu(nvml, environment, lambda handle: _held(nvml, handle, pid))


def _held(nvml: Any, handle: Any, pid: int) -> int | None:
    processes = _ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
    return next((each.usedGpuMemory for each in processes if each.pid == pid), None)


def theoretical_rates(nvml: Any, environment: Mapping[str, str]) -> Rates | None:
    """The GPU's fp32 and memory rates by its core count, bus width and highest clocks, for want of a measurement.

    2 operations (one fused multiply-add) per core and cycle, 2 transfers per cycle of the memory clock. Real programs
    reach less, so these are marked "theoretical". None where NVML does not say all of them.
    """
    return _with_gpu(nvml, environment, lambda handle: _data_sheet(nvml, handle))


def _with_gpu(nvml: Any, environment: Mapping[str, str], ask: Callable[[Any], T | None]) -> T | None:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        handle = _handle(nvml, environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip())
        return None if handle is None else ask(handle)
    except nvml.NVMLError:
        return None
    finally:
        _ask(nvml, nvml.nvmlShutdown)


def _handle(nvml: Any, visible: str) -> Any:
    """The GPU by number, or by its UUID or that of a MIG slice; None if it is not there or hidden ("" and "-1")."""
    if visible.isdigit():
        return _ask(nvml, nvml.nvmlDeviceGetHandleByIndex, int(visible))
    if visible.startswith(("GPU-", "MIG-")):
        return _ask(nvml, nvml.nvmlDeviceGetHandleByUUID, visible)
    return None


def _describe(nvml: Any, handle: Any, host: Host) -> Accelerator | None:
    name = _decoded(_ask(nvml, nvml.nvmlDeviceGetName, handle)) or "NVIDIA GPU"
    memory = _memory(nvml, handle)
    unified = any(part in name.upper() for part in INTEGRATED)
    if not unified and memory == (0, 0):
        # A GPU cut into MIG slices has no figures of its own either, and cannot be used as a whole.
        mode = _ask(nvml, nvml.nvmlDeviceGetMigMode, handle)
        unified = mode is None or mode[0] == 0
    total, free = (host.total_bytes, host.free_bytes) if unified else memory
    if total == 0:
        return None
    capability = _ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return Accelerator(
        name=name[:200],
        total_bytes=total,
        free_bytes=free,
        unified_memory=unified,
        compute_capability=None if capability is None else (capability[0], capability[1]),
        driver=_decoded(_ask(nvml, nvml.nvmlSystemGetDriverVersion)),
    )


def _memory(nvml: Any, handle: Any) -> tuple[int, int]:
    """Total and free bytes; both 0 where the GPU has none of its own. Any failure but that one is raised."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError_NotSupported:
        return 0, 0
    return memory.total, memory.free


def _data_sheet(nvml: Any, handle: Any) -> Rates | None:
    cores = _ask(nvml, nvml.nvmlDeviceGetNumGpuCores, handle)
    clock_mhz = _ask(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM)
    memory_mhz = _ask(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM)
    bus_bits = _ask(nvml, nvml.nvmlDeviceGetMemoryBusWidth, handle)
    if not (cores and clock_mhz and memory_mhz and bus_bits):
        return None
    matmul = MatmulRate(
        dtype="float32",
        shape=(1, 1, 1),
        flops_per_s=float(cores * clock_mhz * _HZ_PER_MHZ * _FLOPS_PER_CORE_CYCLE),
        repeats=1,
        relative_spread=0.0,
        source="theoretical",
    )
    bandwidth = BandwidthRate(
        bytes_per_s=memory_mhz * _HZ_PER_MHZ * _TRANSFERS_PER_CYCLE * bus_bits / _BITS_PER_BYTE,
        buffer_bytes=1,
        repeats=1,
        relative_spread=0.0,
        source="theoretical",
    )
    return Rates(matmul=(matmul,), bandwidth=bandwidth)


def _ask(nvml: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """The call's answer, or None where the driver has none."""
    try:
        return call(*arguments)
    except nvml.NVMLError:
        return None


def _decoded(text: Any) -> str | None:
    """Text as text: bindings of some years ago give bytes."""
    return text.decode(errors="replace") if isinstance(text, bytes) else text
