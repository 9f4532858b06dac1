"""A comparison that was broken off goes on where it stopped, and a best learning rate has worse ones on both sides."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.contribution import Judged, table
from benchmarks.contribution_rows import HIGHEST_RATE, LOWEST_RATE, Key, Row, Rows, best_rate, figures

KEY = Key("e2e", "random", 0.25, 0.02, 0, 10, 8)


class Runner:
    def __init__(self) -> None:
        self.asked: list[Key] = []

    def __call__(self, key: Key) -> Row:
        self.asked.append(key)
        return Row(key, math.inf if key.seed == 9 else 1.0 + key.seed, None, 12, 0.5, {"w": 3})


def test_what_was_done_is_not_done_again(tmp_path: Path) -> None:
    path, runner = tmp_path / "rows.jsonl", Runner()
    keys = [replace(KEY, seed=seed) for seed in (0, 1, 9)]
    first = Rows(path, runner, lambda _: None)
    done = [first(key) for key in keys]
    again = Rows(path, runner, lambda _: None)
    assert [again(key) for key in keys] == done
    assert runner.asked == keys
    assert again(replace(KEY, steps=11)).key.steps == 11
    assert len(runner.asked) == 4


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_line_that_was_cut_off_is_done_again_and_costs_no_other(tmp_path: Path, cut: int) -> None:
    path, runner = tmp_path / "rows.jsonl", Runner()
    keys = [replace(KEY, seed=seed) for seed in (0, 1)]
    rows = Rows(path, runner, lambda _: None)
    done = [rows(key) for key in keys]
    path.write_text(path.read_text()[:-cut])
    for _ in range(2):
        rows = Rows(path, runner, lambda _: None)
        assert [rows(key) for key in keys] == done
    assert runner.asked.count(keys[0]) == 1
    assert runner.asked.count(keys[1]) <= 2


def test_lines_of_something_else_are_passed_over(tmp_path: Path) -> None:
    path, runner = tmp_path / "rows.jsonl", Runner()
    path.write_text('[]\n{"loss": 1}\n{"key": {"setting": 1}, "loss": 2}\nnull\n\n', encoding="utf-8")
    assert Rows(path, runner, lambda _: None)(KEY).loss == 1.0
    assert runner.asked == [KEY]


@given(best=st.integers(-20, 20), start=st.floats(1e-3, 0.3))
def test_the_best_rate_is_found_wherever_it_lies(best: int, start: float) -> None:
    """On a valley whose lowest point is `best` doublings away, or at the end of what is tried."""
    asked: list[float] = []

    def loss(rate: float) -> float:
        asked.append(rate)
        return abs(math.log2(rate / start) - best)

    found = best_rate(loss, start)
    assert len(asked) == len(set(asked))
    assert LOWEST_RATE <= found <= HIGHEST_RATE
    target = start * 2.0**best
    if LOWEST_RATE <= target <= HIGHEST_RATE:
        assert found == target
    assert {found / 2, found * 2} & set(asked) or not LOWEST_RATE <= target <= HIGHEST_RATE


def test_trainings_that_diverged_lose_against_any_other() -> None:
    assert best_rate(lambda rate: math.inf if rate > 0.01 else rate, 0.02) < 0.01


def test_differences_are_taken_seed_by_seed() -> None:
    # seeds differ by 10, the ways by 0.1 and 0.3: the standard error of two numbers is half of their distance
    found = figures([10.1, 20.3], [10.0, 20.0])
    assert found.behind == pytest.approx(0.2)
    assert found.behind_error == pytest.approx(0.1)
    assert found.error == pytest.approx(5.1)
    assert figures([1.0], [1.0]).error == math.inf


def test_the_table_says_how_far_each_is_above_all_linear() -> None:
    def judged(way: str, *losses: float) -> Judged:
        return Judged(way, 0.25, 0.02, tuple(Row(replace(KEY, way=way), loss, 0.5) for loss in losses))

    lines = table([judged("random", 2.5, 3.5), judged("all-linear", 2.0, 3.0)]).splitlines()
    assert "3.0000 ± 0.5000" in lines[1]
    assert "+0.5000 ± 0.0000" in lines[1]
    assert "0.500" in lines[1]
    alone = table([judged("random", 2.5, 3.5)]).splitlines()
    assert "+" not in alone[1]
