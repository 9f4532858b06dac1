"""Shapes counted from a configuration alone are those of transformers' own modules on the meta device."""

from typing import Any

import pytest
import transformers

from fedpipe_agent.train.shape import Task, candidates, head_names, lookups, skeleton
from fedpipe_profiles.architectures.families import FAMILIES
from fedpipe_profiles.architectures.shape import shape_of
from fedpipe_profiles.model import ModelShape

TASKS: tuple[Task, ...] = ("causal-lm", "sequence-classification")
LABELS = 3


def real_model(config: dict[str, Any], task: Task) -> Any:
    values = {key: value for key, value in config.items() if key != "model_type"}
    return skeleton(transformers.AutoConfig.for_model(config["model_type"], num_labels=LABELS, **values), task)


def assert_counted_as(shape: ModelShape, model: Any, task: Task) -> None:
    parameters = dict(model.named_parameters())
    assert shape.weights == candidates(model, task)
    assert [(part.name, part.shape) for part in shape.head] == [
        (name, tuple(parameters[name].shape)) for name in head_names(model, task)
    ]
    counted = shape.weight_parameters + shape.other_parameters + shape.head_parameters
    assert counted == sum(parameter.numel() for parameter in parameters.values())
    assert shape.lookup_parameters == sum(table.weight.numel() for table in lookups(model))
    assert shape.fused_attention == (model.config._attn_implementation != "eager")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("name", "task"), [(name, task) for name in FAMILIES for task in FAMILIES[name].tasks])
def test_defaults_are_those_of_transformers(name: str, task: Task, tied: bool) -> None:  # noqa: FBT001 - a parameter
    config = {"model_type": name, "tie_word_embeddings": tied}
    assert_counted_as(shape_of(config, task=task, num_labels=LABELS), real_model(config, task), task)
