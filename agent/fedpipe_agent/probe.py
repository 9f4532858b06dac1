"""What the machine is: processor, memory, GPU and installed libraries, as far as this process may use them.

The only module that imports psutil and pynvml. Starts the measuring processes of `rates.py` and `train/rates.py`, and
never imports numpy or the training stack itself.
"""

import importlib.metadata
import os
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import psutil
import pynvml

from fedpipe_agent.cgroups import CgroupLimits, read_cgroup_limits
from fedpipe_agent.gpu import describe_gpu, theoretical_rates, used_by
from fedpipe_agent.rates import Rates, RatesError, measure_in_subprocess
from fedpipe_profiles.device import Accelerator, Bits, DeviceProfile, Host, Limits, Link

LIBRARIES = (
    "fedpipe",
    "numpy",
    "safetensors",
    "paho-mqtt",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
)
BF16_FLAGS = frozenset({"amx_bf16", "bf16"})
"""Processors with matrix units for bf16; the last is arm64's name for them.

AVX512-BF16 alone is left out: a LoRA step on such a processor was no faster than in fp32 (46 and 45 examples/s), and
oneDNN's bf16 kernels, one for every shape of a batch, took 0.5 GiB.
"""

NF4_CAPABILITY = (6, 0)
INT8_CAPABILITY = (7, 5)
BF16_CAPABILITY = (8, 0)
"""What a GPU needs: the first two by bitsandbytes' installation guide, the last for bf16 in hardware."""


_NO_GPU = 'training.device is "cuda", but there is no GPU to use: '


class ProbeError(RuntimeError):
    """The machine cannot be measured; the message says what failed."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The machine with the device that a trainer should use and its rates; notes say what is left out and why."""

    host: Host
    cpu_flags: frozenset[str]
    accelerator: Accelerator | None
    rates: Rates
    notes: tuple[str, ...] = ()


def probe_host(
    proc: Path = Path("/proc"),
    cgroup: Path = Path("/sys/fs/cgroup"),
    *,
    memory: Callable[[], Any] = psutil.virtual_memory,
    affinity: Callable[[], Collection[int]] = lambda: os.sched_getaffinity(0),
) -> Host:
    """Describe the processor and the memory that this process may use.

    Args:
        proc: Where procfs is mounted.
        cgroup: Where the control groups are mounted.
        memory: Returns an object with `total` and `available`, in bytes.
        affinity: Returns the logical processors that this process may run on.
    """
    limits = read_cgroup_limits(proc, cgroup)
    now = memory()
    total = now.total if limits.total_bytes is None else min(now.total, limits.total_bytes)
    free = now.available if limits.free_bytes is None else min(now.available, limits.free_bytes)
    return Host(
        cpu=_processor_name(proc),
        threads=_threads(len(affinity()), limits),
        total_bytes=total,
        free_bytes=min(free, total),
    )


def probe_cpu_flags(proc: Path = Path("/proc")) -> frozenset[str]:
    """The instruction sets that the kernel lists, as it spells them."""
    info = _cpuinfo(proc)
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def probe_accelerator(
    host: Host, nvml: Any = pynvml, environment: Mapping[str, str] = os.environ
) -> Accelerator | None:
    """Describe the GPU that a trainer will use, or return None; see `gpu.py`."""
    return describe_gpu(nvml, host, environment)


def probe_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that are installed; imports none of them."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def supported_bits(cpu_flags: Collection[str], accelerator: Accelerator | None) -> tuple[Bits, ...]:
    """Widths of the frozen weights that the device computes with in hardware, rising.

    A GPU whose compute capability is unknown gets 4 and 32 bits only.
    """
    if accelerator is None:
        return (4, 8, 16, 32) if BF16_FLAGS & set(cpu_flags) else (4, 8, 32)
    capability = accelerator.compute_capability or NF4_CAPABILITY
    needs: tuple[tuple[Bits, tuple[int, int]], ...] = (
        (4, NF4_CAPABILITY),
        (8, INT8_CAPABILITY),
        (16, BF16_CAPABILITY),
        (32, (0, 0)),
    )
    return tuple(bits for bits, least in needs if capability >= least)


def measure_rates(
    host: Host,
    cpu_flags: frozenset[str],
    accelerator: Accelerator | None,
    *,
    threads: int,
    nvml: Any = pynvml,
    run: Callable[[str, list[str]], Rates] = measure_in_subprocess,
) -> Measured:
    """Measure the device that a trainer would use, in processes of their own; takes seconds where torch is loaded.

    A GPU that torch cannot use is left out, with a note. Without torch, a GPU's rates are its data sheet's.

    Raises:
        ProbeError: if not even the processor can be measured.
    """
    has_torch = find_spec("torch") is not None
    notes: list[str] = []
    if accelerator is not None and has_torch:
        try:
            rates = run("fedpipe_agent.train.rates", ["--device", "cuda", "--threads", str(threads)])
            return Measured(host, cpu_flags, accelerator, rates)
        except RatesError as error:
            notes.append(f"{accelerator.name} is left out: {error}")
    elif accelerator is not None:
        sheet = theoretical_rates(nvml, os.environ)
        if sheet is not None:
            note = f"{accelerator.name} was not measured: torch is missing; its rates are theoretical"
            return Measured(host, cpu_flags, accelerator, sheet, (note,))
        notes.append(f"{accelerator.name} is left out: torch is missing, and its driver tells no clocks")
    more = None if not has_torch else ["--bf16"] if BF16_FLAGS & cpu_flags else []
    rates = _processor_rates(threads, more, run=run, notes=notes)
    return Measured(host, cpu_flags, None, rates, tuple(notes))


