"""Families that generate text without a gate, as data: GPT-2, GPT-NeoX, OPT, Phi, StarCoder 2.

Names, order and defaults are those of the modules and configuration classes of transformers 5
(`transformers/models/<type>/`); `tests/unit/test_architectures.py` compares both.
"""

from dataclasses import replace

from fedpipe_profiles.architectures.family import Family, Frame, Row, Vector

_SCORE = Frame(head=(Row("score", "labels", "hidden"),))

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
    tasks={"causal-lm": Frame(output="hidden"), "sequence-classification": _SCORE},
    defaults={
        "vocab_size": 50257,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 1024,
        "hidden_act": "gelu_new",
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "embd_pdrop": 0.1,
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
    embedding_dropout="embd_pdrop",
)


GPT_NEOX = Family(
    model_type="gpt_neox",
    layer="gpt_neox.layers.{}.",
    rows=(
        Row("attention.query_key_value", "qkv", "hidden", bias="attention_bias"),
        Row("attention.dense", "hidden", "hidden", bias="attention_bias"),
        Row("mlp.dense_h_to_4h", "inner", "hidden", bias=True),
        Row("mlp.dense_4h_to_h", "hidden", "inner", bias=True),
    ),
    tasks={"causal-lm": Frame(output="hidden"), "sequence-classification": _SCORE},
    defaults={
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "attention_bias": True,
    },
    norm="layer",
    norm_vectors=2,
    vectors=(Vector("hidden", 2),),
    gated=False,
    rotary_share=0.25,
    parallel="use_parallel_residual",
    grouped=False,
    even_heads=True,
    own_head_size=False,
    embedding_dropout="hidden_dropout",
)

_OPT_PROJECTIONS = (
    Row("model.decoder.project_out", "embedding", "hidden", when="projected"),
    Row("model.decoder.project_in", "hidden", "embedding", when="projected"),
)
OPT = Family(
    model_type="opt",
    layer="model.decoder.layers.{}.",
    rows=(
        Row("self_attn.k_proj", "hidden", "hidden", bias="enable_bias"),
        Row("self_attn.v_proj", "hidden", "hidden", bias="enable_bias"),
        Row("self_attn.q_proj", "hidden", "hidden", bias="enable_bias"),
        Row("self_attn.out_proj", "hidden", "hidden", bias="enable_bias"),
        Row("fc1", "inner", "hidden", bias="enable_bias"),
        Row("fc2", "hidden", "inner", bias="enable_bias"),
    ),
    tasks={
        "causal-lm": Frame(before=_OPT_PROJECTIONS, output="embedding"),
        "sequence-classification": Frame(before=_OPT_PROJECTIONS, head=(Row("score", "labels", "embedding"),)),
    },
    defaults={
        "vocab_size": 50272,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 2048,
        "hidden_act": "relu",
        "hidden_dropout": 0.1,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "enable_bias": True,
        "do_layer_norm_before": True,
    },
    keys={
        "intermediate_size": "ffn_dim",
        "hidden_act": "activation_function",
        "hidden_dropout": "dropout",
        "embedding_size": "word_embed_proj_dim",
    },
    fixed={"layer_norm_elementwise_affine": True, "_remove_final_layer_norm": False},
    norm="layer",
    norm_vectors=2,
    vectors=(Vector("hidden", 2, when="do_layer_norm_before"),),
    tables=("max_position_embeddings",),
    table_width="hidden",
    table_offset=2,
    gated=False,
    rotary_share=0.0,
    grouped=False,
    even_heads=True,
    own_head_size=False,
)

PHI = Family(
    model_type="phi",
    layer="model.layers.{}.",
    rows=(
        Row("self_attn.q_proj", "queries", "hidden", bias=True),
        Row("self_attn.k_proj", "keys", "hidden", bias=True),
        Row("self_attn.v_proj", "keys", "hidden", bias=True),
        Row("self_attn.dense", "hidden", "queries", bias=True),
        Row("mlp.fc1", "inner", "hidden", bias=True),
        Row("mlp.fc2", "hidden", "inner", bias=True),
    ),
    tasks={
        "causal-lm": Frame(output="hidden", vectors=(Vector("vocabulary"),)),
        "sequence-classification": _SCORE,
    },
    defaults={
        "vocab_size": 51200,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "hidden_act": "gelu_new",
        "hidden_dropout": 0.0,
        "embd_pdrop": 0.0,
        "tie_word_embeddings": False,
    },
    keys={"hidden_dropout": "resid_pdrop"},
    fixed={"qk_layernorm": False},
    norm="layer",
    norms=1,
    norm_vectors=2,
    vectors=(Vector("hidden", 2),),
    gated=False,
    rotary_share=0.5,
    parallel=True,
    embedding_dropout="embd_pdrop",
)

STARCODER2 = replace(
    PHI,
    model_type="starcoder2",
    rows=(
        Row("self_attn.q_proj", "queries", "hidden", bias="use_bias"),
        Row("self_attn.k_proj", "keys", "hidden", bias="use_bias"),
        Row("self_attn.v_proj", "keys", "hidden", bias="use_bias"),
        Row("self_attn.o_proj", "hidden", "queries", bias="use_bias"),
        Row("mlp.c_fc", "inner", "hidden", bias="use_bias"),
        Row("mlp.c_proj", "hidden", "inner", bias="use_bias"),
    ),
    tasks={"causal-lm": Frame(output="hidden"), "sequence-classification": _SCORE},
    defaults={
        "vocab_size": 49152,
        "hidden_size": 3072,
        "intermediate_size": 12288,
        "num_hidden_layers": 30,
        "num_attention_heads": 24,
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_dropout": 0.0,
        "embedding_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_bias": True,
    },
    keys={"hidden_dropout": "residual_dropout"},
    fixed={},
    norms=2,
    rotary_share=1.0,
    window="all",
    parallel=False,
    embedding_dropout="embedding_dropout",
)

DECODERS: tuple[Family, ...] = (GPT2, GPT_NEOX, OPT, PHI, STARCODER2)
