"""Probing with machines made up of files: processors, control groups of both versions, and an NVML that lacks calls.

NVML needs an NVIDIA driver, so a module that acts like it stands in; everything else is real.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pynvml import (  # the errors of the real binding, by number
    NVML_CLOCK_MEM,
    NVML_CLOCK_SM,
    NVML_ERROR_DRIVER_NOT_LOADED,
    NVML_ERROR_GPU_IS_LOST,
    NVML_ERROR_INVALID_ARGUMENT,
    NVML_ERROR_LIBRARY_NOT_FOUND,
    NVML_ERROR_NO_PERMISSION,
    NVML_ERROR_NOT_SUPPORTED,
    NVMLError,
    NVMLError_NotSupported,
)

from fedpipe_agent.gpu import theoretical_rates
from fedpipe_agent.probe import (
    Measured,
    ProbeError,
    build_profile,
    measure_rates,
    probe_accelerator,
    probe_cpu_flags,
    probe_host,
    supported_bits,
)
from fedpipe_agent.rates import Rates, RatesError, bandwidth_rate, matmul_rate
from fedpipe_profiles.device import Accelerator, Bits, Host, Limits

GIB = 1 << 30
HOST = Host(cpu="x", threads=8, total_bytes=64 * GIB, free_bytes=40 * GIB)
GPU = Accelerator(name="G", total_bytes=8, free_bytes=4, unified_memory=False, compute_capability=(8, 0))
NO_ENVIRONMENT: dict[str, str] = {}

X86 = (
    "processor\t: 0\nmodel name\t: AMD EPYC 9V74\nflags\t\t: fpu avx512f avx512_bf16\n\nprocessor\t: 1\nflags\t: none\n"
)
ARM = "processor\t: 0\nBogoMIPS\t: 50.0\nFeatures\t: fp asimd bf16 i8mm\nCPU implementer\t: 0x41\n"


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _host(tmp_path: Path, groups: str, files: dict[str, str], processors: int = 8) -> Host:
    _tree(tmp_path / "proc", {"self/cgroup": groups, "cpuinfo": X86})
    (tmp_path / "cgroup").mkdir(exist_ok=True)
    _tree(tmp_path / "cgroup", files)
    return probe_host(
        tmp_path / "proc",
        tmp_path / "cgroup",
        memory=lambda: SimpleNamespace(total=64 * GIB, available=40 * GIB),
        affinity=lambda: set(range(processors)),
    )


# --- the processor and its memory -----------------------------------------------------------------------------------

UNLIMITED = (8, 64 * GIB, 40 * GIB)
CGROUPS: dict[str, tuple[str, dict[str, str], tuple[int, int, int]]] = {
    "no control groups": ("", {}, UNLIMITED),
    "version 2, no limit": (
        "0::/",
        {"memory.max": "max\n", "memory.current": "1000\n", "cpu.max": "max 100000\n"},
        UNLIMITED,
    ),
    "version 2, own group": (
        "0::/system.slice/agent.service\n",
        {
            "system.slice/agent.service/memory.max": f"{8 * GIB}\n",
            "system.slice/agent.service/memory.current": f"{3 * GIB}\n",
            "system.slice/agent.service/cpu.max": "250000 100000\n",
        },
        (2, 8 * GIB, 5 * GIB),
    ),
    "version 2, a group above is tighter": (
        "0::/a/b",
        {
            "a/memory.max": f"{4 * GIB}",
            "a/memory.current": f"{3 * GIB}",
            "a/b/memory.max": f"{8 * GIB}",
            "a/b/memory.current": f"{1 * GIB}",
            "a/cpu.max": "400000 100000",
            "a/b/cpu.max": "600000 100000",
        },
        (4, 4 * GIB, 1 * GIB),
    ),
    "version 2, throttled before it is full": (
        "0::/a",
        {"a/memory.max": f"{8 * GIB}", "a/memory.high": f"{6 * GIB}", "a/memory.current": f"{2 * GIB}"},
        (8, 6 * GIB, 4 * GIB),
    ),
    "version 2, file contents can be dropped": (
        "0::/a",
        {
            "a/memory.max": f"{8 * GIB}",
            "a/memory.current": f"{7 * GIB}",
            "a/memory.stat": f"anon 5\ninactive_file {4 * GIB}\nactive_file {GIB // 2}\n",
        },
        (8, 8 * GIB, 5 * GIB + GIB // 2),
    ),
    "version 2, over its limit": (
        "0::/a",
        {"a/memory.max": f"{1 * GIB}", "a/memory.current": f"{2 * GIB}"},
        (8, 1 * GIB, 0),
    ),
    "version 2, more than the machine has": (
        "0::/a",
        {"a/memory.max": f"{500 * GIB}", "a/memory.current": "0", "a/cpu.max": "6400000 100000"},
        UNLIMITED,
    ),
    "version 2, less than one processor": ("0::/", {"cpu.max": "50000 100000"}, (1, 64 * GIB, 40 * GIB)),
    "a container sees its group as the root": (
        "0::/docker/1234",
        {"memory.max": f"{2 * GIB}", "memory.current": f"{1 * GIB}"},
        (8, 2 * GIB, 1 * GIB),
    ),
    "a path that leaves the mount": ("0::/../../x", {"memory.max": f"{2 * GIB}"}, (8, 2 * GIB, 2 * GIB)),
    "version 1": (
        "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n1:name=systemd:/docker/1\n",
        {
            "memory/docker/1/memory.limit_in_bytes": f"{4 * GIB}",
            "memory/docker/1/memory.usage_in_bytes": f"{3 * GIB}",
            "memory/docker/1/memory.stat": f"cache 1\ntotal_inactive_file {2 * GIB}\n",
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": "5",
            "cpu,cpuacct/docker/1/cpu.cfs_quota_us": "300000",
            "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        (3, 4 * GIB, 3 * GIB),
    ),
    "version 1 for memory, version 2 beside it": (
        "4:memory:/j\n0::/j\n",
        {
            "memory/j/memory.limit_in_bytes": f"{4 * GIB}",
            "memory/j/memory.usage_in_bytes": f"{1 * GIB}",
            "unified/j/cpu.max": "200000 100000",
        },
        (2, 4 * GIB, 3 * GIB),
    ),
    "garbage": ("nonsense\n0::/a\n", {"a/memory.max": "lots", "a/cpu.max": "many 0", "a/memory.stat": "x"}, UNLIMITED),
}


@pytest.mark.parametrize(("groups", "files", "expected"), CGROUPS.values(), ids=CGROUPS.keys())
def test_control_groups_limit_what_counts_as_there(
    tmp_path: Path, groups: str, files: dict[str, str], expected: tuple[int, int, int]
) -> None:
    host = _host(tmp_path, groups, files)
    assert (host.threads, host.total_bytes, host.free_bytes) == expected


def test_affinity_counts_where_it_is_tighter_than_the_quota(tmp_path: Path) -> None:
    assert _host(tmp_path, "0::/", {"cpu.max": "400000 100000"}, processors=3).threads == 3


def test_x86_and_arm_processors(tmp_path: Path) -> None:
    x86, arm = _tree(tmp_path / "x86", {"cpuinfo": X86}), _tree(tmp_path / "arm", {"cpuinfo": ARM})
    assert probe_host(x86).cpu == "AMD EPYC 9V74"
    assert probe_host(arm).cpu
    assert probe_cpu_flags(x86) == {"fpu", "avx512f", "avx512_bf16"}
    assert "bf16" in probe_cpu_flags(arm)
    assert probe_cpu_flags(tmp_path / "nothing") == frozenset()


@pytest.mark.parametrize(
    ("flags", "bits"),
    [
        ({"avx2"}, (4, 8, 32)),
        ({"avx512f", "avx512_vnni"}, (4, 8, 32)),
        ({"avx512_bf16"}, (4, 8, 32)),
        ({"amx_bf16"}, (4, 8, 16, 32)),
        ({"asimd", "bf16"}, (4, 8, 16, 32)),
    ],
)
def test_bits_of_processors(flags: set[str], bits: tuple[Bits, ...]) -> None:
    assert supported_bits(flags, None) == bits


@pytest.mark.parametrize(
    ("capability", "bits"),
    [
        ((5, 2), (32,)),
        ((6, 1), (4, 32)),
        ((7, 0), (4, 32)),
        ((7, 5), (4, 8, 32)),
        ((8, 0), (4, 8, 16, 32)),
        ((12, 1), (4, 8, 16, 32)),
        (None, (4, 32)),
    ],
)
def test_bits_of_gpus(capability: tuple[int, int] | None, bits: tuple[Bits, ...]) -> None:
    gpu = GPU.model_copy(update={"compute_capability": capability})
    assert supported_bits({"avx512_bf16"}, gpu) == bits


# --- the GPU --------------------------------------------------------------------------------------------------------


class _Nvml:
    """Acts like pynvml on a machine with an RTX 4090 as GPU 0 and a T4 as GPU 1; `broken` calls raise instead."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NVMLError_NotSupported
    NVML_CLOCK_SM = NVML_CLOCK_SM
    NVML_CLOCK_MEM = NVML_CLOCK_MEM

    def __init__(self, *, broken: dict[str, int] | None = None, **answers: Any) -> None:
        self.asked: list[str] = []
        self._broken = broken or {}
        self._answers: dict[str, Callable[..., Any]] = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlSystemGetDriverVersion": lambda: "580.95.05",
            "nvmlDeviceGetHandleByIndex": self._by_index,
            "nvmlDeviceGetHandleByUUID": {"GPU-1111": 1}.__getitem__,
            "nvmlDeviceGetName": ["NVIDIA GeForce RTX 4090", "Tesla T4"].__getitem__,
            "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=24 * GIB, free=20 * GIB),
            "nvmlDeviceGetCudaComputeCapability": [(8, 9), (7, 5)].__getitem__,
            "nvmlDeviceGetMigMode": lambda _: [0, 0],
            "nvmlDeviceGetNumGpuCores": lambda _: 16384,
            "nvmlDeviceGetMaxClockInfo": lambda _, kind: {NVML_CLOCK_SM: 2520, NVML_CLOCK_MEM: 10501}[kind],
            "nvmlDeviceGetMemoryBusWidth": lambda _: 384,
        }
        self._answers.update({name: lambda *_, value=value: value for name, value in answers.items()})

    @staticmethod
    def _by_index(index: int) -> int:
        if index > 1:
            raise NVMLError(NVML_ERROR_INVALID_ARGUMENT)
        return index

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.asked.append(name)
            if name in self._broken:
                raise NVMLError(self._broken[name])
            return self._answers[name](*arguments)

        return call


