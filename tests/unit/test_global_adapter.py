"""The adapter of round 1: the base model unchanged, whatever the order of its weights."""

from pathlib import Path

import numpy as np
import pytest

from fedpipe_coordinator.aggregation.global_adapter import initial_adapter
from fedpipe_profiles.model import ModelShape, ParameterShape, WeightShape
from fedpipe_wire.tensors import TensorError, TensorFile, adapter_spec, check_tensors

NAMES = ["h.0.up", "h.0.gate", "h.0.down", "h.0.narrow"]
SHAPE = ModelShape(
    model_type="tiny", layers=1, hidden_size=32, intermediate_size=64, heads=2, vocabulary_size=10,
    weights=(
        WeightShape(name="h.0.up", d_out=64, d_in=32),
        WeightShape(name="h.0.gate", d_out=64, d_in=32),
        WeightShape(name="h.0.down", d_out=32, d_in=64),
        WeightShape(name="h.0.narrow", d_out=32, d_in=3),
    ),
    other_parameters=0,
    head=(
        ParameterShape(name="classifier.weight", shape=(30, 64)),
        ParameterShape(name="classifier.bias", shape=(30,)),
        ParameterShape(name="norm.weight", shape=(64,)),
    ),
    fingerprint="0" * 64,
)  # fmt: skip


def read(path: Path) -> dict[str, np.ndarray]:
    with TensorFile(path) as file:
        check_tensors(file.header, adapter_spec(SHAPE, NAMES, 8))
        return {name: file.read(name) for name in file.header}


def test_product_is_zero_and_rows_are_orthogonal(tmp_path: Path) -> None:
    initial_adapter(tmp_path / "f", SHAPE, NAMES, rank=8, seed=1, row_norm=0.5)
    tensors = read(tmp_path / "f")
    for name in NAMES:
        assert not tensors[f"{name}.lora_B"].any()
    for name in ("h.0.up", "h.0.down"):
        a = tensors[f"{name}.lora_A"]
        np.testing.assert_allclose(a @ a.T, 0.25 * np.eye(8), atol=1e-6)


def test_more_components_than_dimensions_come_in_orthogonal_blocks(tmp_path: Path) -> None:
    initial_adapter(tmp_path / "f", SHAPE, NAMES, rank=8, seed=1, row_norm=2.0)
    a = read(tmp_path / "f")["h.0.narrow.lora_A"]
    for block in (a[0:3], a[3:6], a[6:8]):
        np.testing.assert_allclose(block @ block.T, 4 * np.eye(len(block)), atol=1e-5)


def test_head_starts_as_such_heads_do(tmp_path: Path) -> None:
    initial_adapter(tmp_path / "f", SHAPE, NAMES, rank=8, seed=1, row_norm=1.0)
    tensors = read(tmp_path / "f")
    matrix = tensors["head:classifier.weight"]
    # 1920 normal values: four standard errors of mean and standard deviation
    assert abs(matrix.mean()) < 4 * 0.02 / np.sqrt(matrix.size)
    assert abs(matrix.std() / 0.02 - 1) < 4 / np.sqrt(2 * matrix.size)
    assert not tensors["head:classifier.bias"].any()
    assert (tensors["head:norm.weight"] == 1).all()


def test_tensors_depend_on_seed_and_name_only(tmp_path: Path) -> None:
    initial_adapter(tmp_path / "one", SHAPE, NAMES, rank=8, seed=1, row_norm=1.0)
    initial_adapter(tmp_path / "two", SHAPE, NAMES[::-1], rank=8, seed=1, row_norm=1.0)
    initial_adapter(tmp_path / "three", SHAPE, NAMES, rank=8, seed=2, row_norm=1.0)
    one, two, three = (read(tmp_path / name) for name in ("one", "two", "three"))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert not np.allclose(one["h.0.up.lora_A"], three["h.0.up.lora_A"])
    assert not np.allclose(one["head:classifier.weight"], three["head:classifier.weight"])
    assert not np.allclose(one["h.0.up.lora_A"], one["h.0.gate.lora_A"])


def test_errors_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(TensorError, match="no weight 'other'"):
        initial_adapter(tmp_path / "f", SHAPE, ["other"], rank=8, seed=1, row_norm=1.0)
    with pytest.raises(ValueError, match="rank 0"):
        initial_adapter(tmp_path / "f", SHAPE, NAMES, rank=0, seed=1, row_norm=1.0)
    assert not list(tmp_path.iterdir())
