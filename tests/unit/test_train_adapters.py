"""Adapters on real tiny bases: what the model computes, what changes, what is refused, what is left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_models import HIDDEN, Kind, make_tiny_model
from trainer_support import (
    GLOBAL_RANK,
    SCALE,
    FreeMeter,
    adapter_tensors,
    load,
    make_plan,
    some_components,
    write_adapter,
)

from fedpipe_agent.train.adapters import SIDE, TRAINED, attached, read_plan, write_update
from fedpipe_agent.train.base import Base
from fedpipe_agent.train.data import Encoded
from fedpipe_agent.train.errors import ModelError
from fedpipe_agent.train.shape import Task, lookups
from fedpipe_agent.train.step import Stepper, StepSettings, set_evaluation
from fedpipe_profiles.device import Bits
from fedpipe_wire.tensors import TensorFile, TensorSpec, a_name, b_name, head_name

CASES: list[tuple[Kind, Task]] = [
    ("bert", "sequence-classification"),
    ("llama", "causal-lm"),
    ("gpt2", "causal-lm"),
    ("llama", "sequence-classification"),
]
IDS = torch.tensor([[2, 5, 9, 11, 4, 30, 3, 7], [2, 8, 8, 40, 21, 3, 10, 6]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    root = tmp_path_factory.mktemp("models")
    kinds: tuple[Kind, ...] = ("bert", "llama", "gpt2")
    return {kind: make_tiny_model(root / kind, kind) for kind in kinds}


@pytest.fixture(scope="module")
def bert(folders: dict[Kind, Path]) -> Base:
    return load(folders["bert"], "sequence-classification", 32)


def forward(base: Base) -> torch.Tensor:
    set_evaluation(base)
    with torch.no_grad():
        logits: torch.Tensor = base.model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return logits.float()


def dense_weight(base: Base, name: str) -> torch.Tensor:
    """The matrix that a layer really multiplies by, (d_out, d_in): its answer to the unit vectors."""
    layer = base.model.get_submodule(name)
    dtype = torch.bfloat16 if base.bits == 16 else torch.float32
    d_in = base.weights[name].d_in
    with torch.no_grad():
        answer: torch.Tensor = layer(torch.eye(d_in, dtype=dtype)) - layer(torch.zeros(1, d_in, dtype=dtype))
    return answer.float().T


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_model_is_base_plus_scaled_product(
    folders: dict[Kind, Path], tmp_path: Path, kind: Kind, task: Task, bits: Bits
) -> None:
    base = load(folders[kind], task, bits)
    tensors = adapter_tensors(base)
    plan = make_plan(some_components(base), bits=bits)
    path = write_adapter(tmp_path / "adapter", tensors)
    with attached(base, read_plan(base, path, plan), scale=SCALE) as on_base:
        found = forward(base)
        trained = sum(len(c) for c in plan.components.values())
        assert sum(f.a.shape[0] for f in on_base.factors[TRAINED].values()) == trained
        assert sum(f.a.shape[0] for f in on_base.factors[SIDE].values()) == GLOBAL_RANK * len(base.weights) - trained

    dense = load(folders[kind], task, 32)
    for name, weight in base.weights.items():
        change = tensors[b_name(name)] @ tensors[a_name(name)]
        matrix = dense_weight(base, name) + SCALE * torch.from_numpy(change)
        parameter = dense.model.get_parameter(f"{name}.weight")
        parameter.data = matrix.T.contiguous() if weight.transposed else matrix
    for name, parameter in dense.head.items():
        parameter.data = torch.from_numpy(tensors[head_name(name)])
    if bits in (4, 8):
        for table in lookups(dense.model):
            table.weight.data = table.weight.data.bfloat16().float()
    expected = forward(dense)
    tolerance = 0.05 if bits == 16 else 1e-4
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def steps(base: Base, on_base: Any, count: int, learning_rate: float = 0.01) -> None:
    stepper = Stepper(base, on_base, StepSettings(32, learning_rate, 0, 4, checkpointing=False), FreeMeter())
    for i in range(count):
        ids = tuple(range(4 + i, 12 + i))
        stepper.step([Encoded(ids, target=i % 3 if base.labels else None, labels=None if base.labels else ids)] * 2)


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_training_changes_the_plans_components_and_the_head_only(
    folders: dict[Kind, Path], tmp_path: Path, bits: Bits
) -> None:
    base = load(folders["bert"], "sequence-classification", bits)
    tensors = adapter_tensors(base)
    plan = make_plan(some_components(base), bits=bits)
    frozen = {name: p.clone() for name, p in base.model.named_parameters() if name not in base.head}
    path = write_adapter(tmp_path / "adapter", tensors)
    with attached(base, read_plan(base, path, plan), scale=SCALE) as on_base:
        forward(base)  # evaluation before training must not spoil quantized weights
        steps(base, on_base, 3)
        for name, pair in on_base.factors[SIDE].items():
            rest = [i for i in range(GLOBAL_RANK) if i not in plan.components[name]]
            assert np.array_equal(pair.a.numpy(), tensors[a_name(name)][rest])
            assert np.array_equal(pair.b.numpy(), tensors[b_name(name)][:, rest])
        write_update(tmp_path / "update", on_base)
    for name, parameter in base.model.named_parameters():
        assert name in base.head or torch.equal(parameter, frozen[name]), name
    with TensorFile(tmp_path / "update") as update:
        expected = {head_name(name): TensorSpec(tuple(p.shape)) for name, p in base.head.items()}
        for name, rank in plan.ranks.items():
            weight = base.weights[name]
            expected |= {
                a_name(name): TensorSpec((rank, weight.d_in)),
                b_name(name): TensorSpec((weight.d_out, rank)),
            }
        assert update.header == expected
        used = [name for name in plan.ranks if "pooler" not in name]
        for name in used:
            before = tensors[b_name(name)][:, list(plan.components[name])]
            after = update.read(b_name(name))
            assert 0.0 < np.abs(after - before).max() < 0.2, name


def test_without_steps_the_update_is_what_was_received(bert: Base, tmp_path: Path) -> None:
    tensors = adapter_tensors(bert)
    components = dict.fromkeys(bert.weights, (5, 1, 3))  # the file keeps the plan's order
    path = write_adapter(tmp_path / "adapter", tensors)
    with attached(bert, read_plan(bert, path, make_plan(components)), scale=SCALE) as on_base:
        write_update(tmp_path / "update", on_base)
    with TensorFile(tmp_path / "update") as update:
        for name in bert.weights:
            assert np.array_equal(update.read(a_name(name)), tensors[a_name(name)][[5, 1, 3]])
            assert np.array_equal(update.read(b_name(name)), tensors[b_name(name)][:, [5, 1, 3]])


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_second_round_on_a_used_base_equals_one_on_a_fresh_base(
    folders: dict[Kind, Path], tmp_path: Path, bits: Bits
) -> None:
    def round_two(base: Base) -> bytes:
        path = write_adapter(tmp_path / "two", adapter_tensors(base, seed=2))
        plan = make_plan(dict.fromkeys(list(base.weights)[1:], (0, 1)))
        with attached(base, read_plan(base, path, plan), scale=SCALE) as on_base:
            steps(base, on_base, 3)
            write_update(tmp_path / "update", on_base)
        return (tmp_path / "update").read_bytes()

    used = load(folders["bert"], "sequence-classification", bits)
    names = {name for name, _ in used.model.named_modules()}
    before = forward(used)
    path = write_adapter(tmp_path / "one", adapter_tensors(used))
    with attached(used, read_plan(used, path, make_plan(some_components(used))), scale=SCALE) as on_base:
        steps(used, on_base, 2)
    for name, parameter in used.head.items():
        parameter.data.copy_(used.initial_head[name])
    assert {name for name, _ in used.model.named_modules()} == names
    assert torch.equal(forward(used), before)
    assert round_two(used) == round_two(load(folders["bert"], "sequence-classification", bits))


def test_a_failure_inside_leaves_a_plain_base(bert: Base, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "adapter", adapter_tensors(bert))
    factors = read_plan(bert, path, make_plan(some_components(bert)))
    names = {name for name, _ in bert.model.named_modules()}
    with pytest.raises(ZeroDivisionError), attached(bert, factors, scale=SCALE):
        raise ZeroDivisionError
    assert {name for name, _ in bert.model.named_modules()} == names


FIRST = "bert.encoder.layer.0.attention.self.query"
Tensors = dict[str, NDArray[np.float32]]
BAD: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "missing factor": (lambda t: t.pop(b_name(FIRST)), f"missing {FIRST}.lora_B"),
    "missing head": (lambda t: t.pop("head:classifier.bias"), "missing head:classifier.bias"),
    "unexpected": (lambda t: t.update(more=np.zeros(3, np.float32)), "unexpected more"),
    "unknown weight": (
        lambda t: t.update({"bert.other.lora_A": np.zeros((GLOBAL_RANK, HIDDEN), np.float32)}),
        "unexpected bert.other.lora_A",
    ),
    "wrong rank": (lambda t: t.update({a_name(FIRST): t[a_name(FIRST)][:5]}), f"{FIRST}.lora_A: expected"),
    "wrong shape of head": (
        lambda t: t.update({"head:classifier.bias": np.zeros(4, np.float32)}),
        "head:classifier.bias: expected",
    ),
    "wrong dtype": (
        lambda t: t.update({a_name(FIRST): t[a_name(FIRST)].astype(np.float64)}),
        f"{FIRST}.lora_A: expected",
    ),
    "not finite": (lambda t: t[a_name(FIRST)].__setitem__((0, 0), np.nan), f"{FIRST}.lora_A: 1 of"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_adapter_is_refused_by_name(bert: Base, tmp_path: Path, case: str) -> None:
    spoil, said = BAD[case]
    tensors = adapter_tensors(bert)
    spoil(tensors)
    path = write_adapter(tmp_path / "adapter", tensors)
    with pytest.raises(ModelError) as error:
        read_plan(bert, path, make_plan({FIRST: (0,)}))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("components", "said"),
    [
        ({"bert.nowhere": (0,)}, "bert.nowhere"),
        ({FIRST: (GLOBAL_RANK,)}, "below 6"),
        ({FIRST: (1, 1)}, "distinct"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    bert: Base, tmp_path: Path, components: dict[str, tuple[int, ...]], said: str
) -> None:
    path = write_adapter(tmp_path / "adapter", adapter_tensors(bert))
    with pytest.raises(ModelError, match=said):
        read_plan(bert, path, make_plan(components))


def test_a_missing_file_is_refused(bert: Base, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing-here"):
        read_plan(bert, tmp_path / "nothing-here", make_plan({FIRST: (0,)}))


def test_a_weight_left_out_of_the_adapter_stays_plain(bert: Base, tmp_path: Path) -> None:
    tensors = adapter_tensors(bert)
    del tensors[a_name(FIRST)], tensors[b_name(FIRST)]
    path = write_adapter(tmp_path / "adapter", tensors)
    other = "bert.encoder.layer.1.output.dense"
    with attached(bert, read_plan(bert, path, make_plan({other: (0, 3)})), scale=SCALE) as on_base:
        assert set(on_base.factors[TRAINED]) == {other}
        assert set(on_base.factors[SIDE]) == set(bert.weights) - {FIRST}