def _gpu(nvml: _Nvml, visible: str | None = None) -> Accelerator | None:
    return probe_accelerator(HOST, nvml, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})


WHOLE = Accelerator(
    name="NVIDIA GeForce RTX 4090",
    total_bytes=24 * GIB,
    free_bytes=20 * GIB,
    unified_memory=False,
    compute_capability=(8, 9),
    driver="580.95.05",
)


def test_a_gpu_as_its_driver_describes_it() -> None:
    assert _gpu(_Nvml()) == WHOLE
    assert _gpu(_Nvml(nvmlSystemGetDriverVersion=b"470.1", nvmlDeviceGetName=b"Tesla K80")) == WHOLE.model_copy(
        update={"driver": "470.1", "name": "Tesla K80"}
    )


NOT_SUPPORTED: dict[str, dict[str, Any] | None] = {
    "nvmlInit": None,
    "nvmlShutdown": {},
    "nvmlDeviceGetHandleByIndex": None,
    "nvmlDeviceGetName": {"name": "NVIDIA GPU"},
    "nvmlDeviceGetMemoryInfo": {"unified_memory": True, "total_bytes": 64 * GIB, "free_bytes": 40 * GIB},
    "nvmlDeviceGetCudaComputeCapability": {"compute_capability": None},
    "nvmlSystemGetDriverVersion": {"driver": None},
    "nvmlDeviceGetMigMode": {},
}


