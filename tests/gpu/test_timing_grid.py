"""Real rounds on a GPU under plans that change, each predicted before it is measured; the table is printed."""

import time
from pathlib import Path

import pytest
import torch

from benchmarks.timing import FIRST, table
from benchmarks.timing_rounds import Agent, settings
from fedpipe_agent.probe import probe_device
from fedpipe_profiles.device import Limits

DATA = Path("../shared/data")
OFF = 3.0
"""By which factor a prediction may be off here: the GPU may be shared, and models this small leave it idle."""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there"),
]


def test_the_rates_of_every_bit_width_are_measured() -> None:
    profile, _ = probe_device("gpu", limits=Limits(), device="cuda")
    assert {rate.bits for rate in profile.dequantization} == {4, 8} & set(profile.supported_bits)
    assert profile.optimizer is not None


@pytest.mark.parametrize("model", ["minilm", "tinystories"])
def test_rounds_are_predicted_from_those_before(model: str, tmp_path: Path) -> None:
    profile, _ = probe_device("gpu", limits=Limits(), device="cuda")
    agent = Agent(model, DATA, profile, tmp_path / "agent", time.monotonic, seed=0)
    cases = list(agent.rounds(settings(profile.supported_bits, 9, seed=0)))
    print(table(cases, profile.accelerator.name if profile.accelerator else ""))  # noqa: T201 - the grid's result
    for case in cases:
        if case.round >= FIRST and case.known_bits:
            assert 1 / OFF < case.predicted.step_s / case.trained.measurement.step_s < OFF
