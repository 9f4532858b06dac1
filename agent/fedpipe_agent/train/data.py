"""Examples become token ids, token ids become batches.

Text of a classification example is cut to the sequence length. A causal example is `prompt`, a space unless the
prompt is empty or ends in white space, `target`, and the tokenizer's end token; only the target counts in the loss.
Whoever uses the merged model asks it the same way: the prompt, the space, then generate.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedpipe_agent.train.errors import DatasetError
from fedpipe_data.examples import CausalExample, ClassificationExample

Example = ClassificationExample | CausalExample

IGNORED = -100
"""The label of a token that does not count in the loss."""

PAD_TO = 8
"""Batches are padded to a multiple of this: fewer distinct shapes, less fragmentation, whole tensor-core tiles."""

WINDOW_BATCHES = 16
"""Batches are formed within shuffled windows of this many, sorted by length."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example in tokens. Exactly one of `target` (class index) and `labels` (per token) is set."""

    ids: tuple[int, ...]
    target: int | None = None
    labels: tuple[int, ...] | None = None

    @property
    def units(self) -> int:
        """What a loss is averaged over: 1 for a class, the number of predicted target tokens for text."""
        if self.labels is None:
            return 1
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of one batch: `ids` and `mask` (b, t); `targets` (b,) classes or (b, t) labels; `units` (b,)."""

    ids: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    units: torch.Tensor

    @property
    def tokens(self) -> int:
        """Padded tokens."""
        return self.ids.numel()


class Encoder:
    """Turns examples into tokens. It keeps none: tokenizing costs far less than a step, and tokens more than text.

    Args:
        tokenizer: Of the base model.
        labels: Class names in the order of their indices; empty for causal-lm.
        sequence_length: Longest example in tokens.
    """

    def __init__(self, tokenizer: Any, labels: Sequence[str], sequence_length: int) -> None:
        self._tokenizer = tokenizer
        self._index: Mapping[str, int] = {label: i for i, label in enumerate(labels)}
        self._length = sequence_length
        empty = tokenizer("").input_ids
        begin = tokenizer.bos_token_id
        self._begin = [begin] if begin is not None and empty[:1] == [begin] else []
        self.pad_id: int = tokenizer.pad_token_id

    def encode(self, example: Example) -> Encoded:
        """Tokens of one example.

        Raises:
            DatasetError: if its label is not among those of the job.
        """
        if isinstance(example, CausalExample):
            return self._causal(example)
        if example.label not in self._index:
            known = ", ".join(repr(label) for label in list(self._index)[:10])
            raise DatasetError(f"label {example.label!r} is not one of the job's labels: {known}")
        tokens = self._tokenizer(example.text, truncation=True, max_length=self._length).input_ids
        return Encoded(tuple(tokens), target=self._index[example.label])

    def _causal(self, example: CausalExample) -> Encoded:
        prompt = example.prompt
        if prompt and not prompt[-1].isspace():
            prompt += " "
        before = self._begin + (self._plain(prompt) if prompt else [])
        target = self._plain(example.target)
        if self._tokenizer.eos_token_id is not None:
            target.append(self._tokenizer.eos_token_id)
        # a long prompt gives way first, from its beginning, until the target has half of the length
        target = target[: max(self._length // 2, self._length - len(before))]
        room = self._length - len(target)
        before = before if len(before) <= room else before[len(before) - room :]
        labels = (IGNORED,) * len(before) + tuple(target)
        return Encoded((*before, *target), labels=labels)

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)


def padded_length(examples: Sequence[Encoded], sequence_length: int) -> int:
    """Tokens per example of a batch: the longest, rounded up, but never above the sequence length."""
    longest = max(len(example.ids) for example in examples)
    return max(longest, min(sequence_length, -(-longest // PAD_TO) * PAD_TO))


def collate(examples: Sequence[Encoded], *, pad_id: int, sequence_length: int, device: str) -> Batch:
    """Pad examples on the right into one batch."""
    length = padded_length(examples, sequence_length)

    def rows(of: Callable[[Encoded], Sequence[int]], fill: int) -> torch.Tensor:
        return torch.tensor([[*of(e), *[fill] * (length - len(e.ids))] for e in examples], device=device)

    targets = (
        torch.tensor([e.target for e in examples], device=device)
        if examples[0].labels is None
        else rows(lambda e: e.labels or (), IGNORED)
    )
    return Batch(
        ids=rows(lambda e: e.ids, pad_id),
        mask=rows(lambda e: (1,) * len(e.ids), 0),
        targets=targets,
        units=torch.tensor([e.units for e in examples], device=device),
    )


def batches(
    examples: Sequence[Example], encoder: Encoder, *, batch_size: int, wanted: int, seed: int
) -> Iterator[list[Encoded]]:
    """Exactly `wanted` examples in shuffled batches of like lengths, going over the dataset as often as needed.

    The same seed, examples and batch size give the same batches.
    """
    order = random.Random(seed)
    left = wanted
    pending: list[Example] = []
    window = WINDOW_BATCHES * batch_size
    while left > 0:
        while len(pending) < min(window, left):
            pending += order.sample(list(examples), len(examples))
        taken, pending = pending[: min(window, left)], pending[min(window, left) :]
        left -= len(taken)
        encoded = sorted((encoder.encode(example) for example in taken), key=lambda e: len(e.ids))
        groups = [encoded[i : i + batch_size] for i in range(0, len(encoded), batch_size)]
        order.shuffle(groups)
        yield from groups


def sample(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """At most `count` of the examples, drawn without replacement by `seed`."""
    return random.Random(seed).sample(list(examples), min(count, len(examples)))


def mean_padded_tokens(groups: Sequence[Sequence[Encoded]], sequence_length: int) -> float:
    """Padded tokens per example, mean over batches."""
    tokens = sum(padded_length(group, sequence_length) * len(group) for group in groups)
    return tokens / sum(len(group) for group in groups)
