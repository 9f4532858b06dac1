"""The search against trying everything: several memory rows, several deadlines, and a least share of examples."""

import itertools

import numpy as np
import pytest
from planning_by_hand import best_of_every_choice, crooked, every_choice, random_budget, random_device
from planning_fleet import tiny_job

from fedpipe_profiles.planning.relax import choose, limits, relax
from fedpipe_profiles.planning.search import best_choice
from fedpipe_profiles.planning.table import look


@pytest.mark.parametrize("seed", range(60))
def test_the_choice_is_the_best_there_is(seed: int) -> None:
    random = np.random.default_rng(seed)
    job, wanted = tiny_job(seed), int(random.integers(1, 14))
    least = int(random.integers(0, wanted + 1)) if seed % 2 else 0
    prepared, budget = random_device(random, wanted=wanted, least=least), random_budget(random)
    best = best_of_every_choice(job, prepared, budget)
    exact = best_choice(job.increments, prepared, budget, gap=0.0, solves=500)
    assert (exact.objective if exact else 0.0) == pytest.approx(best, rel=1e-9)
    quick = best_choice(job.increments, prepared, budget, solves=0)
    assert (quick is None) == (exact is None) == (best == 0)
    if quick is None or exact is None:
        return
    assert quick.objective <= best * (1 + 1e-9) <= quick.bound * (1 + 2e-9)
    assert exact.bound == pytest.approx(best, rel=1e-6)
    for choice in (exact, quick):
        objectives = [
            objective for objective, examples in every_choice(job, prepared, budget) if examples == choice.examples
        ]
        assert any(objective == pytest.approx(choice.objective, rel=1e-9) for objective in objectives)


def test_the_drawn_problems_are_of_every_kind() -> None:
    kinds = set()
    for seed in range(120):
        random = np.random.default_rng(seed)
        job, wanted = tiny_job(seed), int(random.integers(1, 14))
        least = int(random.integers(0, wanted + 1)) if seed % 2 else 0
        prepared, budget = random_device(random, wanted=wanted, least=least), random_budget(random)
        found = list(every_choice(job, prepared, budget))
        free = max((objective for objective, _ in found), default=0.0)
        best = best_of_every_choice(job, prepared, budget)
        kinds.add("nothing" if not best else "bent" if best < free else "met" if least else "free")
    assert kinds == {"nothing", "bent", "met", "free"}


@pytest.mark.parametrize("seed", range(30))
def test_one_look_at_many_times_is_below_the_best_of_each_and_never_falls(seed: int) -> None:
    random = np.random.default_rng(seed)
    job = tiny_job(seed)
    prepared, budget = random_device(random, wanted=9, least=0), random_budget(random)
    times = [2.0, 4.0, 8.0, 16.0, 1e6]
    found = look(job.increments.frontier, prepared.table, budget, times, 9)
    reached = [each.objective if each else 0.0 for each in found]
    assert reached == sorted(reached)
    for time_s, objective in zip(times, reached, strict=True):
        assert objective <= best_of_every_choice(
            job, prepared, type(budget)(budget.memory_bytes, time_s, budget.up_bytes)
        ) * (1 + 1e-9)


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_the_relaxed_problem_bounds_every_choice_of_increments(seed: int, *, bent: bool) -> None:
    random = np.random.default_rng(seed)
    items = tiny_job(seed).increments
    if bent:
        items = crooked(items, random)
    count = len(items.gains)
    rows = limits(random.uniform(0, 1, 3), random.uniform(0, 40, 3), random.uniform(20, 600, 3))
    assert rows is not None
    best = 0.0
    for bits in itertools.product((False, True), repeat=count):
        chosen = np.array(bits)
        ordered = all(chosen[b] or b < 0 or not chosen[k] for k, b in enumerate(items.previous))
        used = rows.a * (items.parameters @ chosen) + rows.c * (items.ranks @ chosen)
        if ordered and (used <= rows.budgets).all():
            best = max(best, float(items.gains @ chosen))
    relaxed = relax(items.frontier, rows)
    assert relaxed.bound >= best * (1 - 1e-12)
    alone = min(items.frontier.direction(a, c).bound(b) for a, c, b in zip(rows.a, rows.c, rows.budgets, strict=True))
    assert relaxed.bound <= alone * (1 + 1e-12)
    chosen = choose(items.frontier, rows, relaxed.direction)
    assert (rows.a * (items.parameters @ chosen) + rows.c * (items.ranks @ chosen) <= rows.budgets * (1 + 1e-12)).all()
    assert all(chosen[b] or b < 0 or not chosen[k] for k, b in enumerate(items.previous))
    assert items.gains @ chosen <= best * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(12))
def test_curves_that_are_not_concave_are_still_planned_best(seed: int) -> None:
    random = np.random.default_rng(seed)
    job = tiny_job(seed)
    gains = {name: random.permutation(np.diff((0, *curve))) for name, curve in job.curves.items()}
    curves = {name: tuple(np.cumsum(found).tolist()) for name, found in gains.items()}
    job = type(job)(**{name: getattr(job, name) for name in job.__dataclass_fields__} | {"curves": curves})
    prepared, budget = random_device(random, wanted=6, least=0), random_budget(random)
    exact = best_choice(job.increments, prepared, budget, gap=0.0, solves=500)
    best = best_of_every_choice(job, prepared, budget)
    assert (exact.objective if exact else 0.0) == pytest.approx(best, rel=1e-9)
    assert exact is None or exact.bound >= best * (1 - 1e-9)
