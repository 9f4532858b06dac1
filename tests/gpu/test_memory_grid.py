"""The memory grid on a GPU: predicted peaks beside the allocator's, the process beside the driver's figure."""

import os

import pynvml
import pytest
import torch

from benchmarks.memory import run, summary, table
from benchmarks.memory_models import RANDOM
from fedpipe_agent.gpu import used_by
from fedpipe_agent.train.memory import CudaMeter
from fedpipe_profiles.device import MIB

LEAST_CASES = 200

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]


@pytest.mark.timeout(1800)
def test_no_peak_is_above_its_prediction_with_the_margin() -> None:
    found = run(0, ["MiniLM", "TinyStories-656K", "stories260k", *RANDOM], "cuda")
    print("\n".join(table(found)))  # noqa: T201 - the grid's result
    figures = summary(found, "cuda")
    print(figures)  # noqa: T201 - same
    assert figures["cases"] >= LEAST_CASES
    assert figures["too_low_with_margin"] == 0
    assert figures["mean_abs_error"] <= 0.03
    assert max(figures["worst_under"], figures["worst_over"]) <= 0.08


def test_the_driver_counts_what_the_meter_calls_context_and_the_allocator_holds() -> None:
    meter = CudaMeter(torch.cuda.mem_get_info()[1])
    held = torch.empty(512 * MIB, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    driver = used_by(pynvml, os.environ, os.getpid())
    if driver is None:
        pytest.skip("the driver does not tell what this process holds: its process ids are another container's")
    assert driver == pytest.approx(meter.context_bytes + torch.cuda.memory_reserved(), rel=0.05)
    del held
