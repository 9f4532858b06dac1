"""Which part each candidate weight plays in a layer, told by its name.

The names are those of the families in transformers; a model with a weight of another name has no detailed account.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from fedpipe_profiles.model import ModelShape, WeightShape

Role = Literal["query", "key", "value", "fused", "out", "gate", "up", "gate_up", "down"]

_NUMBER = re.compile(r"\.(\d+)\.")
_ENDINGS: Mapping[str, Role] = {
    "q_proj": "query",
    "query": "query",
    "q_lin": "query",
    "k_proj": "key",
    "key": "key",
    "k_lin": "key",
    "v_proj": "value",
    "value": "value",
    "v_lin": "value",
    "c_attn": "fused",
    "qkv_proj": "fused",
    "query_key_value": "fused",
    "o_proj": "out",
    "attn.c_proj": "out",
    "attention.output.dense": "out",
    "attention.dense": "out",
    "self_attn.out_proj": "out",
    "out_lin": "out",
    "self_attn.dense": "out",
    "gate_proj": "gate",
    "gate_up_proj": "gate_up",
    "up_proj": "up",
    "intermediate.dense": "up",
    "c_fc": "up",
    "fc1": "up",
    "lin1": "up",
    "dense_h_to_4h": "up",
    "down_proj": "down",
    "mlp.c_proj": "down",
    "output.dense": "down",
    "fc2": "down",
    "lin2": "down",
    "dense_4h_to_h": "down",
}
_BY_LENGTH = sorted(_ENDINGS, key=len, reverse=True)

Layers = tuple[Mapping[Role, WeightShape], ...]


def sort_weights(shape: ModelShape) -> tuple[Layers, Sequence[WeightShape]] | None:
    """The weights of every layer by their role, and those outside of the layers; None where a name is not known."""
    layers: dict[int, dict[Role, WeightShape]] = {number: {} for number in range(shape.layers)}
    outside: list[WeightShape] = []
    for weight in shape.weights:
        found = _NUMBER.search(weight.name)
        if found is None:
            outside.append(weight)
            continue
        role, number = _role(weight.name), int(found[1])
        if role is None or number not in layers or role in layers[number]:
            return None
        layers[number][role] = weight
    return tuple(layers[number] for number in range(shape.layers)), outside


def _role(name: str) -> Role | None:
    for ending in _BY_LENGTH:
        if name == ending or name.endswith(f".{ending}"):
            return _ENDINGS[ending]
    return None