@pytest.mark.parametrize(("call", "change"), NOT_SUPPORTED.items(), ids=NOT_SUPPORTED.keys())
def test_each_call_may_be_missing(call: str, change: dict[str, Any] | None) -> None:
    gpu = _gpu(_Nvml(broken={call: NVML_ERROR_NOT_SUPPORTED}))
    assert gpu == (None if change is None else WHOLE.model_copy(update=change))


def test_the_table_above_has_every_call_that_is_made() -> None:
    nvml = _Nvml(broken={"nvmlDeviceGetMemoryInfo": NVML_ERROR_NOT_SUPPORTED})
    _gpu(nvml)
    assert set(nvml.asked) == set(NOT_SUPPORTED)


@pytest.mark.parametrize("error", [NVML_ERROR_LIBRARY_NOT_FOUND, NVML_ERROR_DRIVER_NOT_LOADED])
def test_no_library_and_no_driver_mean_no_gpu(error: int) -> None:
    nvml = _Nvml(broken={"nvmlInit": error})
    assert _gpu(nvml) is None
    assert nvml.asked == ["nvmlInit"]


def test_a_lost_gpu_is_none_and_the_library_is_let_go() -> None:
    nvml = _Nvml(broken={"nvmlDeviceGetMemoryInfo": NVML_ERROR_GPU_IS_LOST})
    assert _gpu(nvml) is None
    assert nvml.asked[-1] == "nvmlShutdown"


