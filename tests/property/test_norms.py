"""Norms and inner products of changes, from factors, against dense matrices."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from round_problems import HEAD, SHAPE, SIZES, dense_change, read, write_global, write_update

from fedpipe_coordinator.aggregation.change_averaging import AggregationError
from fedpipe_coordinator.aggregation.norms import measure
from fedpipe_coordinator.aggregation.round_files import UpdateFile
from fedpipe_wire.tensors import a_name, b_name, head_name, write_tensors

SCALE = 1.7


def _vector(global_path: Path, update: UpdateFile) -> np.ndarray:
    """A whole change as one long vector, weights by the adapter's scale."""
    found = dense_change(global_path, update)
    parts = [found[head_name(HEAD)].ravel(), *(SCALE * found[weight].ravel() for weight in SIZES if weight in found)]
    return np.concatenate(parts)


def _round(folder: Path) -> tuple[Path, list[UpdateFile]]:
    """Four updates of unlike size and rank, one of them late and one of them of one weight only."""
    start = write_global(folder, np.random.default_rng(1))
    former = write_global(folder, np.random.default_rng(2), "former")
    updates = [write_update(folder, start, f"silo-{n}", n, times=10.0 ** (n - 2), rank=1 + n) for n in range(3)]
    (folder / "late").mkdir()
    updates.append(replace(write_update(folder / "late", former, "silo-1", 9), base=former, weight=0.5))
    return start, updates


def test_norms_and_products_are_those_of_the_dense_changes(tmp_path: Path) -> None:
    start, updates = _round(tmp_path)
    found = measure(start, updates, shape=SHAPE, scale=SCALE, products=True)
    assert found.places == tuple(sorted(update.place for update in updates))
    ordered = sorted(updates, key=lambda update: update.place)
    vectors = np.stack([_vector(start, update) for update in ordered])
    assert found.products is not None
    np.testing.assert_allclose(found.products, vectors @ vectors.T, rtol=1e-9, atol=1e-12)
    for update, vector in zip(ordered, vectors, strict=True):
        assert found.whole[update.place] == pytest.approx(float(np.linalg.norm(vector)), rel=1e-9)
        for tensor, moved in dense_change(start, update).items():
            norm = float(np.linalg.norm(moved)) * (SCALE if tensor in SIZES else 1.0)
            assert found.norms[tensor][update.place] == pytest.approx(norm, rel=1e-9)


def test_measures_have_the_same_bits_in_any_order_and_with_any_number_of_threads(tmp_path: Path) -> None:
    start, updates = _round(tmp_path)
    one = measure(start, updates, shape=SHAPE, products=True, threads=1)
    two = measure(start, updates[::-1], shape=SHAPE, products=True, threads=3)
    without = measure(start, updates, shape=SHAPE)
    assert (one.norms, one.whole) == (two.norms, two.whole) == (without.norms, without.whole)
    assert one.products is not None
    assert two.products is not None
    assert one.products.tobytes() == two.products.tobytes()
    assert without.products is None


def test_who_changed_nothing_has_a_norm_of_exactly_0(tmp_path: Path) -> None:
    start = write_global(tmp_path, np.random.default_rng(1))
    still = write_update(tmp_path, start, "still", 1, times=0.0)
    found = measure(start, [still], shape=SHAPE)
    assert set(found.whole.values()) == {0.0}


def test_a_small_change_of_large_factors_keeps_its_digits(tmp_path: Path) -> None:
    """One entry of B moves by one unit in the last place: the difference of the two products would have none left."""
    start = write_global(tmp_path, np.random.default_rng(1))
    update = write_update(tmp_path, start, "a", 1, times=0.0)
    tensors = read(update.path)
    b = tensors[b_name("q")]
    b[0, 0] = np.nextafter(b[0, 0], np.float32(9))
    write_tensors(update.path, tensors)
    step = float(b[0, 0]) - float(read(start)[b_name("q")][0, 0])
    wanted = abs(step) * float(np.linalg.norm(tensors[a_name("q")][0].astype(np.float64)))
    assert 0 < wanted < 1e-7
    assert measure(start, [update], shape=SHAPE).norms["q"]["a", False] == pytest.approx(wanted, rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(exponent=st.floats(0, 35), seed=st.integers(0, 1000))
def test_components_that_cancel_each_other_hide_nothing(
    tmp_path_factory: pytest.TempPathFactory, exponent: float, seed: int
) -> None:
    """Two huge components whose sum is small: rounding hides the sum, and may not make a large change look small."""
    folder = tmp_path_factory.mktemp("round")
    start = write_global(folder, np.random.default_rng(1))
    update = write_update(folder, start, "a", seed, times=0.0)
    tensors = read(update.path)
    b, a = tensors[b_name("q")], tensors[a_name("q")]
    a[1] = a[0]
    huge = (10.0**exponent * np.random.default_rng(seed).standard_normal(len(b))).astype(np.float32)
    b[:, 0], b[:, 1] = huge, -huge
    write_tensors(update.path, tensors)
    norm = measure(start, [update], shape=SHAPE).norms["q"]["a", False]
    # what an aggregation in float64 may make of such factors is its rounding
    rounding = np.finfo(np.float64).eps * float(np.linalg.norm(huge.astype(np.float64))) * float(np.linalg.norm(a[0]))
    assert norm >= rounding
    assert norm >= (1 - 1e-9) * np.linalg.norm(dense_change(start, update)["q"])


def test_the_largest_values_of_float32_are_measured_and_not_infinite(tmp_path: Path) -> None:
    start = write_global(tmp_path, np.random.default_rng(1))
    update = write_update(tmp_path, start, "a", 1)
    write_tensors(update.path, {name: np.full_like(values, 3e38) for name, values in read(update.path).items()})
    found = measure(start, [update], shape=SHAPE, products=True)
    assert all(np.isfinite(norm) and norm > 1e70 for norm in found.norms["q"].values())
    assert np.isfinite(list(found.whole.values())).all()
    assert found.products is not None
    assert np.isfinite(found.products).all()


def test_what_cannot_be_measured_is_an_error_with_the_weights_name(tmp_path: Path) -> None:
    start, updates = _round(tmp_path)
    with pytest.raises(AggregationError, match="0 updates"):
        measure(start, [], shape=SHAPE)
    wrong = replace(updates[0], components={"q": (0,), "up": (7,)})
    with pytest.raises(AggregationError, match=r"up: silo-0: components \(7,\) are not distinct numbers from 0 to 3"):
        measure(start, [wrong], shape=SHAPE)
