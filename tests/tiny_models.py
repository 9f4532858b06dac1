"""Tiny base models with a tokenizer of a few dozen words, and datasets that they can learn: for tests only."""

import json
import random
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

Kind = Literal["bert", "llama", "gpt2"]

HIDDEN = 32
LAYERS = 2
POSITIONS = 64
WORDS = tuple(f"w{i}" for i in range(48))
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


def make_tiny_model(folder: Path, kind: Kind, *, seed: int = 0, dropout: float = 0.0, unused_words: int = 0) -> Path:
    """Write a tiny base model with random weights; BERT without a head, the others with their output layer.

    `unused_words` more rows of the embedding make it as large as one likes.
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    model = _model(kind, dropout, len(SPECIAL) + len(WORDS) + unused_words)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and "norm" not in name.lower() and ".ln_" not in name:
            torch.nn.init.normal_(parameter, std=0.1)  # biases of zero would hide mistakes
    progress = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder)
    if progress:
        transformers.logging.enable_progress_bar()
    _tokenizer(kind).save_pretrained(folder)
    return folder


def make_gpt2(folder: Path, width: int, layers: int) -> Path:
    """Write a GPT-2 with random weights of that size, 12 * layers * width**2 of them, and a tiny vocabulary."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    words = len(SPECIAL) + len(WORDS)
    config = transformers.GPT2Config(
        vocab_size=words, n_embd=width, n_layer=layers, n_head=8, n_positions=POSITIONS, bos_token_id=2, eos_token_id=3
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    _tokenizer("gpt2").save_pretrained(folder)
    return folder


def _model(kind: Kind, dropout: float, words: int) -> Any:
    match kind:
        case "bert":
            return transformers.BertModel(
                transformers.BertConfig(
                    vocab_size=words,
                    hidden_size=HIDDEN,
                    num_hidden_layers=LAYERS,
                    num_attention_heads=2,
                    intermediate_size=2 * HIDDEN,
                    max_position_embeddings=POSITIONS,
                    hidden_dropout_prob=dropout,
                    attention_probs_dropout_prob=dropout,
                )
            )
        case "llama":
            return transformers.LlamaForCausalLM(
                transformers.LlamaConfig(
                    vocab_size=words,
                    hidden_size=HIDDEN,
                    num_hidden_layers=LAYERS,
                    num_attention_heads=2,
                    intermediate_size=2 * HIDDEN,
                    max_position_embeddings=POSITIONS,
                    bos_token_id=2,
                    eos_token_id=3,
                )
            )
        case "gpt2":
            return transformers.GPT2LMHeadModel(
                transformers.GPT2Config(
                    vocab_size=words,
                    n_embd=HIDDEN,
                    n_layer=LAYERS,
                    n_head=2,
                    n_positions=POSITIONS,
                    resid_pdrop=dropout,
                    embd_pdrop=dropout,
                    attn_pdrop=dropout,
                    bos_token_id=2,
                    eos_token_id=3,
                )
            )


def _tokenizer(kind: Kind) -> Any:
    words = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if kind == "bert":
        tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    if kind == "llama":
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    padding = {} if kind == "gpt2" else {"pad_token": "<pad>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **padding
    )


def write_classification(path: Path, *, rows: int, seed: int = 0, labels: int = 3) -> Path:
    """Rows of random words; the label is told by one of them."""
    draw = random.Random(seed)
    lines = []
    for _ in range(rows):
        label = draw.randrange(labels)
        words = [draw.choice(WORDS[labels:]) for _ in range(draw.randint(3, 10))]
        words.insert(draw.randrange(len(words)), WORDS[label])
        lines.append(json.dumps({"text": " ".join(words), "label": f"class{label}"}))
    path.write_text("\n".join(lines))
    return path


def write_causal(path: Path, *, rows: int, seed: int = 0) -> Path:
    """Prompts of random words; the target is the first of them, three times."""
    draw = random.Random(seed)
    lines = []
    for _ in range(rows):
        words = [draw.choice(WORDS) for _ in range(draw.randint(2, 8))]
        lines.append(json.dumps({"prompt": " ".join(words), "target": " ".join([words[0]] * 3)}))
    path.write_text("\n".join(lines))
    return path