@pytest.mark.parametrize("name", ["NVIDIA GB10", "Orin (nvgpu)", "NVIDIA Thor"])
@pytest.mark.parametrize("figures", ["not supported", "zero", "some"])
def test_a_gpu_without_memory_of_its_own_gets_the_hosts(name: str, figures: str) -> None:
    answers = {"zero": SimpleNamespace(total=0, free=0), "some": SimpleNamespace(total=8 * GIB, free=8 * GIB)}
    given = {"nvmlDeviceGetMemoryInfo": answers[figures]} if figures in answers else {}
    broken = {"nvmlDeviceGetMemoryInfo": NVML_ERROR_NOT_SUPPORTED} if figures == "not supported" else {}
    gpu = _gpu(_Nvml(broken=broken, nvmlDeviceGetName=name, **given))
    assert gpu is not None
    assert (gpu.unified_memory, gpu.total_bytes, gpu.free_bytes) == (True, 64 * GIB, 40 * GIB)


@pytest.mark.parametrize("error", [NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NO_PERMISSION])
def test_a_gpu_cut_into_slices_is_not_taken_for_one_with_the_hosts_memory(error: int) -> None:
    assert _gpu(_Nvml(broken={"nvmlDeviceGetMemoryInfo": error}, nvmlDeviceGetMigMode=[1, 1])) is None


@pytest.mark.parametrize(
    ("visible", "name"),
    [
        (None, "NVIDIA GeForce RTX 4090"),
        ("1", "Tesla T4"),
        ("1,0", "Tesla T4"),
        (" 0", "NVIDIA GeForce RTX 4090"),
        ("GPU-1111", "Tesla T4"),
        ("", None),
        ("-1", None),
        ("NoDevFiles", None),
        ("7", None),
    ],
)
def test_cuda_visible_devices_chooses_the_gpu(visible: str | None, name: str | None) -> None:
    gpu = _gpu(_Nvml(), visible)
    assert (None if gpu is None else gpu.name) == name


def test_theoretical_rates_are_those_of_the_data_sheet_and_say_so() -> None:
    rates = theoretical_rates(_Nvml(), NO_ENVIRONMENT)
    assert rates is not None
    assert rates.matmul[0].flops_per_s == pytest.approx(82.6e12, rel=0.01)  # NVIDIA's figure for the RTX 4090
    assert rates.bandwidth.bytes_per_s == pytest.approx(1008e9, rel=0.01)  # likewise
    assert {rates.matmul[0].source, rates.bandwidth.source} == {"theoretical"}


