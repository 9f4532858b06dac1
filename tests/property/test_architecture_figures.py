"""Drawn configurations: counted as built, and whatever a file holds, counted or refused."""

from typing import Any

import hypothesis.strategies as st
import pytest
from architecture_cases import CASES, LABELS, assert_counted_as_built, small
from hypothesis import HealthCheck, given, settings

from fedpipe_profiles.architectures.families import FAMILIES
from fedpipe_profiles.architectures.shape import ArchitectureError, shape_of
from fedpipe_profiles.model import ModelShape

SWITCHES = (
    "attention_bias",
    "attention_out_bias",
    "mlp_bias",
    "use_bias",
    "enable_bias",
    "do_layer_norm_before",
    "use_parallel_residual",
)


@st.composite
def drawn(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """A small model that transformers builds, with every figure of its own."""
    family = FAMILIES[name]
    kv_heads, group, head = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5)) * 8
    heads = kv_heads * group
    values: dict[str, Any] = {
        "hidden_size": heads * head,
        "num_attention_heads": heads,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "intermediate_size": draw(st.integers(1, 200)),
        "vocab_size": draw(st.integers(2, 300)),
        "tie_word_embeddings": draw(st.booleans()),
    }
    values |= {key: draw(st.integers(1, 40)) for key in family.tables}
    if family.grouped:
        values["num_key_value_heads"] = draw(st.sampled_from([kv_heads, heads]))
    if "head_dim" in family.defaults or name in ("llama", "mistral"):
        values["head_dim"] = draw(st.integers(1, 24)) * 2
    if family.keys.get("embedding_size") or "embedding_size" in family.defaults:
        values["embedding_size"] = draw(st.sampled_from([values["hidden_size"], 8, 40]))
    values |= {key: draw(st.booleans()) for key in SWITCHES if key in family.defaults}
    return small(name, **values)


@pytest.mark.parametrize(("name", "task"), CASES)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_drawn_models_are_counted_as_they_are_built(name: str, task: Any, data: st.DataObject) -> None:
    assert_counted_as_built(data.draw(drawn(name)), task)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted(
    {key for family in FAMILIES.values() for key in (*family.defaults, *family.keys.values(), *family.fixed)}
    | {"num_key_value_heads", "head_dim", "rope_parameters", "rope_scaling", "partial_rotary_factor", "layer_types"}
)


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(FAMILIES)) | st.text(max_size=40),
    spoilt=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=20), ANYTHING, max_size=5),
)
def test_whatever_a_file_holds_is_counted_or_refused(task: Any, name: str, spoilt: dict[str, Any]) -> None:
    base = small(name) if name in FAMILIES else {"model_type": name}
    try:
        shape = shape_of(base | spoilt, task=task, num_labels=LABELS)
    except ArchitectureError as error:
        said = str(error)
    else:
        said = ""
        assert ModelShape.model_validate_json(shape.model_dump_json()) == shape
    assert said.isprintable()
    assert len(said) < 2000
