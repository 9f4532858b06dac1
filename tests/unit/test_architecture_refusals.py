"""Configurations that no plan can be made for: each is told what is known and what to do, briefly and harmlessly."""

import json
import math
from typing import Any

import pytest
from architecture_cases import counted, small
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from fedpipe_profiles.architectures.families import FAMILIES
from fedpipe_profiles.architectures.shape import ArchitectureError, shape_of
from fedpipe_profiles.catalog.model_catalogue import catalogued_model

LONGEST_MESSAGE = 2000


def refusal(config: Any, task: Any = "causal-lm", **settings: Any) -> str:
    with pytest.raises(ArchitectureError) as caught:
        shape_of(config, task=task, **settings)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < LONGEST_MESSAGE
    return text


EXPERTS = [
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
    "granitemoe",
    "phimoe",
    "olmoe",
]
RECURRENT = ["mamba", "mamba2", "jamba", "bamba", "falcon_h1", "recurrent_gemma", "rwkv", "zamba2"]
PAIRED = ["t5", "mt5", "bart", "mbart", "pegasus", "marian"]


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_refused_by_their_name(name: str) -> None:
    assert name in CONFIG_MAPPING_NAMES
    assert "mixture of experts" in refusal({"model_type": name})


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_experts_are_refused_in_any_family(key: str) -> None:
    assert "mixture of experts" in refusal(small("llama") | {key: 8})
    assert "mixture of experts" in refusal({"model_type": "a_new_one", key: 8})
    assert counted(small("llama") | {key: 1}, "causal-lm") == counted(small("llama") | {key: None}, "causal-lm")


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_refused(name: str) -> None:
    assert name in CONFIG_MAPPING_NAMES
    assert "recurrent" in refusal({"model_type": name})


def test_recurrent_layers_are_refused_by_their_kind() -> None:
    assert "recurrent" in refusal({"model_type": "a_new_one", "layer_types": ["full_attention", "linear_attention"]})


@pytest.mark.parametrize("name", PAIRED)
def test_encoders_with_decoders_are_refused(name: str) -> None:
    assert name in CONFIG_MAPPING_NAMES
    assert "an encoder and a decoder" in refusal({"model_type": name})
    assert "an encoder and a decoder" in refusal({"model_type": "a_new_one", "is_encoder_decoder": True})


def test_a_wrapped_text_model_is_refused() -> None:
    said = refusal({"model_type": "gemma3", "text_config": small("gemma3_text"), "vision_config": {}})
    assert "wraps a text model" in said
    assert "gemma3_text" in said


def test_a_quantized_checkpoint_is_refused() -> None:
    assert "quantized model" in refusal(small("llama") | {"quantization_config": {"quant_method": "gptq"}})


def test_an_unknown_type_is_told_all_known_ones() -> None:
    said = refusal({"model_type": "martian"})
    assert "'martian'" in said
    assert all(name in said for name in FAMILIES)


@pytest.mark.parametrize("name", [None, 7, "", [], {"a": 1}])
def test_a_type_that_is_no_name_is_refused(name: object) -> None:
    assert "must be one of" in refusal({"model_type": name})


@pytest.mark.parametrize("config", [[], "llama", None, 3])
def test_what_is_no_configuration_is_refused(config: object) -> None:
    assert "group of keys and values" in refusal(config)


def test_a_hostile_name_is_shown_harmlessly() -> None:
    said = refusal({"model_type": "\x1b]0;owned\x07\u202e" * 1000})
    assert "\\x1b" in said
    assert len(said) < 700


def test_a_task_that_a_family_lacks_names_those_that_have_it() -> None:
    said = refusal(small("distilbert"))
    assert "no causal-lm model of type 'distilbert'" in said
    assert "llama" in said


@pytest.mark.parametrize("labels", [0, -1, 1 << 40])
def test_a_classification_needs_labels(labels: int) -> None:
    assert "labels" in refusal(small("bert"), "sequence-classification", num_labels=labels)


ABSURD = [0, -4, 10**12, 1e308, math.nan, math.inf, "32", True, [], {"a": [1]}, 10**5000, "\x1b[2J" * 3000]


@pytest.mark.parametrize("value", ABSURD, ids=range(len(ABSURD)))
@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size", "head_dim"]
)
def test_absurd_sizes_are_refused_by_their_key(key: str, value: object) -> None:
    assert key in refusal(small("qwen3", **{key: value}))


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_size_that_is_null_is_missing(key: str) -> None:
    assert f"{key} is missing" in refusal(small("llama", **{key: None}))


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, "0.1", True])
def test_absurd_dropouts_are_refused(value: object) -> None:
    assert "resid_pdrop" in refusal(small("gpt2", hidden_dropout=value))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"hidden_size": 30}, "hidden size of 30 does not divide by 4 heads"),
        ("llama", {"hidden_size": 30, "head_dim": 8}, "hidden size of 30 does not divide by 4 heads"),
        ("mistral", {"hidden_size": 30}, "hidden size of 30 does not divide by 4 heads"),
        ("bert", {"hidden_size": 30}, "hidden size of 30 does not divide by 4 heads"),
        ("llama", {"num_key_value_heads": 3}, "4 heads do not divide by 3 key-value heads"),
        ("llama", {"num_key_value_heads": 8}, "4 heads do not divide by 8 key-value heads"),
        ("llama", {"head_dim": 7}, "must be even"),
        ("qwen3", {"num_attention_heads": 1 << 16, "head_dim": 1 << 20}, "wider than"),
        ("gpt2", {"n_embd": 32, "hidden_size": 64}, "mean the same"),
        ("gpt_neox", {"rotary_pct": 2}, "positions rotate"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', it must be true or false"),
        ("llama", {"hidden_act": "\x1b[31m"}, "hidden_act is '\\x1b[31m'"),
        ("bert", {"add_cross_attention": True}, "add_cross_attention is True, known is only False"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm is True"),
    ],
)
def test_contradictions_are_refused_with_both_values(name: str, changes: dict[str, object], said: str) -> None:
    config = small(name) | changes if "n_embd" in changes else small(name, **changes)
    assert said in refusal(config)


def test_all_problems_of_a_file_are_told_at_once() -> None:
    said = refusal(small("llama", hidden_size=0, vocab_size="many", num_hidden_layers=-1))
    assert all(key in said for key in ("hidden_size", "vocab_size", "num_hidden_layers"))


def test_a_model_too_large_to_count_is_refused() -> None:
    widest = {
        "hidden_size": 1 << 24,
        "intermediate_size": 1 << 24,
        "vocab_size": 1 << 24,
        "num_attention_heads": 1 << 16,
    }
    assert "parameters" in refusal(small("llama", num_hidden_layers=64, num_key_value_heads=None, **widest))


def test_labels_in_a_file_do_not_matter() -> None:
    config = dict(catalogued_model("bert-base-uncased") or {})
    with_labels = config | {"id2label": {str(number): "x" for number in range(9)}, "num_labels": 9}
    shapes = [
        shape_of(json.loads(json.dumps(c)), task="sequence-classification", num_labels=3) for c in (config, with_labels)
    ]
    assert shapes[0] == shapes[1]
    assert shapes[0].head[0].shape == (3, 768)


def test_kinds_of_layers_that_are_no_names_do_not_matter() -> None:
    block = counted(small("qwen3", use_sliding_window=True, layer_types=[{}, []]), "causal-lm").block
    assert block is not None
    assert block.window == 0