@pytest.mark.parametrize(
    "call", ["nvmlDeviceGetNumGpuCores", "nvmlDeviceGetMaxClockInfo", "nvmlDeviceGetMemoryBusWidth", "nvmlInit"]
)
def test_half_a_data_sheet_is_none(call: str) -> None:
    assert theoretical_rates(_Nvml(broken={call: NVML_ERROR_NOT_SUPPORTED}), NO_ENVIRONMENT) is None


# --- choosing what to measure ---------------------------------------------------------------------------------------

NUMPY = Rates(matmul=(matmul_rate("float32", (2, 2, 2), [1.0, 1.0]),), bandwidth=bandwidth_rate(8, [1.0, 1.0]))
TORCH = Rates(matmul=(matmul_rate("bfloat16", (4, 4, 4), [1.0, 1.0]),), bandwidth=bandwidth_rate(16, [1.0, 1.0]))


class _Runs:
    """Answers as the measuring processes do; those whose arguments hold a word of `fails` fail."""

    def __init__(self, *fails: str) -> None:
        self.fails = fails
        self.asked: list[list[str]] = []

    def __call__(self, module: str, arguments: list[str]) -> Rates:
        self.asked.append(arguments)
        if set(self.fails) & {module, *arguments}:
            raise RatesError("it broke")
        assert arguments[-2:] == ["--threads", "3"]
        return TORCH if module == "fedpipe_agent.train.rates" else NUMPY


def _measured(
    run: _Runs, gpu: Accelerator | None = None, flags: frozenset[str] = frozenset(), *, nvml: Any = None
) -> Measured:
    return measure_rates(HOST, flags, gpu, threads=3, run=run, nvml=nvml or _Nvml())


def test_a_gpu_is_measured_by_torch() -> None:
    assert _measured(_Runs("fedpipe_agent.rates"), GPU) == Measured(HOST, frozenset(), GPU, TORCH)


def test_a_gpu_that_torch_cannot_use_is_left_out_with_a_note() -> None:
    measured = _measured(_Runs("cuda"), GPU)
    assert (measured.accelerator, measured.rates) == (None, TORCH)
    assert measured.notes == ("G is left out: it broke",)


def test_without_torch_a_gpus_rates_are_theoretical_and_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_agent.probe.find_spec", lambda _: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    measured = _measured(_Runs("fedpipe_agent.train.rates"), GPU)
    assert measured.accelerator == GPU
    assert measured.rates.bandwidth.source == "theoretical"
    assert "torch is missing" in measured.notes[0]
    blind = _measured(_Runs(), GPU, nvml=_Nvml(broken={"nvmlInit": NVML_ERROR_DRIVER_NOT_LOADED}))
    assert (blind.accelerator, blind.rates) == (None, NUMPY)


@pytest.mark.parametrize(("flags", "asked"), [(frozenset({"amx_bf16"}), ["--bf16"]), (frozenset(), [])])
def test_a_processor_is_measured_by_torch_where_there_is_one(flags: frozenset[str], asked: list[str]) -> None:
    runs = _Runs()
    assert _measured(runs, flags=flags).rates == TORCH
    assert runs.asked == [["--device", "cpu", *asked, "--threads", "3"]]
    fallback = _measured(_Runs("fedpipe_agent.train.rates"), flags=flags)
    assert (fallback.rates, fallback.notes) == (NUMPY, ("torch was not measured, only numpy: it broke",))


def test_a_machine_that_cannot_be_measured_is_an_error() -> None:
    with pytest.raises(ProbeError, match="the processor cannot be measured: it broke"):
        _measured(_Runs("fedpipe_agent.rates", "fedpipe_agent.train.rates"))


def test_the_profile_carries_what_was_found() -> None:
    measured = Measured(HOST, frozenset(), GPU, TORCH)
    limits = Limits(memory_bytes=3)
    profile = build_profile("north", measured, limits=limits, datasets={"b", "a"}, versions={"torch": "2"})
    assert (profile.agent, profile.host, profile.accelerator) == ("north", HOST, GPU)
    assert (profile.supported_bits, profile.datasets) == ((4, 8, 16, 32), ("a", "b"))
    assert profile.memory_limit_bytes() == 3
    assert profile.rate("bfloat16") == TORCH.matmul[0]
