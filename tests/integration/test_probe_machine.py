"""Probing this very machine, in real processes."""

import json
import subprocess
import sys

import psutil
import pytest

from fedpipe_agent.probe import (
    ProbeError,
    probe_accelerator,
    probe_cpu_flags,
    probe_device,
    probe_host,
    probe_versions,
    supported_bits,
)
from fedpipe_agent.rates import RatesError, measure_host, measure_in_subprocess
from fedpipe_profiles.device import DeviceProfile, Limits

SLOWEST_FLOPS_PER_S, FASTEST_CORE_FLOPS_PER_S = 1e8, 1e12
SLOWEST_BYTES_PER_S, FASTEST_BYTES_PER_S = 1e8, 2e12


def test_the_host_obeys_its_laws() -> None:
    host = probe_host()
    assert 0 <= host.free_bytes <= host.total_bytes <= psutil.virtual_memory().total
    assert 1 <= host.threads <= (psutil.cpu_count() or 1)
    assert host.cpu
    assert probe_cpu_flags()


def test_the_processors_rates_are_plausible_and_say_how_sure_they_are() -> None:
    rates = measure_host(threads=1)
    (matmul,) = rates.matmul
    assert matmul.dtype == "float32"
    assert matmul.repeats >= 3
    assert matmul.source == "measured"
    assert SLOWEST_FLOPS_PER_S < matmul.flops_per_s < FASTEST_CORE_FLOPS_PER_S
    assert SLOWEST_BYTES_PER_S < rates.bandwidth.bytes_per_s < FASTEST_BYTES_PER_S
    assert 0 <= matmul.relative_spread < 10


def test_torch_measures_the_processor_in_the_dtypes_it_has() -> None:
    bf16 = 16 in supported_bits(probe_cpu_flags(), None)
    arguments = ["--device", "cpu", "--threads", "1", *(["--bf16"] if bf16 else [])]
    rates = measure_in_subprocess("fedpipe_agent.train.rates", arguments)
    assert [rate.dtype for rate in rates.matmul] == ["float32", *(["bfloat16"] if bf16 else [])]
    assert all(rate.flops_per_s > SLOWEST_FLOPS_PER_S for rate in rates.matmul)


def test_a_whole_profile_survives_the_wire_and_the_daemon_stays_small() -> None:
    # In a process of its own, because this one may have loaded numpy and torch for other tests.
    code = (
        "import json, sys\n"
        "from fedpipe_agent.probe import probe_device\n"
        "from fedpipe_profiles.device import Limits\n"
        "profile, notes = probe_device('north', limits=Limits(threads=1), device='cpu')\n"
        "heavy = sorted({'numpy', 'torch', 'scipy'} & set(sys.modules))\n"
        "print(json.dumps([profile.model_dump(mode='json'), list(notes), heavy]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    data, notes, heavy = json.loads(done.stdout)
    profile = DeviceProfile.model_validate(data)
    assert (heavy, notes, profile.accelerator, profile.threads()) == ([], [], None, 1)
    assert DeviceProfile.model_validate_json(profile.model_dump_json()) == profile
    assert profile.rate("float32") is not None
    assert (16 in profile.supported_bits) == (profile.rate("bfloat16") is not None)
    assert {"python", "fedpipe", "numpy"} <= set(profile.versions)


def test_asking_for_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert probe_accelerator(probe_host()) is None
    with pytest.raises(ProbeError, match='"cuda", but there is no GPU to use: the driver names none'):
        probe_device("north", limits=Limits(threads=1), device="cuda")


def test_versions_leave_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_agent.probe.LIBRARIES", ("numpy", "no-such-library-anywhere"))
    assert set(probe_versions()) == {"python", "numpy"}


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("fedpipe_agent.rates", ["--threads", "0"], "status 2: .*should be 1 or more, got 0"),
        ("fedpipe_agent.no_such_module", [], "status 1: .*No module named"),
        ("this", [], "printed no figures"),
    ],
)
def test_a_measuring_process_that_fails_says_why(module: str, arguments: list[str], message: str) -> None:
    with pytest.raises(RatesError, match=message):
        measure_in_subprocess(module, arguments)


def test_a_measuring_process_that_hangs_is_ended() -> None:
    with pytest.raises(RatesError, match="took longer than"):
        measure_in_subprocess("fedpipe_agent.rates", ["--threads", "1"], timeout_s=0.01)


def test_torch_without_a_gpu_says_so() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RatesError, match="sees no CUDA device: install a torch built for"):
        measure_in_subprocess("fedpipe_agent.train.rates", ["--device", "cuda", "--threads", "1"])
