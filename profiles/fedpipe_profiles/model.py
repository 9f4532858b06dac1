"""The shape of a model, as far as planning and aggregation need it: no tensor, no library.

The agents read it from the real modules on the meta device, so it holds for any architecture that transformers loads.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import Field

from fedpipe_profiles.values import Count, PositiveSize, Share, Size, Value

_DERIVED = ("weight_parameters", "weight_widths", "largest_weight", "output_features", "head_parameters", "_by_name")
_MOST_PLACES = 8
"""Norms or dropouts of one layer; known architectures have at most 4."""


class WeightShape(Value):
    """One linear layer's matrix, `(d_out, d_in)`; `name` is the module's dotted path in the plain model."""

    name: str = Field(max_length=300)
    d_out: PositiveSize
    d_in: PositiveSize
    transposed: bool = Field(default=False, description="stored as (d_in, d_out), as GPT-2's Conv1D does")

    @property
    def parameters(self) -> int:
        """Number of entries of the matrix."""
        return self.d_out * self.d_in


class ParameterShape(Value):
    """A parameter trained whole, such as a classification head's weight or bias."""

    name: str = Field(max_length=300)
    shape: tuple[PositiveSize, ...] = Field(max_length=4)

    @property
    def parameters(self) -> int:
        """Number of entries."""
        count = 1
        for size in self.shape:
            count *= size
        return count


class BlockShape(Value):
    """How one transformer layer computes, as far as its cost in memory and time depends on it."""

    norm: Literal["layer", "rms"]
    norms: int = Field(
        default=2, gt=0, le=_MOST_PLACES, description="over the hidden width, per layer; 4 where outputs have their own"
    )
    head_norms: bool = Field(default=False, description="queries and keys are normalised per head")
    key_value_heads: PositiveSize = Field(description="fewer than the heads where they are grouped")
    head_size: PositiveSize
    rotary_size: Size = Field(default=0, description="entries of a head that positions rotate; 0 for learned positions")
    gated: bool = Field(default=False, description="the feed-forward part multiplies two products")
    activation: str = Field(max_length=50, description="of the feed-forward part, by its name in transformers")
    hidden_dropout: Share = 0.0
    attention_dropout: Share = 0.0
    window: Size = Field(default=0, description="tokens that attention looks back, where all layers do alike; else 0")
    parallel: bool = Field(default=False, description="attention and feed-forward part read the same input")
    hidden_dropouts: int = Field(
        default=2, ge=0, le=_MOST_PLACES, description="places of a layer where the hidden dropout acts"
    )
    embedding_dropout: Share = Field(default=0.0, description="after the embeddings")
    score_cap: bool = Field(default=False, description="attention scores are bounded by a tanh")
    logit_cap: bool = Field(default=False, description="the model's output is bounded by a tanh")


class ModelShape(Value):
    """What a base model is made of."""

    model_type: str = Field(max_length=100)
    layers: PositiveSize
    hidden_size: PositiveSize
    intermediate_size: PositiveSize
    heads: PositiveSize
    vocabulary_size: PositiveSize
    weights: tuple[WeightShape, ...] = Field(min_length=1, description="the candidates for adapters, quantizable")
    other_parameters: Count = Field(description="embeddings, norms, biases, output head: never quantized")
    lookup_parameters: Count = Field(
        default=0,
        description="of the other parameters, tables that are only looked up: bf16 beside a quantized base",
    )
    head: tuple[ParameterShape, ...] = Field(
        default=(), description="new parameters that are trained and averaged whole"
    )
    block: BlockShape | None = Field(default=None, description="None for an architecture that is not known in detail")
    fused_attention: bool = Field(default=True, description="attention scores are never stored (SDPA, flash)")
    fingerprint: str = Field(max_length=64, description="sha256 over the base model's tensors: all silos must agree")

    @cached_property
    def weight_parameters(self) -> int:
        """Entries of all candidate matrices."""
        return sum(weight.parameters for weight in self.weights)

    @cached_property
    def weight_widths(self) -> int:
        """`d_in + d_out` of all candidate matrices: parameters of a rank on each of them."""
        return sum(weight.d_in + weight.d_out for weight in self.weights)

    @cached_property
    def largest_weight(self) -> int:
        """Entries of the largest candidate matrix."""
        return max(weight.parameters for weight in self.weights)

    @cached_property
    def output_features(self) -> int:
        """Rows of all candidate matrices."""
        return sum(weight.d_out for weight in self.weights)

    @cached_property
    def head_parameters(self) -> int:
        """Entries of the parameters trained whole."""
        return sum(parameter.parameters for parameter in self.head)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's; what follows from weights that may have been replaced is found anew."""
        copy = super().model_copy(update=update, deep=deep)
        for name in _DERIVED:
            copy.__dict__.pop(name, None)
        return copy

    def weight(self, name: str) -> WeightShape:
        """The weight of that name.

        Raises:
            KeyError: if the model has no such weight.
        """
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, WeightShape]:
        """Of two weights of one name, which no model has, the first."""
        return {weight.name: weight for weight in reversed(self.weights)}
