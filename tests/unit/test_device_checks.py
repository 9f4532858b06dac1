"""Contradictions of a profile whose single figures are all allowed."""

from typing import Any

import pytest
from planning_fleet import profile as processor

from fedpipe_profiles.catalog.device_catalogue import catalogued_device
from fedpipe_profiles.device import MIB, DeviceProfile
from fedpipe_profiles.device_checks import profile_problems


def changed(part: str, **figures: Any) -> DeviceProfile:
    profile = catalogued_device("gb10").profile("d")
    return profile.model_copy(update={part: getattr(profile, part).model_copy(update=figures)})


def with_rates(*rates: tuple[str, float]) -> DeviceProfile:
    profile = processor(1 << 30)
    one = profile.matmul[0]
    return profile.model_copy(
        update={"matmul": tuple(one.model_copy(update={"dtype": d, "flops_per_s": f}) for d, f in rates)}
    )


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
