"""Contradictions of a profile whose single figures are all allowed."""

from typing import Any

import pytest
from planning_fleet import profile as processor

from fedpipe_profiles.catalog.device_catalogue import catalogued_device
from fedpipe_profiles.device import MIB, Bits, DequantizationRate, DeviceProfile, Limits, OptimizerRate
from fedpipe_profiles.device_checks import limit_problems, profile_problems


def changed(part: str, **figures: Any) -> DeviceProfile:
    profile = catalogued_device("gb10").profile("d")
    return profile.model_copy(update={part: getattr(profile, part).model_copy(update=figures)})


def with_rates(*rates: tuple[str, float]) -> DeviceProfile:
    profile = processor(1 << 30)
    one = profile.matmul[0]
    return profile.model_copy(
        update={"matmul": tuple(one.model_copy(update={"dtype": d, "flops_per_s": f}) for d, f in rates)}
    )


def with_plain(*rates: tuple[Bits, float]) -> DeviceProfile:
    one = {"shape": (512, 512), "repeats": 3, "relative_spread": 0.1}
    found = tuple(DequantizationRate.model_validate(one | {"bits": bits, "values_per_s": rate}) for bits, rate in rates)
    return processor(1 << 30).model_copy(update={"dequantization": found})


def with_optimizer(rate: float) -> DeviceProfile:
    step = OptimizerRate(parameters=1 << 20, parameters_per_s=rate, repeats=3, relative_spread=0.1)
    return processor(1 << 30).model_copy(update={"optimizer": step})


def with_link(**figures: float) -> DeviceProfile:
    profile = processor(1 << 30)
    assert profile.link is not None
    return profile.model_copy(update={"link": profile.link.model_copy(update=figures)})


BAD = {
    "free > total": (changed("host", free_bytes=1 << 40), "host.free_bytes"),
    "gpu free > total": (changed("accelerator", free_bytes=1 << 40), "accelerator.free_bytes"),
    "no memory": (changed("host", total_bytes=1, free_bytes=1), "less than any such device"),
    "MiB for bytes": (changed("accelerator", total_bytes=15360, free_bytes=15000), "give bytes, not MiB"),
    "one memory, two sizes": (changed("host", total_bytes=64 << 30, free_bytes=1 << 30), "one memory has one size"),
    "no fp32": (with_rates(("bfloat16", 1e12)), "no float32"),
    "twice fp32": (with_rates(("float32", 1e12), ("float32", 2e12)), "2 rates of float32"),
    "1e24 FLOP/s": (with_rates(("float32", 1e24)), "1e\\+24"),
    "1 FLOP/s": (with_rates(("float32", 1.0)), "devices have"),
    "plain weights, 1 a second": (with_plain((4, 1.0)), "dequantization 4 bits: values_per_s is 1,"),
    "plain weights, 1e24 a second": (with_plain((8, 1e24)), "dequantization 8 bits: values_per_s is 1e\\+24"),
    "plain weights twice": (with_plain((4, 1e9), (4, 2e9)), "dequantization has 2 rates of 4 bits"),
    "optimizer, 1 a second": (with_optimizer(1.0), "optimizer.parameters_per_s is 1,"),
    "optimizer, 1e24 a second": (with_optimizer(1e24), "optimizer.parameters_per_s is 1e\\+24"),
    "uplink of 1 bit/s": (with_link(uplink_bps=1.0), "link.uplink_bps is 1,"),
    "downlink of 1e24 bit/s": (with_link(downlink_bps=1e24), "link.downlink_bps is 1e\\+24"),
    "latency of 1e9 s": (with_link(latency_s=1e9), "link.latency_s is 1e\\+09"),
    "memory of 9e15": (changed("host", total_bytes=9 * 10**15), "host.total_bytes is 9000000000000000, more than"),
    "bits twice": (processor(1 << 30, bits=(4, 4)), "supported_bits has 4 2 times"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_contradiction_is_told_with_what_to_do(name: str) -> None:
    profile, words = BAD[name]
    problems = profile_problems(profile)
    assert len(problems) >= 1
    with pytest.raises(AssertionError, match=words):
        raise AssertionError("; ".join(problems))


def test_a_16_gb_card_with_15360_mib_is_normal_and_a_full_one_too() -> None:
    t4 = catalogued_device("t4").profile("t")
    assert t4.accelerator is not None
    assert t4.accelerator.total_bytes == 15360 * MIB
    full = t4.model_copy(update={"accelerator": t4.accelerator.model_copy(update={"free_bytes": 0})})
    assert profile_problems(t4) == profile_problems(full) == ()


def test_plausible_rates_of_everything_are_no_contradiction() -> None:
    for profile in (with_plain((4, 1e8), (8, 3e12)), with_optimizer(5e8), with_link(uplink_bps=64e3, latency_s=2.0)):
        assert profile_problems(profile) == ()


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"memory_bytes": 10**15}, "limits.memory_bytes is 1000000000000000 and host.total_bytes is 17179869184"),
        ({"threads": 1000}, "limits.threads is 1000 and host.threads is 2"),
        ({"uplink_bps": 1.0}, "limits.uplink_bps is 1,"),
    ],
)
def test_no_more_is_lent_than_there_is(figures: dict[str, Any], words: str) -> None:
    whole = processor(1 << 34).model_copy(update={"limits": Limits(memory_bytes=1 << 34, threads=2, uplink_bps=1e6)})
    assert limit_problems(whole) == ()
    (problem,) = limit_problems(whole.model_copy(update={"limits": Limits(**figures)}))
    assert words in problem
