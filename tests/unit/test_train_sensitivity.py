"""The paper's reading of contribution, beside peft's own AdaLoRA, and what holds of its curves on a real tiny model."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.tuners.adalora.layer import RankAllocator
from tiny_models import make_tiny_model
from torch import nn
from trainer_support import LABELS, load

from fedpipe_agent.train.base import Base
from fedpipe_agent.train.contribution_methods import METHODS, measure_contribution
from fedpipe_agent.train.data import Encoded
from fedpipe_agent.train.sensitivity import SMOOTHING, ScaledColumns, Sensitivity, curve, importance
from fedpipe_profiles.contribution import ContributionMethod

CLASSES = [Encoded(tuple(range(4 + i, 12 + 2 * i)), target=i % len(LABELS)) for i in range(6)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder: Path = make_tiny_model(tmp_path_factory.mktemp("m") / "bert", "bert", dropout=0.1)
    return load(folder, "sequence-classification", 32)


def measure(base: Base, groups: list[list[Encoded]], method: ContributionMethod = "sensitivity", **more: Any) -> Any:
    return measure_contribution(base, method, groups, max_rank=4, seed=3, sequence_length=64, **more)


class Layer(nn.Module):
    """A linear layer in SVD form, with the names that peft's allocator looks for."""

    def __init__(self, d_out: int, d_in: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.ParameterDict({"x": nn.Parameter(torch.randn(rank, d_in))})
        self.lora_E = nn.ParameterDict({"x": nn.Parameter(torch.randn(rank, 1))})
        self.lora_B = nn.ParameterDict({"x": nn.Parameter(torch.randn(d_out, rank))})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down: torch.Tensor = x @ (self.lora_A["x"] * self.lora_E["x"]).T
        up: torch.Tensor = down @ self.lora_B["x"].T
        return up


def test_scores_are_those_of_pefts_adalora() -> None:
    torch.manual_seed(0)
    d_out, d_in, rank, keep = 6, 10, 5, 2
    layer = Layer(d_out, d_in, rank)
    settings = SimpleNamespace(beta1=SMOOTHING, beta2=SMOOTHING, target_r=keep)
    allocator = RankAllocator(layer, settings, "x")
    parameters = [layer.lora_B["x"], layer.lora_E["x"], layer.lora_A["x"]]
    ours = [Sensitivity(p) for p in parameters]
    for _ in range(5):
        layer.zero_grad()
        torch.autograd.backward((layer(torch.randn(3, d_in)) ** 2).mean())
        allocator.update_ipt(layer)
        for each in ours:
            each.observe()
        with torch.no_grad():
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.sub_(0.01 * parameter.grad)
    p, scale, q = (each.score for each in ours)
    found = importance(p, scale.flatten(), q)
    kept = allocator.mask_to_budget(layer, keep)["lora_E.x"]
    assert sorted(found.argsort(descending=True)[:keep].tolist()) == [i for i, keeps in enumerate(kept) if keeps]
    expected = torch.stack([allocator._element_score(f"lora_{name}.x").mean() for name in "BA"])
    assert torch.allclose(torch.stack([p.mean(), q.mean()]).float(), expected, rtol=1e-5)


def test_the_svd_form_is_p_lambda_q() -> None:
    columns = ScaledColumns(torch.randn(6, 3))
    columns.scale.data = torch.tensor([2.0, 0.0, -1.0])
    x = torch.randn(5, 3)
    assert torch.allclose(columns(x), x @ torch.diag(columns.scale) @ columns.p.T, atol=1e-6)


def test_a_curve_cumulates_the_largest_first() -> None:
    assert curve(torch.tensor([1.0, 4.0, 2.0])) == (4.0, 6.0, 7.0)


def test_curves_rise_are_concave_and_name_their_method(bert: Base) -> None:
    found = measure(bert, [CLASSES[:3], CLASSES[3:]])
    assert (found.method, found.examples) == ("sensitivity", len(CLASSES))
    assert found.curves.keys() == bert.weights.keys()
    for name, points in found.curves.items():
        rises = [b - a for a, b in pairwise((0.0, *points))]
        assert points[-1] > 0, name
        assert all(rise >= 0 for rise in rises), name
        assert all(later <= earlier + 1e-12 * points[-1] for earlier, later in pairwise(rises)), name


@pytest.mark.parametrize("method", METHODS)
def test_a_method_leaves_the_base_as_it_was_and_repeats_itself(bert: Base, method: ContributionMethod) -> None:
    before = {name: p.detach().clone() for name, p in bert.model.named_parameters()}
    assert measure(bert, [CLASSES], method) == measure(bert, [CLASSES], method)
    after = dict(bert.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_weights_that_decide_nothing_are_worth_nothing(bert: Base) -> None:
    classifier = bert.head["classifier.weight"]
    kept = classifier.detach().clone()
    try:
        with torch.no_grad():
            classifier.zero_()
        cut = measure(bert, [CLASSES, CLASSES])
    finally:
        with torch.no_grad():
            classifier.copy_(kept)
    assert all(points[-1] == 0.0 for points in cut.curves.values())
