"""The attacks that the benchmark makes are what it says, and without its data it says so."""

from pathlib import Path

import numpy as np
import pytest
from round_problems import HEAD, SIZES, read, write_global, write_update
from run_support import plan

from benchmarks.attack_kinds import ATTACKS, forge_update
from benchmarks.attacks import EXIT_NO_DATA, main
from fedpipe_wire.tensors import a_name, b_name, head_name


def _forged(folder: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What was, what was trained, and what is sent."""
    start = write_global(folder, np.random.default_rng(1))
    honest = write_update(folder, start, "silo-0", 3)
    attack = ATTACKS[name]
    assert attack is not None
    asked = plan("silo-0", 1, components=honest.components)
    forge_update(attack, asked, start, honest.path, folder / "forged", 5)
    return read(start), read(honest.path), read(folder / "forged")


@pytest.mark.parametrize(("name", "times"), [("sign-flipped", -1.0), ("scaled x100", 100.0), ("flipped x5", -5.0)])
def test_a_change_is_multiplied(tmp_path: Path, name: str, times: float) -> None:
    before, honest, sent = _forged(tmp_path, name)
    for weight in SIZES:
        b = b_name(weight)
        np.testing.assert_allclose(sent[b] - before[b], times * (honest[b] - before[b]), rtol=1e-4, atol=1e-5)
    assert {name: each.shape for name, each in sent.items()} == {name: each.shape for name, each in honest.items()}


def test_a_flip_mirrors_both_factors_and_noise_has_five_times_the_norm(tmp_path: Path) -> None:
    before, honest, sent = _forged(tmp_path, "sign-flipped")
    np.testing.assert_allclose(sent[a_name("q")] + honest[a_name("q")], 2 * before[a_name("q")], atol=1e-6)
    before, honest, sent = _forged(tmp_path, "random x5")
    moved = np.linalg.norm(sent[b_name("q")] - before[b_name("q")])
    assert moved == pytest.approx(5 * np.linalg.norm(honest[b_name("q")] - before[b_name("q")]), rel=1e-4)
    np.testing.assert_array_equal(sent[head_name(HEAD)], honest[head_name(HEAD)])


def test_without_its_data_it_says_what_is_missing_and_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path)]) == EXIT_NO_DATA
    assert f"{tmp_path} has no models/TinyStories-656K" in capsys.readouterr().err
