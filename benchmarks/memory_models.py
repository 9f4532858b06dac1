"""The models of the memory benchmark: small pretrained ones, and random ones of other families."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """A base in a folder, and what it is trained for; `brief` where it is measured at one size only."""

    name: str
    folder: Path
    task: Task
    held_out: bool = False
    brief: bool = False


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


def _heads(key_value_heads: int = 5) -> dict[str, Any]:
    return {**_COMMON, "num_attention_heads": 5, "num_key_value_heads": key_value_heads}


def _phi3() -> Any:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**_heads(), intermediate_size=432))


def _gpt_neox() -> Any:
    config = {**_COMMON, "num_attention_heads": 5, "intermediate_size": 640}
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**config))


def _opt() -> Any:
    config = {**_COMMON, "num_attention_heads": 5, "ffn_dim": 640, "word_embed_proj_dim": 160}
    return transformers.OPTForCausalLM(transformers.OPTConfig(**config))


def _phi() -> Any:
    return transformers.PhiForCausalLM(transformers.PhiConfig(**_heads(), intermediate_size=640))


def _starcoder2() -> Any:
    return transformers.Starcoder2ForCausalLM(
        transformers.Starcoder2Config(**_heads(1), intermediate_size=640, residual_dropout=0.1)
    )


def _gemma2() -> Any:
    heads = {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 48}
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**_COMMON, **heads, intermediate_size=480))


def _distilbert() -> Any:
    sizes = {"vocab_size": 2 * WORDS, "dim": 160, "n_layers": 4, "n_heads": 5, "hidden_dim": 640}
    return transformers.DistilBertModel(transformers.DistilBertConfig(**sizes))


def _electra() -> Any:
    config = {**_COMMON, "num_attention_heads": 5, "intermediate_size": 640, "embedding_size": 80}
    return transformers.ElectraModel(transformers.ElectraConfig(**config))


def _granite() -> Any:
    return transformers.GraniteForCausalLM(transformers.GraniteConfig(**_heads(), intermediate_size=432))


def _smollm3() -> Any:
    return transformers.SmolLM3ForCausalLM(transformers.SmolLM3Config(**_heads(1), intermediate_size=432))


RANDOM: Mapping[str, tuple[Callable[[], Any], Task]] = {
    "llama": (_llama, "causal-lm"),
    "qwen3": (_qwen3, "causal-lm"),
    "gemma": (_gemma, "causal-lm"),
    "gpt2": (_gpt2, "causal-lm"),
    "roberta": (_roberta, "sequence-classification"),
}
MORE: Mapping[str, tuple[Callable[[], Any], Task]] = {
    "phi3": (_phi3, "causal-lm"),
    "gpt_neox": (_gpt_neox, "causal-lm"),
    "opt": (_opt, "causal-lm"),
    "phi": (_phi, "causal-lm"),
    "starcoder2": (_starcoder2, "causal-lm"),
    "gemma2": (_gemma2, "causal-lm"),
    "distilbert": (_distilbert, "sequence-classification"),
}
"""Families that were held out once: their account was written from their code alone, and mended when it was measured.
They are measured at one size only."""
HELD_OUT: Mapping[str, tuple[Callable[[], Any], Task]] = {
    "electra": (_electra, "sequence-classification"),
    "granite": (_granite, "causal-lm"),
    "smollm3": (_smollm3, "causal-lm"),
}
"""Families of which nothing was ever looked at but their error."""
_ALL = {**RANDOM, **MORE, **HELD_OUT}


def models(folder: Path, seed: int, wanted: Sequence[str] = ()) -> Iterator[Model]:
    """Every model of the grid, or those `wanted`; random ones are written to `folder`, with weights drawn by `seed`."""
    real = [Model("MiniLM", Path(demo_model()), "sequence-classification")]
    real += [Model(name, DATA / name, "causal-lm") for name in ("TinyStories-656K", "stories260k")]
    for model in real:
        if model.folder.is_dir() and (not wanted or model.name in wanted):
            yield model
    for name in _ALL:
        if not wanted or name in wanted:
            yield write_random(folder / name, name, seed)


def write_random(folder: Path, name: str, seed: int) -> Model:
    """One random model with a tokenizer of numbered words."""
    make, task = _ALL[name]
    torch.manual_seed(seed)
    transformers.logging.disable_progress_bar()
    make().save_pretrained(folder)
    words = {f"w{index}": index for index in range(WORDS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w3"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w3", pad_token="w0").save_pretrained(
        folder
    )
    return Model(name, folder, task, held_out=name in HELD_OUT, brief=name not in RANDOM)
