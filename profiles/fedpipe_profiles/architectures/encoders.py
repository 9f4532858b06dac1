"""Families that read text in both directions, as data: BERT, RoBERTa and their relatives.

Names, order and defaults are those of the modules and configuration classes of transformers 5
(`transformers/models/<type>/`); `tests/unit/test_architectures.py` compares both.
"""

from dataclasses import replace

from fedpipe_profiles.architectures.family import Family, Frame, Row, Vector

_ROWS = (
    Row("attention.self.query", "queries", "hidden", bias=True),
    Row("attention.self.key", "queries", "hidden", bias=True),
    Row("attention.self.value", "queries", "hidden", bias=True),
    Row("attention.output.dense", "hidden", "queries", bias=True),
    Row("intermediate.dense", "inner", "hidden", bias=True),
    Row("output.dense", "hidden", "inner", bias=True),
)
_DENSE_HEAD = (
    Row("classifier.dense", "hidden", "hidden", bias=True),
    Row("classifier.out_proj", "labels", "hidden", bias=True),
)

BERT = Family(
    model_type="bert",
    layer="bert.encoder.layer.{}.",
    rows=_ROWS,
    tasks={
        "causal-lm": Frame(
            after=(Row("cls.predictions.transform.dense", "hidden", "hidden", bias=True),),
            output="hidden",
            vectors=(Vector("hidden", 2), Vector("vocabulary")),
            untied=(Vector("vocabulary"),),
        ),
        "sequence-classification": Frame(
            after=(Row("bert.pooler.dense", "hidden", "hidden", bias=True),),
            head=(Row("classifier", "labels", "hidden", bias=True),),
        ),
    },
    defaults={
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "tie_word_embeddings": True,
    },
    keys={"hidden_dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"},
    fixed={"add_cross_attention": False},
    norm="layer",
    norm_vectors=2,
    vectors=(Vector("embedding", 2),),
    tables=("max_position_embeddings", "type_vocab_size"),
    gated=False,
    rotary_share=0.0,
    grouped=False,
    even_heads=True,
    own_head_size=False,
    embedding_dropout="hidden_dropout",
)

_ROBERTA_OUTPUT = Frame(
    after=(Row("lm_head.dense", "hidden", "hidden", bias=True),),
    output="hidden",
    vectors=(Vector("hidden", 2), Vector("vocabulary")),
    untied=(Vector("vocabulary"),),
)
ROBERTA = replace(
    BERT,
    model_type="roberta",
    layer="roberta.encoder.layer.{}.",
    tasks={"causal-lm": _ROBERTA_OUTPUT, "sequence-classification": Frame(head=_DENSE_HEAD)},
    defaults={**BERT.defaults, "vocab_size": 50265},
)
_CAMEMBERT_OUTPUT = replace(_ROBERTA_OUTPUT, before=_ROBERTA_OUTPUT.after, after=())
XLM_ROBERTA = replace(
    ROBERTA,
    model_type="xlm-roberta",
    tasks={"causal-lm": _CAMEMBERT_OUTPUT, "sequence-classification": Frame(head=_DENSE_HEAD)},
    defaults=BERT.defaults,
)
CAMEMBERT = replace(XLM_ROBERTA, model_type="camembert")

DISTILBERT = replace(
    BERT,
    model_type="distilbert",
    layer="distilbert.transformer.layer.{}.",
    rows=(
        Row("attention.q_lin", "queries", "hidden", bias=True),
        Row("attention.k_lin", "queries", "hidden", bias=True),
        Row("attention.v_lin", "queries", "hidden", bias=True),
        Row("attention.out_lin", "hidden", "queries", bias=True),
        Row("ffn.lin1", "inner", "hidden", bias=True),
        Row("ffn.lin2", "hidden", "inner", bias=True),
    ),
    tasks={
        "sequence-classification": Frame(
            head=(
                Row("pre_classifier", "hidden", "hidden", bias=True),
                Row("classifier", "labels", "hidden", bias=True),
            )
        ),
    },
    defaults={**BERT.defaults, "num_hidden_layers": 6},
    keys={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout": "dropout",
    },
    fixed={},
    tables=("max_position_embeddings",),
    hidden_dropouts=1,
)

_ELECTRA_PROJECTION = Row("electra.embeddings_project", "hidden", "embedding", bias=True, when="projected")
ELECTRA = replace(
    BERT,
    model_type="electra",
    layer="electra.encoder.layer.{}.",
    tasks={
        "causal-lm": Frame(
            before=(_ELECTRA_PROJECTION,),
            after=(Row("generator_predictions.dense", "embedding", "hidden", bias=True),),
            output="embedding",
            vectors=(Vector("embedding", 2), Vector("vocabulary")),
        ),
        "sequence-classification": Frame(before=(_ELECTRA_PROJECTION,), head=_DENSE_HEAD),
    },
    defaults={
        **BERT.defaults,
        "embedding_size": 128,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
)

ENCODERS: tuple[Family, ...] = (BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, DISTILBERT, ELECTRA)
