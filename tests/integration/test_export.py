"""Export: what PEFT and plain transformers make of a global adapter, against dense matrices."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from fedpipe_coordinator.export import ExportError, export_merged, main
from fedpipe_coordinator.peft_format import Task, write_peft_adapter
from fedpipe_profiles.model import ModelShape, ParameterShape, WeightShape
from fedpipe_wire.tensors import TensorError, adapter_spec, write_tensors

SCALE = 1.7
RANK = 4
LABELS = ("neutral", "good", "bad")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]
if not torch.cuda.is_available():
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Case:
    task: Task
    config: Callable[[], Any]
    weights: tuple[tuple[str, int, int], ...]
    head: tuple[tuple[str, tuple[int, ...]], ...] = ()
    transposed: bool = False


def bert() -> Any:
    return transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32,
    )  # fmt: skip


def roberta() -> Any:
    return transformers.RobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def distilbert() -> Any:
    return transformers.DistilBertConfig(
        vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=32
    )


def llama() -> Any:
    return transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip


def gpt2() -> Any:
    return transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
    )


LAYER = "bert.encoder.layer.1"
CASES = {
    "bert": Case(
        "sequence-classification", bert,
        ((f"{LAYER}.attention.self.query", 16, 16), (f"{LAYER}.intermediate.dense", 24, 16)),
        (("classifier.weight", (3, 16)), ("classifier.bias", (3,))),
    ),
    "roberta": Case(
        "sequence-classification", roberta, (("roberta.encoder.layer.0.output.dense", 16, 24),),
        (
            ("classifier.dense.weight", (16, 16)), ("classifier.dense.bias", (16,)),
            ("classifier.out_proj.weight", (3, 16)), ("classifier.out_proj.bias", (3,)),
        ),
    ),
    "distilbert": Case(
        "sequence-classification", distilbert, (("distilbert.transformer.layer.0.attention.q_lin", 16, 16),),
        (
            ("pre_classifier.weight", (16, 16)), ("pre_classifier.bias", (16,)),
            ("classifier.weight", (3, 16)), ("classifier.bias", (3,)),
        ),
    ),
    "llama classifier": Case(
        "sequence-classification", llama, (("model.layers.0.self_attn.q_proj", 16, 16),),
        (("score.weight", (3, 16)),),
    ),
    "llama": Case(
        "causal-lm", llama,
        (("model.layers.0.self_attn.v_proj", 16, 16), ("model.layers.0.mlp.down_proj", 16, 24)),
    ),
    "gpt2": Case(
        "causal-lm", gpt2,
        (("transformer.h.0.attn.c_attn", 48, 16), ("transformer.h.0.mlp.c_fc", 64, 16)), transposed=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A base on disk, an adapter in PEFT's format, and what the two add up to."""

    case: Case
    base: Path
    adapter: Path
    tensors: dict[str, np.ndarray]
    shape: ModelShape
    global_file: Path

    def load(self, source: Path) -> Any:
        """A model as a person would load it; nothing of this project is used."""
        if self.case.task == "causal-lm":
            return transformers.AutoModelForCausalLM.from_pretrained(source).eval()
        kind = transformers.AutoModelForSequenceClassification
        return kind.from_pretrained(source, num_labels=len(LABELS)).eval()

    def logits(self, model: Any) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits
            return logits

    def dense_model(self) -> Any:
        """The base with s * B @ A added to its matrices and the trained head put in, by hand."""
        model = self.load(self.base)
        state = model.state_dict()
        for name, _, _ in self.case.weights:
            change = SCALE * (self.tensors[f"{name}.lora_B"] @ self.tensors[f"{name}.lora_A"])
            state[f"{name}.weight"] += torch.from_numpy(change.T if self.case.transposed else change)
        for name, _ in self.case.head:
            state[name].copy_(torch.from_numpy(self.tensors[f"head:{name}"]))
        return model


