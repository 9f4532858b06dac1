"""Families that generate text, as data: the layers of Llama and its relatives, GPT-2, GPT-NeoX, OPT and Phi-3.

Names, order and defaults are those of the modules and configuration classes of transformers 5
(`transformers/models/<type>/`); `tests/unit/test_architectures.py` compares both.
"""

from collections.abc import Mapping
from dataclasses import replace

from fedpipe_profiles.architectures.family import Family, Frame, Row, Vector
from fedpipe_profiles.costs.step import Task

_SCORE = Frame(head=(Row("score", "labels", "hidden"),))
_GENERATING: Mapping[Task, Frame] = {"causal-lm": Frame(output="hidden"), "sequence-classification": _SCORE}
_ONLY_GENERATING: Mapping[Task, Frame] = {"causal-lm": Frame(output="hidden")}


def _gated(
    *, qkv_bias: bool | str = False, output_bias: bool | str = False, mlp_bias: bool | str = False
) -> tuple[Row, ...]:
    return (
        Row("self_attn.q_proj", "queries", "hidden", qkv_bias),
        Row("self_attn.k_proj", "keys", "hidden", qkv_bias),
        Row("self_attn.v_proj", "keys", "hidden", qkv_bias),
        Row("self_attn.o_proj", "hidden", "queries", output_bias),
        Row("mlp.gate_proj", "inner", "hidden", mlp_bias),
        Row("mlp.up_proj", "inner", "hidden", mlp_bias),
        Row("mlp.down_proj", "hidden", "inner", mlp_bias),
    )


LLAMA = Family(
    model_type="llama",
    layer="model.layers.{}.",
    rows=_gated(qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"),
    tasks=_GENERATING,
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    norm="rms",
    vectors=(Vector("hidden"),),
    even_heads=True,
)

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    rows=_gated(),
    defaults={**LLAMA.defaults, "intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096},
    window="all",
    even_heads=False,
)

QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    rows=_gated(qkv_bias=True),
    defaults={
        **LLAMA.defaults,
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    window="switched",
    even_heads=False,
)

QWEN3 = replace(
    QWEN2,
    model_type="qwen3",
    rows=_gated(qkv_bias="attention_bias", output_bias="attention_bias"),
    defaults={**QWEN2.defaults, "head_dim": 128},
    head_norms=True,
)

GPT2 = Family(
    model_type="gpt2",
    layer="transformer.h.{}.",
    rows=(
        Row("attn.c_attn", "qkv", "hidden", bias=True),
        Row("attn.c_proj", "hidden", "hidden", bias=True),
        Row("mlp.c_fc", "inner", "hidden", bias=True),
        Row("mlp.c_proj", "hidden", "inner", bias=True),
    ),
    transposed=True,
    tasks=_GENERATING,
    defaults={
        "vocab_size": 50257,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 1024,
        "hidden_act": "gelu_new",
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "tie_word_embeddings": True,
    },
    keys={
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "hidden_act": "activation_function",
        "hidden_dropout": "resid_pdrop",
        "attention_dropout": "attn_pdrop",
    },
    fixed={"add_cross_attention": False},
    norm="layer",
    norm_vectors=2,
    vectors=(Vector("hidden", 2),),
    tables=("max_position_embeddings",),
    gated=False,
    rotary_share=0.0,
    grouped=False,
    even_heads=True,
    own_head_size=False,
)

DECODERS: tuple[Family, ...] = (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2)
