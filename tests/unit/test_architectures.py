"""Shapes counted from a configuration alone are those of transformers' own modules."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architecture_cases import (
    CASES,
    HIDDEN,
    INNER,
    assert_counted_as_built,
    counted,
    real_config,
    small,
)
from tiny_models import Kind, make_tiny_model
from trainer_support import LABELS as LABEL_NAMES

from fedpipe_agent.train.shape import AUTO_CLASSES, Task, read_shape, skeleton
from fedpipe_profiles.architectures.families import FAMILIES
from fedpipe_profiles.catalog.model_catalogue import catalogued_model
from fedpipe_profiles.model import BlockShape

BIG = (
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B",
    "mistralai/Mistral-7B-v0.3",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen3-8B",
    "google/gemma-2-9b",
    "microsoft/Phi-3-mini-4k-instruct",
    "gpt2",
    "gpt2-xl",
    "bert-base-uncased",
    "bert-large-uncased",
    "roberta-base",
    "sentence-transformers/all-MiniLM-L6-v2",
)
GEMMA_2B = {
    "model_type": "gemma",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
}
OPT_350M = {
    "model_type": "opt",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "ffn_dim": 4096,
    "num_attention_heads": 16,
    "word_embed_proj_dim": 512,
    "do_layer_norm_before": False,
}
PYTHIA = {
    "model_type": "gpt_neox",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "vocab_size": 50304,
    "rotary_pct": 0.25,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("name", "task"), CASES)
def test_every_family_is_counted_as_it_is_built(name: str, task: Task, tied: bool) -> None:  # noqa: FBT001 - a case
    assert_counted_as_built(small(name, tie_word_embeddings=tied), task)


@pytest.mark.parametrize("hub_id", BIG)
def test_well_known_models_are_counted_as_they_are_built(hub_id: str) -> None:
    config = dict(catalogued_model(hub_id) or {})
    for task in FAMILIES[str(config["model_type"])].tasks:
        assert_counted_as_built(config, task)


@pytest.mark.parametrize("config", [GEMMA_2B, OPT_350M, PYTHIA], ids=["gemma-2b", "opt-350m", "pythia-70m"])
def test_odd_members_of_a_family_are_counted_as_they_are_built(config: dict[str, Any]) -> None:
    assert_counted_as_built(config, "causal-lm")
    assert_counted_as_built(config, "sequence-classification")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"attention_bias": True}),
        ("gemma", {"attention_bias": True}),
        ("gpt_neox", {"attention_bias": False}),
        ("opt", {"enable_bias": False}),
        ("starcoder2", {"use_bias": False}),
        ("seed_oss", {"attention_bias": False, "attention_out_bias": True}),
        ("opt", {"embedding_size": 24}),
        ("electra", {"embedding_size": HIDDEN}),
        ("gpt2", {"intermediate_size": None}),
        ("llama", {"head_dim": 20, "num_key_value_heads": None}),
        ("mistral", {"head_dim": None, "attn_implementation": "eager"}),
    ],
)
def test_switches_of_a_family_are_counted_as_they_are_built(name: str, changes: dict[str, object]) -> None:
    for task in FAMILIES[name].tasks:
        assert_counted_as_built(small(name, **changes), task)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_what_a_configuration_leaves_out_is_as_in_transformers(name: str, task: Task) -> None:
    assert counted({"model_type": name}, task) == counted(real_config({"model_type": name}).to_dict(), task)


@pytest.mark.parametrize("task", AUTO_CLASSES)
def test_a_task_is_known_where_transformers_has_it(task: Task) -> None:
    mapped = AUTO_CLASSES[task]._model_mapping
    for name, family in FAMILIES.items():
        assert (task in family.tasks) == (transformers.AutoConfig.for_model(name).__class__ in mapped), name


def _block(name: str, task: Task = "sequence-classification", **changes: object) -> BlockShape:
    task = task if task in FAMILIES[name].tasks else "causal-lm"
    block = counted(small(name, **changes), task).block
    assert block is not None
    return block


@pytest.mark.parametrize("name", FAMILIES)
def test_a_block_has_the_norms_that_are_built(name: str) -> None:
    block, model = _block(name), _model(small(name))
    inside = [module for path, module in model.named_modules() if _in_first_layer(path) and "Norm" in _kind(module)]
    sizes = Counter(module.weight.numel() for module in inside)
    assert sizes.pop(HIDDEN) == block.norms
    assert sizes == ({block.head_size: 2} if block.head_norms else {})
    assert all((getattr(module, "bias", None) is not None) == (block.norm == "layer") for module in inside)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_block_rotates_and_gates_as_it_is_built(name: str) -> None:
    block, model = _block(name), _model(small(name))
    rotated = {2 * buffer.numel() for path, buffer in model.named_buffers() if path.endswith("inv_freq")}
    assert rotated == ({block.rotary_size} if block.rotary_size else set())
    inside = [weight for weight in counted(small(name), _task(name)).weights if _in_first_layer(weight.name)]
    assert sum(weight.d_out for weight in inside if weight.d_out in (INNER, 2 * INNER)) == INNER * (1 + block.gated)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_block_drops_out_where_the_modules_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer more is as many dropouts more as the block says, of the very shares in the configuration."""
    family = FAMILIES[name]
    shares: dict[str, Any] = {"hidden_dropout": 0.25, "attention_dropout": 0.125}
    if family.embedding_dropout in ("embd_pdrop", "embedding_dropout"):
        shares[family.embedding_dropout] = 0.5
    called: Counter[float] = Counter()
    real = torch.nn.functional.dropout

    def recorded(values: torch.Tensor, p: float = 0.5, *more: Any, **settings: Any) -> torch.Tensor:
        called[p] += 1
        return real(values, p, *more, **settings)

    monkeypatch.setattr(torch.nn.functional, "dropout", recorded)
    per_depth = []
    for depth in (1, 2):
        called.clear()
        config = real_config(small(name, num_hidden_layers=depth, attn_implementation="eager", **shares))
        model = transformers.AutoModel.from_config(config).train()
        model(input_ids=torch.ones((1, 4), dtype=torch.long))
        per_depth.append(Counter({share: count for share, count in called.items() if share > 0}))
    block = _block(name, num_hidden_layers=2, **shares)
    layer = per_depth[1] - per_depth[0]
    assert layer[0.125] == 1
    assert block.attention_dropout == 0.125
    assert layer[0.25] == (block.hidden_dropouts if block.hidden_dropout else 0)
    around = per_depth[0] - layer
    assert dict(around) == ({block.embedding_dropout: 1} if block.embedding_dropout else {})