def make_scene(folder: Path, name: str) -> Scene:
    case = CASES[name]
    torch.manual_seed(0)
    config = case.config()
    kind = transformers.AutoModelForCausalLM if case.task == "causal-lm" else transformers.AutoModel
    kind.from_config(config).save_pretrained(folder / "base")
    shape = ModelShape(
        model_type=config.model_type, layers=1, hidden_size=16, intermediate_size=24, heads=2, vocabulary_size=40,
        weights=tuple(
            WeightShape(name=weight, d_out=d_out, d_in=d_in, transposed=case.transposed)
            for weight, d_out, d_in in case.weights
        ),
        other_parameters=0, head=tuple(ParameterShape(name=part, shape=size) for part, size in case.head),
        fingerprint="0" * 64,
    )  # fmt: skip
    random = np.random.default_rng(1)
    spec = adapter_spec(shape, [weight.name for weight in shape.weights], RANK)
    tensors = {key: random.standard_normal(item.shape).astype(np.float32) * 0.3 for key, item in spec.items()}
    write_tensors(folder / "global.safetensors", tensors)
    scene = Scene(case, folder / "base", folder / "adapter", tensors, shape, folder / "global.safetensors")
    write_adapter(scene)
    return scene


def write_adapter(scene: Scene) -> None:
    labels = LABELS if scene.case.task == "sequence-classification" else ()
    write_peft_adapter(
        scene.adapter, scene.global_file, scene.shape, task=scene.case.task, base_model=str(scene.base),
        scale=SCALE, labels=labels,
    )  # fmt: skip


@pytest.fixture(params=CASES)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return make_scene(tmp_path, request.param)


@pytest.fixture
def bert_scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path, "bert")


def close(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((got - wanted).abs().max() <= 1e-4 * wanted.abs().max())


@pytest.mark.filterwarnings("error")
def test_peft_and_merged_model_equal_the_dense_sum(scene: Scene, tmp_path: Path) -> None:
    wanted = scene.logits(scene.dense_model())
    plain = scene.load(scene.base)
    wrapped = peft.PeftModel.from_pretrained(plain, scene.adapter).eval()
    assert close(scene.logits(wrapped), wanted)
    exported = export_merged(scene.adapter, str(scene.base), scene.case.task, tmp_path / "merged")
    merged = scene.load(tmp_path / "merged")
    assert close(scene.logits(merged), wanted)
    assert exported.architecture == type(merged).__name__ == type(scene.load(scene.base)).__name__
    assert exported.parameters == sum(p.numel() for p in scene.load(scene.base).parameters())
    if not scene.case.head:
        assert not close(scene.logits(scene.load(scene.base)), wanted)


def test_file_has_the_names_that_peft_itself_saves(scene: Scene, tmp_path: Path) -> None:
    wrapped = peft.PeftModel.from_pretrained(scene.load(scene.base), scene.adapter)
    wrapped.save_pretrained(tmp_path / "again", save_embedding_layers=False)
    ours = safetensors.numpy.load_file(scene.adapter / "adapter_model.safetensors")
    theirs = safetensors.numpy.load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert set(ours) == set(theirs)
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])


def test_labels_reach_the_merged_config(bert_scene: Scene, tmp_path: Path) -> None:
    export_merged(bert_scene.adapter, str(bert_scene.base), "sequence-classification", tmp_path / "merged")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "merged")
    assert config.id2label == {0: "neutral", 1: "good", 2: "bad"}
    assert config.label2id == {"neutral": 0, "good": 1, "bad": 2}
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert plain.num_labels == 3


