"""Small configurations of every known family, and the comparison with transformers' own modules."""

from typing import Any

import transformers

from fedpipe_agent.train.shape import Task, candidates, head_names, lookups, skeleton
from fedpipe_profiles.architectures.families import FAMILIES
from fedpipe_profiles.architectures.shape import shape_of
from fedpipe_profiles.model import ModelShape

LABELS = 3
HIDDEN = 32
INNER = 80
HEADS = 4
CASES: list[tuple[str, Task]] = [(name, task) for name in FAMILIES for task in FAMILIES[name].tasks]


def small(name: str, **changes: object) -> dict[str, Any]:
    """A config.json of two narrow layers; `changes` by the usual names of the keys."""
    family = FAMILIES[name]
    usual = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "vocab_size": 64,
        **dict.fromkeys(family.tables, 16),
    }
    if family.grouped:
        usual["num_key_value_heads"] = 2
    if "head_dim" in family.defaults:
        usual["head_dim"] = 16
    if "embedding_size" in family.defaults:
        usual["embedding_size"] = HIDDEN // 2
    return {"model_type": name} | {family.keys.get(key, key): value for key, value in (usual | changes).items()}


def real_config(config: dict[str, Any]) -> Any:
    """As transformers understands a config.json."""
    values = {key: value for key, value in config.items() if key != "model_type"}
    return transformers.AutoConfig.for_model(config["model_type"], num_labels=LABELS, pad_token_id=0, **values)


def counted(config: dict[str, Any], task: Task) -> ModelShape:
    """The shape from the configuration alone."""
    return shape_of(config, task=task, num_labels=LABELS)


def assert_counted_as_built(config: dict[str, Any], task: Task) -> None:
    """The same names, order, sizes and numbers as of transformers' own modules on the meta device."""
    shape, model = counted(config, task), skeleton(real_config(config), task)
    parameters = dict(model.named_parameters())
    assert shape.weights == candidates(model, task)
    assert [(part.name, part.shape) for part in shape.head] == [
        (name, tuple(parameters[name].shape)) for name in head_names(model, task)
    ]
    entries = shape.weight_parameters + shape.other_parameters + shape.head_parameters
    assert entries == sum(parameter.numel() for parameter in parameters.values())
    assert shape.lookup_parameters == sum(table.weight.numel() for table in lookups(model))
    assert shape.fused_attention == (model.config._attn_implementation != "eager")
