"""Tokens and batches: what counts in the loss, what is cut, and that a seed decides the rest."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import WORDS, make_tiny_model

from fedpipe_agent.train.data import (
    IGNORED,
    Encoded,
    Encoder,
    batches,
    collate,
    mean_padded_tokens,
    padded_length,
    sample,
)
from fedpipe_agent.train.errors import DatasetError
from fedpipe_data.examples import CausalExample, ClassificationExample

BEGIN, END = 2, 3


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = make_tiny_model(tmp_path_factory.mktemp("m") / "llama", "llama")
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = make_tiny_model(tmp_path_factory.mktemp("m") / "gpt2", "gpt2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def word(index: int) -> int:
    return 4 + index


def test_only_the_target_and_its_end_count(llama: Any) -> None:
    found = Encoder(llama, (), 16).encode(CausalExample("w1 w2", "w5 w6"))
    assert found.ids == (BEGIN, word(1), word(2), word(5), word(6), END)
    assert found.labels == (IGNORED, IGNORED, IGNORED, word(5), word(6), END)
    assert found.units == 3


def test_a_tokenizer_that_adds_no_begin_gets_none(gpt2: Any) -> None:
    assert Encoder(gpt2, (), 16).encode(CausalExample("w1", "w5")).ids == (word(1), word(5), END)


def test_plain_text_counts_whole(llama: Any) -> None:
    found = Encoder(llama, (), 16).encode(CausalExample("", "w5 w6 w7"))
    assert found.ids == (BEGIN, word(5), word(6), word(7), END)
    assert found.units == 4


@pytest.mark.parametrize(("prompt", "asked"), [("w1 w2", "w1 w2 "), ("w1: ", "w1: "), ("w1\n", "w1\n"), ("", None)])
def test_the_prompt_ends_in_white_space(prompt: str, asked: str | None) -> None:
    seen: list[str] = []

    class Spy:
        bos_token_id = eos_token_id = None
        pad_token_id = 0

        def __call__(self, text: str, **_: object) -> Any:
            seen.append(text)
            return transformers.BatchEncoding({"input_ids": [9] * len(text)})

    Encoder(Spy(), (), 64).encode(CausalExample(prompt, "t"))
    assert seen == ["", *([asked] if asked else []), "t"]


@given(before=st.integers(0, 40), after=st.integers(1, 40), length=st.integers(2, 24))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_cutting_keeps_the_nearer_prompt_and_half_for_the_target(
    llama: Any, before: int, after: int, length: int
) -> None:
    prompt = [word(i % len(WORDS)) for i in range(before)]
    example = CausalExample(
        " ".join(f"w{i % len(WORDS)}" for i in range(before)), " ".join(f"w{i % 7}" for i in range(after))
    )
    found = Encoder(llama, (), length).encode(example)
    assert len(found.ids) == min(length, 1 + before + after + 1)
    assert found.labels is not None
    target = [label for label in found.labels if label != IGNORED]
    assert len(target) >= min(after + 1, length // 2)
    kept = found.ids[: len(found.ids) - len(target)]
    assert list(kept) == [BEGIN, *prompt][1 + before - len(kept) :]


def test_classification_is_cut_and_indexed(llama: Any) -> None:
    encoder = Encoder(llama, ("no", "yes"), 4)
    found = encoder.encode(ClassificationExample("w1 w2 w3 w4 w5", "yes"))
    assert found == Encoded((BEGIN, word(1), word(2), word(3)), target=1)
    with pytest.raises(DatasetError, match="'maybe' is not one of the job's labels: 'no', 'yes'"):
        encoder.encode(ClassificationExample("w1", "maybe"))


def test_collate_pads_on_the_right() -> None:
    examples = [Encoded((5, 6, 7), labels=(IGNORED, 6, 7)), Encoded((8,), labels=(8,))]
    batch = collate(examples, pad_id=9, sequence_length=64, device="cpu")
    assert batch.ids.tolist() == [[5, 6, 7, 9, 9, 9, 9, 9], [8, 9, 9, 9, 9, 9, 9, 9]]
    assert batch.mask.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[IGNORED, 6, 7, *[IGNORED] * 5], [8, *[IGNORED] * 7]]
    assert batch.units.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("longest", "limit", "expected"), [(1, 64, 8), (8, 64, 8), (9, 64, 16), (9, 10, 10), (7, 7, 7)]
)
def test_padding_is_to_eight_but_never_above_the_sequence_length(longest: int, limit: int, expected: int) -> None:
    assert padded_length([Encoded((1,) * longest, target=0)], limit) == expected


@given(count=st.integers(1, 30), size=st.integers(1, 7), wanted=st.integers(1, 90), seed=st.integers(0, 5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_batches_hold_exactly_what_is_wanted(llama: Any, count: int, size: int, wanted: int, seed: int) -> None:
    encoder = Encoder(llama, ("a",), 64)
    examples = [ClassificationExample(" ".join(["w1"] * (i + 1)), "a") for i in range(count)]

    def draw() -> list[list[Encoded]]:
        return list(batches(examples, encoder, batch_size=size, wanted=wanted, seed=seed))

    found = draw()
    assert found == draw()
    assert sum(len(group) for group in found) == wanted
    assert max(len(group) for group in found) <= size
    times = [sum(e == encoder.encode(x) for group in found for e in group) for x in examples]
    assert max(times) - min(times) <= 1  # the dataset is gone over evenly


def test_batches_of_like_lengths_waste_less(llama: Any) -> None:
    encoder = Encoder(llama, ("a",), 64)
    examples = [ClassificationExample(" ".join(["w1"] * (1 + i % 60)), "a") for i in range(240)]
    bucketed = mean_padded_tokens(list(batches(examples, encoder, batch_size=8, wanted=240, seed=0)), 64)
    drawn = [encoder.encode(e) for e in sample(examples, 240, 0)]
    plain = mean_padded_tokens([drawn[i : i + 8] for i in range(0, 240, 8)], 64)
    true = sum(len(e.ids) for e in drawn) / 240
    assert true <= bucketed < true + 8 < plain
