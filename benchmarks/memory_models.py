"""The models of the memory benchmark: small pretrained ones, and random ones of other families."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from fedpipe_agent.train.shape import Task
from fedpipe_coordinator.demo.command import demo_model

DATA = Path(__file__).parents[1] / ".." / "shared" / "data" / "models"
LABELS = ("class0", "class1", "class2")
WORDS = 500
_COMMON: Mapping[str, Any] = {
    "vocab_size": 2 * WORDS,
    "hidden_size": 160,
    "num_hidden_layers": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True, slots=True)
class Model:
    """A base in a folder, and what it is trained for."""

    name: str
    folder: Path
    task: Task


def _llama() -> Any:
    heads = {"num_attention_heads": 5, "num_key_value_heads": 5}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_COMMON, **heads, intermediate_size=432))


def _qwen3() -> Any:
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_COMMON, **heads, intermediate_size=400))


def _gemma() -> Any:
    heads = {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 32}
    return transformers.GemmaForCausalLM(transformers.GemmaConfig(**_COMMON, **heads, intermediate_size=640))


def _gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=2 * WORDS, n_embd=160, n_layer=4, n_head=5, n_positions=512, bos_token_id=1, eos_token_id=2
        )
    )


def _roberta() -> Any:
    return transformers.RobertaModel(
        transformers.RobertaConfig(
            **{**_COMMON, "max_position_embeddings": 514, "pad_token_id": 1},
            num_attention_heads=5,
            intermediate_size=640,
        )
    )


RANDOM: Mapping[str, tuple[Callable[[], Any], Task]] = {
    "llama": (_llama, "causal-lm"),
    "qwen3": (_qwen3, "causal-lm"),
    "gemma": (_gemma, "causal-lm"),
    "gpt2": (_gpt2, "causal-lm"),
    "roberta": (_roberta, "sequence-classification"),
}


def models(folder: Path, seed: int) -> list[Model]:
    """Every model of the grid; those that are not pretrained are written to `folder`, with weights drawn by `seed`."""
    pretrained = [Model(name, DATA / name, "causal-lm") for name in ("TinyStories-656K", "stories260k")]
    found = [Model("MiniLM", Path(demo_model()), "sequence-classification")]
    found += [model for model in pretrained if model.folder.is_dir()]
    return found + [write_random(folder / name, name, seed) for name in RANDOM]


def write_random(folder: Path, name: str, seed: int) -> Model:
    """One random model with a tokenizer of numbered words."""
    make, task = RANDOM[name]
    torch.manual_seed(seed)
    transformers.logging.disable_progress_bar()
    make().save_pretrained(folder)
    words = {f"w{index}": index for index in range(WORDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w3"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w3", pad_token="w0").save_pretrained(
        folder
    )
    return Model(name, folder, task)
