"""The catalogue's figures give the parameter totals that the models are published with."""

from importlib.resources import files

import pytest
import transformers

from fedpipe_profiles.architectures.positions import longest_sequence
from fedpipe_profiles.architectures.shape import shape_of
from fedpipe_profiles.catalog.model_catalogue import CataloguedModel, catalogue, catalogued_model, names
from fedpipe_profiles.costs.step import Task

PUBLISHED: dict[str, tuple[Task, int]] = {
    "meta-llama/Llama-2-7b-hf": ("causal-lm", 6_738_415_616),
    "meta-llama/Llama-2-70b-hf": ("causal-lm", 68_976_648_192),
    "meta-llama/Llama-3.1-8B": ("causal-lm", 8_030_261_248),
    "meta-llama/Llama-3.1-70B": ("causal-lm", 70_553_706_496),
    "meta-llama/Llama-3.2-1B": ("causal-lm", 1_235_814_400),
    "mistralai/Mistral-7B-v0.3": ("causal-lm", 7_248_023_552),
    "Qwen/Qwen2.5-0.5B": ("causal-lm", 494_032_768),
    "Qwen/Qwen2.5-7B": ("causal-lm", 7_615_616_512),
    "Qwen/Qwen3-8B": ("causal-lm", 8_190_735_360),
    "google/gemma-2-9b": ("causal-lm", 9_241_705_984),
    "microsoft/Phi-3-mini-4k-instruct": ("causal-lm", 3_821_079_552),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("causal-lm", 1_100_048_384),
    "HuggingFaceTB/SmolLM2-1.7B": ("causal-lm", 1_711_376_384),
    "openai-community/gpt2": ("causal-lm", 124_439_808),
    "openai-community/gpt2-xl": ("causal-lm", 1_557_611_200),
    "google-bert/bert-base-uncased": ("sequence-classification", 109_483_778),
    "google-bert/bert-large-uncased": ("sequence-classification", 335_143_938),
    "FacebookAI/roberta-base": ("sequence-classification", 124_647_170),
    "sentence-transformers/all-MiniLM-L6-v2": ("sequence-classification", 22_713_986),
}
"""As the checkpoints are published; classifiers with a head for two labels."""


@pytest.mark.parametrize("hub_id", PUBLISHED)
def test_totals_are_the_published_ones(hub_id: str) -> None:
    config = catalogued_model(hub_id)
    assert config is not None
    task, total = PUBLISHED[hub_id]
    shape = shape_of(config, task=task, num_labels=2)
    assert shape.weight_parameters + shape.other_parameters + shape.head_parameters == total


def test_every_model_of_the_catalogue_has_a_published_total() -> None:
    assert {model.hub_ids[0] for model in catalogue()} == set(PUBLISHED)


def test_a_7b_llama_has_224_weights() -> None:
    shape = shape_of(catalogued_model("meta-llama/Llama-2-7b-hf") or {}, task="causal-lm")
    assert len(shape.weights) == 224


def test_names_are_found_in_any_case_and_others_are_not() -> None:
    assert len({name.casefold() for name in names()}) == len(names())
    for name in names():
        assert catalogued_model(name.upper()) == catalogued_model(name.lower()) != None  # noqa: E711 - a chain
    for unknown in ("", "gpt3", "../models/gpt2", "meta-llama", "\x1b[31m" * 1000):
        assert catalogued_model(unknown) is None


def test_a_catalogued_model_cannot_be_changed() -> None:
    config = catalogued_model("gpt2")
    assert config is not None
    with pytest.raises(TypeError):
        config["n_embd"] = 1  # type: ignore[index] # what the test is about


def test_every_file_names_its_source_and_is_read() -> None:
    folder = files("fedpipe_profiles.catalog") / "models"
    assert len(list(folder.iterdir())) == len(catalogue())
    for model in catalogue():
        assert model.source.startswith(f"config.json of {model.hub_ids[0]}")


@pytest.mark.parametrize("model", catalogue(), ids=lambda model: model.hub_ids[0])
def test_positions_are_those_that_transformers_reads(model: CataloguedModel) -> None:
    values = {key: value for key, value in model.config.items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(model.config["model_type"], **values)
    assert longest_sequence(model.config) == config.max_position_embeddings


@pytest.mark.parametrize("value", [None, 0, -1, "many", True, 1e308])
def test_absurd_positions_are_none(value: object) -> None:
    assert longest_sequence({"model_type": "llama", "max_position_embeddings": value}) is None
    assert longest_sequence({"model_type": value}) is None
