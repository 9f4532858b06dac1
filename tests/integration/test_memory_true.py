"""Predicted peaks against what the allocator really held, for a few steps of small models."""

from pathlib import Path

import pytest
import torch

from benchmarks.memory import GLOBAL_RANK
from benchmarks.memory_models import write_random
from benchmarks.memory_steps import Case, load, outcome
from fedpipe_agent.train.base import quiet_libraries
from fedpipe_agent.train.step import set_training
from fedpipe_profiles.device import Bits

WORST = 0.03


@pytest.mark.parametrize(
    ("name", "bits"), [("llama", 32), ("qwen3", 4), ("phi3", 16), ("opt", 8), ("distilbert", 4), ("gemma2", 32)]
)
def test_predicted_peaks_are_those_of_the_allocator(name: str, bits: Bits, tmp_path: Path) -> None:
    quiet_libraries()
    model = write_random(tmp_path, name, 0)
    base, shape = load(model, bits, 0)
    for checkpointing in (False, True):
        case = Case(bits, 8, 64, checkpointing, "half", GLOBAL_RANK, padded=bits == 8)
        found = outcome(model, base, shape, case, 0)
        assert abs(found.error) <= WORST, f"{case}: {found.error:+.1%}"


def test_checkpointing_drops_the_inputs_of_int8_layers(tmp_path: Path) -> None:
    # kept by the library they would stay for every layer, as if there were no checkpointing
    quiet_libraries()
    model = write_random(tmp_path, "llama", 0)
    base, shape = load(model, 8, 0)
    held = [
        outcome(model, base, shape, Case(8, 8, 128, on, "half", GLOBAL_RANK, padded=True), 0).true_bytes
        for on in (False, True)
    ]
    assert held[1] < held[0] / 2


def test_checkpointing_asks_for_no_gradient_before_the_first_adapter(tmp_path: Path) -> None:
    # transformers asks for one at the embeddings, whose norm and dropout would then be kept
    quiet_libraries()
    base, _ = load(write_random(tmp_path, "roberta", 0), 32, 0)
    set_training(base, checkpointing=True)
    embedded = base.model.get_input_embeddings()(torch.tensor([[1, 2, 3]]))
    assert not embedded.requires_grad
