"""Families whose feed-forward part has a gate, as data: Llama and its relatives, Gemma, Phi-3.

Names, order and defaults are those of the modules and configuration classes of transformers 5
(`transformers/models/<type>/`); `tests/unit/test_architectures.py` compares both.
"""

from collections.abc import Mapping
from dataclasses import replace

from fedpipe_profiles.architectures.family import Family, Frame, Row, Vector
from fedpipe_profiles.costs.step import Task

_GENERATING: Mapping[Task, Frame] = {
    "causal-lm": Frame(output="hidden"),
    "sequence-classification": Frame(head=(Row("score", "labels", "hidden"),)),
}
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

GRANITE = replace(LLAMA, model_type="granite", tasks=_ONLY_GENERATING, even_heads=False)

SMOLLM3 = replace(
    LLAMA,
    model_type="smollm3",
    defaults={
        **LLAMA.defaults,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    even_heads=False,
)
"""Every fourth layer rotates nothing; the block is that of the others."""

SEED_OSS = replace(
    LLAMA,
    model_type="seed_oss",
    rows=_gated(qkv_bias="attention_bias", output_bias="attention_out_bias", mlp_bias="mlp_bias"),
    defaults={
        **LLAMA.defaults,
        "vocab_size": 155136,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 80,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attention_bias": True,
        "attention_out_bias": False,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
    },
    keys={"hidden_dropout": "residual_dropout"},
    even_heads=False,
)

GEMMA = replace(
    LLAMA,
    model_type="gemma",
    rows=_gated(qkv_bias="attention_bias", output_bias="attention_bias"),
    defaults={
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "attention_bias": False,
    },
    old_activations={"gelu": "gelu_pytorch_tanh"},
)

GEMMA2 = replace(
    GEMMA,
    model_type="gemma2",
    defaults={
        **GEMMA.defaults,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    keys={"hidden_act": "hidden_activation"},
    old_activations={},
    norms=4,
    fused_attention=False,
)

GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    defaults={
        **GEMMA2.defaults,
        "vocab_size": 262208,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    head_norms=True,
    fused_attention=True,
)

PHI3 = replace(
    LLAMA,
    model_type="phi3",
    rows=(
        Row("self_attn.o_proj", "hidden", "queries"),
        Row("self_attn.qkv_proj", "qkv", "hidden"),
        Row("mlp.gate_up_proj", "twice_inner", "hidden"),
        Row("mlp.down_proj", "hidden", "inner"),
    ),
    defaults={
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "hidden_dropout": 0.0,
    },
    keys={"hidden_dropout": "resid_pdrop"},
    window="all",
    even_heads=False,
)

GATED: tuple[Family, ...] = (LLAMA, MISTRAL, QWEN2, QWEN3, GRANITE, SMOLLM3, SEED_OSS, GEMMA, GEMMA2, GEMMA3, PHI3)
