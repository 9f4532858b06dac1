"""The gradient sketch against the dense gradient of the same loss, on a real tiny model."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_models import HIDDEN, make_tiny_model
from trainer_support import LABELS, load

from fedpipe_agent.train.adapters import attached
from fedpipe_agent.train.base import Base
from fedpipe_agent.train.contribution import PROBE, orthonormal_rows, probe_factors, sketch
from fedpipe_agent.train.data import IGNORED, Encoded
from fedpipe_agent.train.step import set_evaluation
from fedpipe_profiles.contribution import Contribution

CLASSES = [Encoded(tuple(range(4 + i, 12 + 2 * i)), target=i % len(LABELS)) for i in range(6)]
TEXTS = [
    Encoded((2, *ids), labels=(IGNORED, IGNORED, *ids[1:]))
    for i in range(6)
    if (ids := tuple(range(4 + i, 10 + 3 * i)))
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder: Path = make_tiny_model(tmp_path_factory.mktemp("m") / "bert", "bert", dropout=0.1)
    return load(folder, "sequence-classification", 32)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load(make_tiny_model(tmp_path_factory.mktemp("m") / "llama", "llama"), "causal-lm", 32)


def probe(base: Base, groups: list[list[Encoded]], max_rank: int, seed: int = 0) -> Contribution:
    factors = {PROBE: probe_factors(base, max_rank, seed)}
    with attached(base, factors, scale=1.0, train=frozenset({PROBE}), train_head=False) as probes:
        return sketch(base, probes, groups, sequence_length=64)


def dense_squares(base: Base, examples: list[Encoded]) -> dict[str, torch.Tensor]:
    """Squared singular values of each weight's gradient of the mean over examples, falling; one example at a time."""
    set_evaluation(base)
    weights = {name: base.model.get_parameter(f"{name}.weight") for name in base.weights}
    for weight in weights.values():
        weight.requires_grad_(True)
    for example in examples:
        logits = base.model(input_ids=torch.tensor([example.ids])).logits[0]
        if example.labels is None:
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(example.target))
        else:
            loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(example.labels[1:]))
        torch.autograd.backward(loss / len(examples))
    squares = {}
    for name, weight in weights.items():
        assert weight.grad is not None
        squares[name] = torch.linalg.svdvals(weight.grad.double()) ** 2
        weight.requires_grad_(False)
        weight.grad = None
    return squares


@pytest.mark.parametrize("task", ["classification", "text"])
def test_a_full_probe_gives_the_gradients_singular_values(bert: Base, llama: Base, task: str) -> None:
    base, examples = (bert, CLASSES) if task == "classification" else (llama, TEXTS)
    found = probe(base, [examples[:2], examples[2:]], max_rank=HIDDEN)
    expected = dense_squares(base, examples)
    full = [name for name, weight in base.weights.items() if weight.d_in == HIDDEN]
    assert len(full) > len(base.weights) / 2
    for name in full:
        curve = torch.tensor(found.curves[name], dtype=torch.float64)
        unit = base.weights[name].parameters ** 0.5  # the norm of a change by 1 in every entry
        assert torch.allclose((curve / unit) ** 2, expected[name].cumsum(0), rtol=1e-4, atol=1e-15), name


def test_a_small_probe_is_unbiased(bert: Base) -> None:
    expected = {name: s.sum().item() for name, s in dense_squares(bert, CLASSES).items()}
    runs = [probe(bert, [CLASSES], max_rank=8, seed=seed) for seed in range(20)]
    for name, total in expected.items():
        size = bert.weights[name].parameters
        mean = sum(run.curves[name][-1] ** 2 / size for run in runs) / len(runs)
        assert 0.5 * total < mean < 1.7 * total, name


def test_curves_never_fall_and_are_concave(bert: Base) -> None:
    for name, curve in probe(bert, [CLASSES], max_rank=12).curves.items():
        assert len(curve) == 12, name
        rises = [b - a for a, b in zip((0.0, *curve), curve, strict=False)]
        assert all(rise >= 0.0 for rise in rises), name
        assert all(later <= earlier + 1e-12 * curve[-1] for earlier, later in pairwise(rises)), name


def test_curves_do_not_depend_on_how_examples_are_batched(llama: Base) -> None:
    whole = probe(llama, [TEXTS], max_rank=4)
    single = probe(llama, [[example] for example in TEXTS], max_rank=4)
    assert whole.examples == single.examples == len(TEXTS)
    for name in llama.weights:
        assert whole.curves[name] == pytest.approx(single.curves[name], rel=1e-4)


def test_probes_are_orthonormal_and_drawn_by_seed_and_name() -> None:
    rows = orthonormal_rows(4, 24, "7/layer.0")
    assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-6)
    assert torch.equal(rows, orthonormal_rows(4, 24, "7/layer.0"))
    assert not torch.allclose(rows, orthonormal_rows(4, 24, "7/layer.1"), atol=0.1)


def test_it_stops_when_time_is_up_and_says_how_many(bert: Base) -> None:
    factors = {PROBE: probe_factors(bert, 2, 0)}
    with attached(bert, factors, scale=1.0, train=frozenset({PROBE}), train_head=False) as probes:
        found = sketch(bert, probes, [[e] for e in CLASSES], sequence_length=64, may_go_on=lambda: False)
    assert found.examples == 1
