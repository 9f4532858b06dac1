"""The catalogue of devices: every file is sound, says what a probe of that device would say, and is shipped."""

import subprocess
import sys
import tomllib
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

from fedpipe_agent.probe import supported_bits
from fedpipe_profiles.catalog.device_catalogue import UnknownDeviceError, catalogue_names, catalogued_device
from fedpipe_profiles.costs.rates import USUAL_SLOWDOWN
from fedpipe_profiles.costs.timing import device_rates
from fedpipe_profiles.device import MIB
from fedpipe_profiles.device_checks import profile_problems

ROOT = Path(__file__).parents[2]
ASKED_FOR = {
    "h200",
    "h100",
    "a100-40",
    "a100-80",
    "l40s",
    "l4",
    "t4",
    "rtx-5090",
    "rtx-4090",
    "rtx-3090-ti",
    "rtx-3060",
    "jetson-orin-nx",
    "jetson-agx-orin",
    "gb10",
    "cpu-server",
    "laptop",
}
MARKETED_GB = {"h200": 141, "h100": 80, "a100-40": 40, "a100-80": 80, "l40s": 48, "l4": 24, "t4": 16, "rtx-5090": 32}
MARKETED_GB |= {"rtx-4090": 24, "rtx-3090-ti": 24, "rtx-3060": 12, "jetson-orin-nx": 16, "jetson-agx-orin": 64}
MARKETED_GB |= {"gb10": 128}


def test_the_catalogue_has_every_device_and_no_file_without_one() -> None:
    assert set(catalogue_names()) == ASKED_FOR


@pytest.mark.parametrize("name", sorted(ASKED_FOR))
def test_a_device_is_plausible(name: str) -> None:
    entry = catalogued_device(name)
    profile = entry.profile(name)
    assert profile_problems(profile) == ()
    assert {rate.source for rate in profile.matmul} | {profile.bandwidth.source} == {"theoretical"}
    rates = {rate.dtype: rate.flops_per_s for rate in profile.matmul}
    # no sparse figure has slipped in: tensor cores are at most 16 times as fast as plain ones, sparse ones 32 times
    assert rates.get("bfloat16", 0) <= rates["float32"] * (32 if entry.gpu is None else 17)
    # bytes per operation of one chip: from a laptop to an accelerator they lie within two powers of ten
    assert 1e-3 < profile.bandwidth.bytes_per_s / max(rates.values()) < 0.5
    assert profile.host.threads >= 4


@pytest.mark.parametrize("name", sorted(MARKETED_GB))
def test_memory_is_what_a_driver_reports_of_what_is_sold(name: str) -> None:
    total = catalogued_device(name).memory.total_mib * MIB
    assert 0.90 * MARKETED_GB[name] * 1e9 <= total <= 1.08 * MARKETED_GB[name] * 1e9


@pytest.mark.parametrize("name", sorted(ASKED_FOR))
def test_bits_are_those_that_a_probe_of_the_device_would_offer(name: str) -> None:
    profile = catalogued_device(name).profile(name)
    flags = {"amx_bf16"} if name == "cpu-server" else set()
    assert profile.supported_bits == supported_bits(flags, profile.accelerator)


def test_a_t4_computes_at_its_fp32_rate_for_want_of_bf16() -> None:
    profile = catalogued_device("t4").profile("t4")
    float32 = profile.rate("float32")
    assert profile.supported_bits == (4, 8, 32)
    assert float32 is not None
    assert float32.flops_per_s == 8.1e12  # the data sheet's
    rates = device_rates(profile)
    assert rates.flops(4) == rates.flops_per_s["float32"]
    assert rates.flops(4) / USUAL_SLOWDOWN == pytest.approx(0.4 * 8.1e12)  # counted once, not here and there


def test_every_figure_names_its_source() -> None:
    for item in (files("fedpipe_profiles.catalog") / "devices").iterdir():
        tables = tomllib.loads(item.read_text())
        for part in ("memory", "bandwidth", "dense_tflops"):
            assert len(tables[part]["source"]) >= 8, (item.name, part)


@pytest.mark.parametrize(("written", "meant"), [("rtx4090", "rtx-4090"), ("A100-80", "a100-80"), ("h10", "h100")])
def test_a_misspelt_name_is_answered_with_the_one_meant(written: str, meant: str) -> None:
    with pytest.raises(UnknownDeviceError, match=f"did you mean '{meant}'"):
        catalogued_device(written)


@pytest.mark.parametrize("name", ["", "../devices/t4", "t4.toml", "\x1b[2J", "x" * 10_000])
def test_a_name_that_is_none_is_refused_in_few_harmless_words(name: str) -> None:
    with pytest.raises(UnknownDeviceError) as caught:
        catalogued_device(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_the_files_are_in_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the builder of wheels is not installed")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    held = {Path(name).stem for name in zipfile.ZipFile(wheel).namelist() if "/catalog/devices/" in name}
    assert held >= ASKED_FOR
