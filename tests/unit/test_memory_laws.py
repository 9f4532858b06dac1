"""Laws of the counted memory of a step that hold for any model that is known, whatever its sizes."""

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe_profiles.architectures.shape import shape_of
from fedpipe_profiles.costs.memory import MemoryCoefficients, memory_rows, predict_memory
from fedpipe_profiles.costs.step import StepConfig, adapter_size
from fedpipe_profiles.model import ModelShape

EXACT = MemoryCoefficients(activation_scale=1.0, slack_bytes=0)
RANK = 8
FAMILIES = ("llama", "qwen3", "gemma", "gemma2", "phi3", "gpt_neox", "phi", "starcoder2")


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    """A model of a known family, of small sizes."""
    heads, head = draw(st.integers(1, 6)), 2 * draw(st.integers(2, 16))
    family = draw(st.sampled_from(FAMILIES))
    config: dict[str, Any] = {
        "model_type": family,
        "hidden_size": heads * head,
        "num_hidden_layers": draw(st.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from((1, heads))),
        "intermediate_size": draw(st.integers(4, 200)),
        "vocab_size": draw(st.integers(8, 2000)),
        "head_dim": head,
        "partial_rotary_factor": 1.0,
        "rotary_pct": 1.0,
        "sliding_window": None,
    }
    return shape_of(config, task="causal-lm", num_labels=0, fingerprint="0" * 64)


@st.composite
def steps(draw: st.DrawFn) -> tuple[ModelShape, StepConfig]:
    """A step of such a model, with a rank on every weight."""
    shape = draw(shapes())
    return shape, StepConfig(
        bits=draw(st.sampled_from((4, 8, 16, 32))),
        batch_size=draw(st.integers(1, 8)),
        sequence_length=draw(st.integers(2, 128)),
        gradient_checkpointing=draw(st.booleans()),
        task="causal-lm",
        kind=draw(st.sampled_from(("cpu", "cuda"))),
        padded=draw(st.booleans()),
        ranks={weight.name: draw(st.integers(0, RANK)) for weight in shape.weights},
        global_rank=RANK,
    )


def _total(shape: ModelShape, config: StepConfig) -> int:
    return predict_memory(shape, config, EXACT).total_bytes


@settings(max_examples=60, deadline=None)
@given(steps())
def test_more_examples_or_tokens_never_need_less(drawn: tuple[ModelShape, StepConfig]) -> None:
    shape, config = drawn
    now = _total(shape, config)
    assert _total(shape, replace(config, batch_size=config.batch_size + 1)) >= now
    assert _total(shape, replace(config, sequence_length=config.sequence_length + 1)) >= now


@settings(max_examples=60, deadline=None)
@given(steps())
def test_rows_bound_every_choice_of_ranks(drawn: tuple[ModelShape, StepConfig]) -> None:
    shape, config = drawn
    whole = RANK * sum(w.d_in + w.d_out for w in shape.weights)
    size = adapter_size(shape, config.ranks, RANK)
    rows = memory_rows(shape, config, whole, EXACT)
    assert max(row.at(size.trainable_parameters, size.rank_sum) for row in rows) >= _total(shape, config)


@settings(max_examples=60, deadline=None)
@given(steps())
def test_terms_are_whole_and_sum_to_the_total(drawn: tuple[ModelShape, StepConfig]) -> None:
    shape, config = drawn
    found = predict_memory(shape, config, EXACT)
    terms = [
        found.quantized_base,
        found.unquantized,
        found.adapter_side_path,
        found.trainable_state,
        found.scaled_bytes,
        found.slack,
    ]
    assert min(terms) >= 0
    assert sum(terms) == found.total_bytes


@settings(max_examples=60, deadline=None)
@given(steps(), st.data())
def test_another_trained_rank_never_needs_less(drawn: tuple[ModelShape, StepConfig], data: st.DataObject) -> None:
    shape, config = drawn
    # with no rank at all, or all of them, one of the two paths is not there
    ranks = {name: min(max(rank, 1), RANK - 2) for name, rank in config.ranks.items()}
    name = data.draw(st.sampled_from(sorted(ranks)))
    more = ranks | {name: ranks[name] + 1}
    assert _total(shape, replace(config, ranks=more)) >= _total(shape, replace(config, ranks=ranks))


@settings(max_examples=60, deadline=None)
@given(steps())
def test_checkpointing_holds_no_more_but_its_own_buffers(drawn: tuple[ModelShape, StepConfig]) -> None:
    shape, config = drawn
    without = _total(shape, replace(config, gradient_checkpointing=False))
    # the input of every layer, and beside the layer that is computed again, its output's gradient and the scaled one
    own = (shape.layers + 2) * config.tokens * shape.hidden_size * 4
    assert _total(shape, replace(config, gradient_checkpointing=True)) <= without + own + 16