def test_tokenizer_comes_along(bert_scene: Scene, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world"]
    vocabulary = {word: index for index, word in enumerate(words)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(bert_scene.base)
    exported = export_merged(bert_scene.adapter, str(bert_scene.base), "sequence-classification", tmp_path / "merged")
    assert exported.tokenizer
    before = transformers.AutoTokenizer.from_pretrained(bert_scene.base)
    after = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert after("hello world")["input_ids"] == before("hello world")["input_ids"] == [2, 5, 6, 3]


def test_same_adapter_gives_the_same_file(bert_scene: Scene) -> None:
    path = bert_scene.adapter / "adapter_model.safetensors"
    before = path.read_bytes()
    write_adapter(bert_scene)
    assert path.read_bytes() == before


def test_process_exports_offline(bert_scene: Scene, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "fedpipe_coordinator.export", "--adapter", str(bert_scene.adapter),
            "--base", str(bert_scene.base), "--task", "sequence-classification", "--out", str(tmp_path / "merged"),
        ],
        check=False, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "out": str(tmp_path / "merged"),
        "architecture": "BertForSequenceClassification",
        "parameters": sum(p.numel() for p in bert_scene.load(bert_scene.base).parameters()),
        "tokenizer": False,
    }
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def faults() -> dict[str, tuple[Callable[[Scene, Path], None], str]]:
    def no_base(scene: Scene, _: Path) -> None:
        (scene.base / "config.json").unlink()

    def broken_base(scene: Scene, _: Path) -> None:
        (scene.base / "model.safetensors").write_bytes(b"nonsense")

    def no_adapter(scene: Scene, _: Path) -> None:
        (scene.adapter / "adapter_model.safetensors").unlink()

    def broken_adapter(scene: Scene, _: Path) -> None:
        path = scene.adapter / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-4])

    def change(scene: Scene, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
        path = scene.adapter / "adapter_model.safetensors"
        tensors = safetensors.numpy.load_file(path)
        edit(tensors)
        safetensors.numpy.save_file(tensors, path)

    first = f"base_model.model.{LAYER}.attention.self.query.lora_A.weight"

    def missing(scene: Scene, _: Path) -> None:
        change(scene, lambda tensors: tensors.pop(first))

    def foreign(scene: Scene, _: Path) -> None:
        other = f"base_model.model.{LAYER}.attention.self.key.lora_A.weight"
        change(scene, lambda tensors: tensors.update({other: tensors[first]}))

    def misshapen(scene: Scene, _: Path) -> None:
        change(scene, lambda tensors: tensors.update({first: tensors[first][:, :9].copy()}))

    def infinite(scene: Scene, _: Path) -> None:
        change(scene, lambda tensors: tensors.update({first: tensors[first] * np.inf}))

    def bad_labels(scene: Scene, _: Path) -> None:
        (scene.adapter / "labels.json").write_text("[]")

    def used_out(_: Scene, out: Path) -> None:
        out.mkdir()
        (out / "mine").write_text("keep")

    return {
        "no base": (no_base, "cannot load the base model"),
        "broken base": (broken_base, "cannot load the base model"),
        "no adapter": (no_adapter, r"has no adapter_model\.safetensors"),
        "broken adapter": (broken_adapter, "export the adapter again"),
        "missing tensor": (missing, rf"missing \['{first}'\]"),
        "foreign tensor": (foreign, "not used"),
        "misshapen tensor": (misshapen, "does not fit the base model"),
        "infinite tensor": (infinite, "not finite"),
        "bad labels": (bad_labels, r"labels\.json is malformed"),
        "used folder": (used_out, "exists and is not empty"),
    }


FAULTS = faults()


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_told_and_leaves_nothing(bert_scene: Scene, tmp_path: Path, fault: str) -> None:
    spoil, says = FAULTS[fault]
    out = tmp_path / "merged"
    spoil(bert_scene, out)
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    with pytest.raises(ExportError, match=says):
        export_merged(bert_scene.adapter, str(bert_scene.base), "sequence-classification", out)
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == before


def command(scene: Scene, out: Path) -> list[str]:
    task = "sequence-classification"
    return ["--adapter", str(scene.adapter), "--base", str(scene.base), "--task", task, "--out", str(out)]


def test_exit_codes(
    bert_scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(command(bert_scene, tmp_path / "no" / "such" / "folder")) == 30
    assert "make it first" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(command(bert_scene, tmp_path / "merged")) == 31
    assert "pip install 'fedpipe[export]'" in capsys.readouterr().err


def test_adapter_of_another_model_is_refused(bert_scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_scene(tmp_path / "other", "llama")
    with pytest.raises(TensorError, match="another model's adapter"):
        write_peft_adapter(
            tmp_path / "mixed", other.global_file, bert_scene.shape, task="causal-lm",
            base_model=str(bert_scene.base), scale=SCALE, labels=(),
        )  # fmt: skip
