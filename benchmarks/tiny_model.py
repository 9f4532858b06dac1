"""A tiny BERT with random weights and rows that it can learn, for a chaos run with the real trainer."""

import json
import random
from pathlib import Path

HIDDEN, LAYERS, POSITIONS, WORDS, LABELS = 32, 2, 32, 40, 3
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


def write_model(folder: Path, seed: int) -> Path:
    """A checkpoint with its tokenizer of a few dozen words; the folder."""
    import torch  # noqa: PLC0415 - seconds, and only where the real trainer is asked for
    import transformers  # noqa: PLC0415 - same
    from tokenizers import Tokenizer  # noqa: PLC0415 - same
    from tokenizers.models import WordLevel  # noqa: PLC0415 - same
    from tokenizers.pre_tokenizers import WhitespaceSplit  # noqa: PLC0415 - same

    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + WORDS,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    transformers.logging.disable_progress_bar()
    transformers.BertModel(config).save_pretrained(folder)
    words = {word: index for index, word in enumerate((*SPECIAL, *_words()))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
    ).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: int, seed: int) -> Path:
    """Rows of random words, labelled by one of them; the file."""
    draw = random.Random(seed)
    lines = []
    for _ in range(rows):
        label, words = draw.randrange(LABELS), draw.choices(_words()[LABELS:], k=6)
        words.insert(draw.randrange(len(words)), _words()[label])
        lines.append(json.dumps({"text": " ".join(words), "label": f"label{label}"}))
    path.write_text("\n".join(lines) + "\n")
    return path


def _words() -> list[str]:
    return [f"w{number}" for number in range(WORDS)]