def build_profile(
    agent: str,
    measured: Measured,
    *,
    limits: Limits,
    datasets: Collection[str] = (),
    link: Link | None = None,
    versions: Mapping[str, str] | None = None,
) -> DeviceProfile:
    """Put the findings together."""
    return DeviceProfile(
        agent=agent,
        host=measured.host,
        accelerator=measured.accelerator,
        supported_bits=supported_bits(measured.cpu_flags, measured.accelerator),
        matmul=measured.rates.matmul,
        bandwidth=measured.rates.bandwidth,
        dequantization=measured.rates.dequantization,
        optimizer=measured.rates.optimizer,
        link=link,
        limits=limits,
        datasets=tuple(sorted(datasets)),
        versions=dict(versions or {}),
    )


def probe_device(
    agent: str,
    *,
    limits: Limits,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    datasets: Collection[str] = (),
    link: Link | None = None,
) -> tuple[DeviceProfile, tuple[str, ...]]:
    """Describe and measure this machine; takes 1 to 10 s.

    Returns:
        The profile, and notes for the owner on what was left out and why.

    Raises:
        ProbeError: if the machine cannot be measured, or `device` is "cuda" and there is no GPU to use.
    """
    host, flags = probe_host(), probe_cpu_flags()
    accelerator = None if device == "cpu" else probe_accelerator(host)
    if device == "cuda" and accelerator is None:
        raise ProbeError(_NO_GPU + "the driver names none")
    threads = min(host.threads, limits.threads or host.threads)
    measured = measure_rates(host, flags, accelerator, threads=threads)
    if device == "cuda" and measured.accelerator is None:
        raise ProbeError(_NO_GPU + "; ".join(measured.notes))
    profile = build_profile(agent, measured, limits=limits, datasets=datasets, link=link, versions=probe_versions())
    return profile, measured.notes


def measure_again(
    profile: DeviceProfile,
    trainer: int | None,
    *,
    proc: Path = Path("/proc"),
    cgroup: Path = Path("/sys/fs/cgroup"),
    memory: Callable[[], Any] = psutil.virtual_memory,
    nvml: Any = pynvml,
) -> DeviceProfile:
    """The same profile with the memory that is free now; takes milliseconds.

    What a warm trainer of this agent holds is not taken by others: it counts as free. Where the driver does not tell
    how much of a GPU that is, the figure from before stands.

    Args:
        profile: As measured before.
        trainer: The process of that trainer, if there is one.
        proc: Where procfs is mounted.
        cgroup: Where the control groups are mounted.
        memory: Returns an object with `total` and `available`, in bytes.
        nvml: The pynvml module, or an object with its functions.
    """
    own = 0 if trainer is None else _anonymous_bytes(proc, trainer)
    now = probe_host(proc, cgroup, memory=memory)
    host = profile.host.model_copy(update={"free_bytes": min(now.total_bytes, now.free_bytes + own)})
    gpu = profile.accelerator
    found = None if gpu is None else describe_gpu(nvml, host, os.environ)
    if gpu is None or found is None or found.name != gpu.name:
        return profile.model_copy(update={"host": host})
    held = 0 if trainer is None or found.unified_memory else used_by(nvml, os.environ, trainer)
    free = gpu.free_bytes if held is None else min(found.total_bytes, found.free_bytes + held)
    return profile.model_copy(update={"host": host, "accelerator": gpu.model_copy(update={"free_bytes": free})})


def _anonymous_bytes(proc: Path, pid: int) -> int:
    """What a process holds that the kernel cannot drop; 0 where it is gone. Its files' pages count as available."""
    try:
        text = (proc / str(pid) / "status").read_text()
    except OSError:
        return 0
    sizes = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    kib = [sizes.get(name, "0 kB").split() for name in ("RssAnon", "RssShmem")]
    return sum(int(words[0]) * 1024 for words in kib if words and words[0].isdigit())


def _processor_rates(
    threads: int, more: list[str] | None, *, run: Callable[[str, list[str]], Rates], notes: list[str]
) -> Rates:
    """By torch with `more` arguments, or without torch, where they are None or torch fails."""
    if more is not None:
        # numpy has no bf16, and neither quantized weights nor an optimizer
        try:
            return run("fedpipe_agent.train.rates", ["--device", "cpu", *more, "--threads", str(threads)])
        except RatesError as error:
            notes.append(f"torch was not measured, only numpy: {error}")
    try:
        return run("fedpipe_agent.rates", ["--threads", str(threads)])
    except RatesError as error:
        raise ProbeError(f"the processor cannot be measured: {error}") from None


def _threads(affine: int, limits: CgroupLimits) -> int:
    # Whole processors only: a thread that is stopped in every period makes all others wait for it.
    return max(1, affine if limits.processors is None else min(affine, int(limits.processors)))


def _cpuinfo(proc: Path) -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    try:
        text = (proc / "cpuinfo").read_text(errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _processor_name(proc: Path) -> str:
    # arm64 has no model name in /proc/cpuinfo.
    return (_cpuinfo(proc).get("model name") or platform.machine() or "unknown")[:200]
