"""Loading at fewer bits needs less room, under the limit that the kernel holds a process to; in processes of their own.

What they print are bytes of VmData, of which RLIMIT_DATA is the limit.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import make_gpt2

from fedpipe_agent.trainer_process import trainer_environment

WIDTH, LAYERS = 512, 4
BASE_BYTES = 4 * 12 * LAYERS * WIDTH**2
"""Of the weights at 32 bits."""

PLENTY = 1 << 40
"""Bytes lent, so that the allocator is set for speed, which is where it leaves holes."""

LOAD = """
import sys
from pathlib import Path
import fedpipe_agent.train.worker
from fedpipe_agent.train.base import load_base, load_tokenizer, quiet_libraries
from fedpipe_agent.train.memory import HostMeter, status_bytes
from fedpipe_agent.train.shape import read_config, skeleton

folder = Path(sys.argv[1])
quiet_libraries()
skeleton(read_config(folder, "causal-lm", ()), "causal-lm")
load_tokenizer(folder)
meter = HostMeter(1 << 40)
for bits, room_bytes in (map(int, asked.split(":")) for asked in sys.argv[2:]):
    meter.relimit(meter.context_bytes + room_bytes)
    before = status_bytes("VmData")
    base = load_base(folder, "causal-lm", (), bits=bits, device="cpu", seed=0, meter=meter)
    print(status_bytes("VmData") - before, flush=True)
    del base
    meter.release()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gpt2(tmp_path_factory.mktemp("loading") / "model", WIDTH, LAYERS)


def held(model: Path, *asked: tuple[int, float]) -> list[float]:
    """What is held at some bits with some room, loaded one after another in one process; in parts of BASE_BYTES."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(model), *(f"{bits}:{int(room * BASE_BYTES)}" for bits, room in asked)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=trainer_environment(1, PLENTY, {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DEACTIVATE_ASYNC_LOAD": "1"}),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [int(line) / BASE_BYTES for line in done.stdout.split()]


@pytest.mark.timeout(60)
def test_fewer_bits_are_loaded_in_a_part_of_the_room_that_the_base_would_take(model: Path) -> None:
    # beside what stays is the largest tensor, in all the forms that it takes on its way
    at_8, at_4, at_32, afterwards = held(model, (8, 0.75), (4, 0.75), (32, 1.25), (8, 0.75))
    assert at_32 >= 1
    assert 0.25 < at_8 < 0.4
    assert 0.125 < at_4 < 0.25
    assert afterwards < 0.4
