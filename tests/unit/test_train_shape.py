"""What is read of a base without loading it, what is loaded, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_models import HIDDEN, LAYERS, POSITIONS, Kind, make_tiny_model
from trainer_support import LABELS, load

from fedpipe_agent.train.base import locate
from fedpipe_agent.train.errors import ModelError
from fedpipe_agent.train.fingerprint import fingerprint
from fedpipe_agent.train.shape import Task, check_length, lookups, read_shape
from fedpipe_profiles.device import Bits


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "bert", "bert")
    make_tiny_model(folder / "llama", "llama")
    make_tiny_model(folder / "gpt2", "gpt2")
    return folder


CASES: list[tuple[Kind, Task, int, list[str]]] = [
    ("bert", "sequence-classification", 6 * LAYERS + 1, ["classifier.weight", "classifier.bias"]),
    ("llama", "causal-lm", 7 * LAYERS, []),
    ("llama", "sequence-classification", 7 * LAYERS, ["score.weight"]),
    ("gpt2", "causal-lm", 4 * LAYERS, []),
    ("gpt2", "sequence-classification", 4 * LAYERS, ["score.weight"]),
]


@pytest.mark.parametrize(("kind", "task", "weights", "head"), CASES)
def test_shape_counts_what_the_loaded_model_has(
    root: Path, kind: Kind, task: Task, weights: int, head: list[str]
) -> None:
    labels = LABELS if task == "sequence-classification" else ()
    shape = read_shape(root / kind, task, labels)
    base = load(root / kind, task, 32)
    assert (shape.layers, shape.hidden_size, shape.model_type) == (LAYERS, HIDDEN, kind)
    assert len(shape.weights) == weights
    assert [part.name for part in shape.head] == head
    counted = shape.weight_parameters + shape.other_parameters + shape.head_parameters
    assert counted == sum(parameter.numel() for parameter in base.model.parameters())
    for weight in shape.weights:
        stored = tuple(base.model.get_parameter(f"{weight.name}.weight").shape)
        assert stored == ((weight.d_in, weight.d_out) if weight.transposed else (weight.d_out, weight.d_in))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("kind", "task"), [(case[0], case[1]) for case in CASES])
def test_exactly_the_candidates_are_quantized(root: Path, kind: Kind, task: Task, bits: Bits) -> None:
    base = load(root / kind, task, bits)
    quantized = {n for n, m in base.model.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")}
    assert quantized == set(base.weights)
    tables = {id(table.weight) for table in lookups(base.model)}
    for name, parameter in base.model.named_parameters():
        if name.rpartition(".")[0] not in quantized:
            assert parameter.dtype == (torch.bfloat16 if id(parameter) in tables else torch.float32), name
    assert base.model(input_ids=torch.tensor([[2, 5, 3]])).logits.dtype == torch.float32


def test_the_head_stays_in_float32_on_a_bf16_base(root: Path) -> None:
    base = load(root / "bert", "sequence-classification", 16)
    assert {p.dtype for p in base.head.values()} == {torch.float32}
    ids = torch.tensor([[2, 5, 3]])
    assert base.model(input_ids=ids).logits.dtype == torch.float32


def test_the_drawn_head_is_alike_at_all_bits(root: Path) -> None:
    first = load(root / "bert", "sequence-classification", 4).initial_head
    second = load(root / "bert", "sequence-classification", 32).initial_head
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_int8_on_a_cpu_rounds_weights_only(root: Path) -> None:
    base = load(root / "bert", "sequence-classification", 8)
    layer = base.model.get_submodule(next(iter(base.weights)))
    torch.manual_seed(0)
    x = torch.randn(4, HIDDEN)
    with torch.no_grad():
        dense = layer(torch.eye(HIDDEN)) - layer.bias
        assert torch.allclose(layer(x), x @ dense + layer.bias, atol=1e-6)


def test_fingerprint_is_of_the_tensors_alone(root: Path, tmp_path: Path) -> None:
    expected = fingerprint(root / "bert")
    tensors = safetensors.torch.load_file(root / "bert" / "model.safetensors")
    names = sorted(tensors)
    index: dict[str, str] = {}
    for number, part in enumerate((names[3:], names[:3])):
        file = f"model-{number}.safetensors"
        safetensors.torch.save_file({name: tensors[name] for name in part}, tmp_path / file, metadata={"by": "test"})
        index |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert fingerprint(tmp_path) == expected
    tensors[names[0]].view(-1)[0] += 1e-3
    other = tmp_path / "other"
    other.mkdir()
    safetensors.torch.save_file(tensors, other / "model.safetensors")
    assert fingerprint(other) != expected


def test_a_changed_file_is_hashed_again(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    shutil.copy(root / "bert" / "model.safetensors", file)
    before = fingerprint(tmp_path)
    shutil.copy(root / "llama" / "model.safetensors", file)
    assert fingerprint(tmp_path) != before


def _edit(name: str, change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return spoil


def _without_pooler(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["pooler.dense.weight"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), "configuration"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "cut short": (_cut, "cut short|cannot be loaded"),
    "not safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "not a safetensors|loaded"),
    "unknown architecture": (_edit("config.json", lambda c: c.update(model_type="martian")), "martian"),
    "quantized": (
        _edit("config.json", lambda c: c.update(quantization_config={"quant_method": "gptq", "bits": 4})),
        "quantized model",
    ),
    "incomplete": (_without_pooler, "lacks 1 tensors of the base, such as bert.pooler.dense.weight"),
    "another width": (_edit("config.json", lambda c: c.update(intermediate_size=96)), "another shape|cannot be loaded"),
    "no tokenizer": (_without_tokenizer, "tokenizer"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_refused_with_the_reason(root: Path, tmp_path: Path, case: str) -> None:
    spoil, said = BAD[case]
    folder = tmp_path / "model"
    shutil.copytree(root / "bert", folder)
    spoil(folder)
    with pytest.raises(ModelError, match=said):
        load(folder, "sequence-classification", 32)


@pytest.mark.parametrize("case", ["no configuration", "no weights", "cut short", "not safetensors", "quantized"])
def test_a_bad_folder_has_no_shape(root: Path, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(root / "bert", folder)
    BAD[case][0](folder)
    with pytest.raises(ModelError):
        read_shape(folder, "sequence-classification", LABELS)


def test_a_task_that_the_architecture_cannot_do_is_refused(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(root / "bert", folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match="no causal-lm model for architecture 'vit'"):
        read_shape(folder, "causal-lm", ())


def test_a_missing_folder_is_not_looked_for_on_a_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        locate(str(tmp_path / "nowhere"))


def test_more_tokens_than_positions_are_refused(root: Path) -> None:
    check_length(root / "bert", POSITIONS)
    with pytest.raises(ModelError, match="65, the model has 64 positions"):
        check_length(root / "bert", POSITIONS + 1)