def test_a_sliding_window_counts_where_all_layers_have_it() -> None:
    assert _block("mistral", sliding_window=8).window == 8
    assert _block("mistral", sliding_window=None).window == 0
    assert _block("phi3", sliding_window=8).window == 8
    assert _block("qwen2", sliding_window=8).window == 0
    assert _block("qwen2", sliding_window=8, use_sliding_window=True, max_window_layers=0).window == 8
    assert _block("qwen2", sliding_window=8, use_sliding_window=True, max_window_layers=1).window == 0
    assert _block("qwen3", sliding_window=8, use_sliding_window=True, layer_types=["sliding_attention"] * 2).window == 8
    assert _block("gemma2", sliding_window=8).window == 0


def test_caps_and_parallel_parts_follow_the_configuration() -> None:
    assert _block("gemma2").score_cap
    assert _block("gemma2").logit_cap
    assert not _block("gemma2", attn_logit_softcapping=None).score_cap
    assert not _block("gemma3_text").logit_cap
    assert _block("gpt_neox").parallel
    assert not _block("gpt_neox", use_parallel_residual=False).parallel
    assert _block("phi").parallel


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_an_agent_says_how_a_layer_of_its_model_computes(tmp_path: Path, kind: Kind) -> None:
    make_tiny_model(tmp_path, kind, dropout=0.25 if kind != "llama" else 0.0)
    task: Task = "sequence-classification"
    read = read_shape(tmp_path, task, LABEL_NAMES)
    config = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    assert read.block is not None
    assert read.block.hidden_dropout == (0.25 if kind != "llama" else 0.0)
    assert read == counted(config, task).model_copy(update={"head": read.head, "fingerprint": read.fingerprint})


def test_an_agent_says_nothing_of_a_layer_that_is_not_known(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, "llama")
    olmo = transformers.OlmoConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    olmo.save_pretrained(tmp_path)
    shape = read_shape(tmp_path, "causal-lm", ())
    assert shape.model_type == "olmo"
    assert shape.block is None


def _task(name: str) -> Task:
    return next(iter(FAMILIES[name].tasks))


def _model(config: dict[str, Any]) -> Any:
    return skeleton(real_config(config), _task(config["model_type"]))


def _in_first_layer(path: str) -> bool:
    return ".0." in f"{path}."


def _kind(module: torch.nn.Module) -> str:
    return type(module).__name__
