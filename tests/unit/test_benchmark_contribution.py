"""The comparison of ways to choose weights keeps to its budget, and without its data it says so."""

from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planning_fleet import falling_curves, tiny_model

from benchmarks.contribution import DATA, EXIT_NO_DATA, main
from benchmarks.contribution_bench import LADDER, at_random, even_steps, evenly, within_budget
from benchmarks.contribution_data import SETTINGS, read_material
from fedpipe_agent.train.adapters import Factors
from fedpipe_agent.train.contribution import orthonormal_rows
from fedpipe_data.examples import ClassificationExample

SHAPE = tiny_model()
WIDTHS = {weight.name: weight.d_in + weight.d_out for weight in SHAPE.weights}


def spent(ranks: dict[str, int]) -> int:
    return sum(rank * WIDTHS[name] for name, rank in ranks.items())


@given(st.integers(16, 2000), st.integers(0, 100))
def test_every_way_spends_the_budget_and_no_more(budget: int, seed: int) -> None:
    for ranks in (evenly(SHAPE.weights, budget), at_random(SHAPE.weights, budget, seed)):
        assert budget - min(WIDTHS.values()) < spent(ranks) <= budget
    assert spent(within_budget(SHAPE, falling_curves(SHAPE, 4, seed), budget)) <= budget


@given(st.integers(80, 2000))
def test_even_ranks_differ_by_one_step_at_most_while_all_weights_fit(budget: int) -> None:
    ranks = evenly(SHAPE.weights, budget // sum(WIDTHS.values()) * sum(WIDTHS.values()))
    assert len(set(ranks.values())) <= 1


@pytest.mark.parametrize(("budget", "seed"), list(product((60, 130, 300), (0, 1))))
def test_the_chosen_ranks_have_the_most_contribution_of_all_that_fit(budget: int, seed: int) -> None:
    curves = falling_curves(SHAPE, 4, seed)
    ladder = [0, *(rank for rank in LADDER if rank <= 4)]

    def captured(ranks: dict[str, int]) -> float:
        return sum(curves[name][rank - 1] for name, rank in ranks.items() if rank)

    combinations = (dict(zip(WIDTHS, ranks, strict=True)) for ranks in product(ladder, repeat=len(WIDTHS)))
    best = max(captured(ranks) for ranks in combinations if spent(ranks) <= budget)
    np.testing.assert_allclose(captured(within_budget(SHAPE, curves, budget)), best, rtol=1e-9)


def test_without_its_data_it_says_what_is_missing_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path)]) == EXIT_NO_DATA
    assert f"{tmp_path} has no models/TinyStories-656K" in capsys.readouterr().err


def test_both_parts_of_a_classification_have_the_same_few_classes() -> None:
    setting = SETTINGS["banking"]
    if not (DATA / setting.rows).exists():
        pytest.skip("needs banking77 below ../shared/data")
    if find_spec(setting.model) is None:
        pytest.skip("needs the model of the demo's extra")
    found = read_material(setting, DATA)
    assert len(found.labels) == setting.classes
    for part in (found.train, found.held_out):
        assert {example.label for example in part if isinstance(example, ClassificationExample)} == set(found.labels)


def test_a_first_step_of_adam_moves_outputs_alike_at_all_ranks() -> None:
    width, generator = 512, torch.Generator().manual_seed(3)
    x, wanted = (torch.randn(shape, generator=generator) for shape in ((256, width), (256, 64)))
    plain = {
        str(rank): Factors(orthonormal_rows(rank, width, f"rows/{rank}"), torch.zeros(64, rank)) for rank in (1, 4, 16)
    }

    def moved(factors: dict[str, Factors]) -> list[float]:
        """Root mean square of the outputs after a step towards `wanted`."""
        found = []
        for a, b in factors.values():
            parameter = torch.nn.Parameter(b.clone())
            torch.autograd.backward(((x @ a.T @ parameter.T - wanted) ** 2).mean())
            torch.optim.Adam([parameter], lr=1e-2).step()
            found.append(float((x @ a.T @ parameter.T).detach().square().mean().sqrt()))
        return found

    assert moved(plain)[2] == pytest.approx(4 * moved(plain)[0], rel=0.1)
    assert moved(even_steps(plain, 2.0)) == pytest.approx([moved(plain)[0] * 2**0.5] * 3, rel=0.1)
