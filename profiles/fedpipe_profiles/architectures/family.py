"""How a family of architectures is described: rows of linear layers, the vectors and tables beside them, its figures.

Owns the vocabulary of these descriptions only. The families themselves are data in `decoders.py` and `encoders.py`;
`figures.py` reads a configuration by them and `shape.py` counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedpipe_profiles.costs.step import Task

Width = Literal["hidden", "queries", "keys", "qkv", "inner", "twice_inner", "embedding", "head", "vocabulary", "labels"]
"""A dimension, by what it stands for: `queries` is heads x head size, `keys` key-value heads x head size, `qkv`
queries, keys and values fused, `twice_inner` gate and up fused, `head` one head's size."""

Window = Literal["none", "all", "switched"]
"""Whether `sliding_window` bounds every layer, none alike, or those that `use_sliding_window` and `max_window_layers`
choose."""


@dataclass(frozen=True, slots=True)
class Row:
    """One linear layer; `bias` and `when` may name a switch of the configuration."""

    name: str
    d_out: Width
    d_in: Width
    bias: bool | str = False
    when: str = ""


@dataclass(frozen=True, slots=True)
class Vector:
    """`count` vectors of one width that are no linear layer's bias: norms, and biases of an output."""

    width: Width
    count: int = 1
    when: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """What a task puts around the layers; rows are in the order of the real modules."""

    before: tuple[Row, ...] = ()
    after: tuple[Row, ...] = ()
    head: tuple[Row, ...] = ()
    """Trained whole."""
    output: Width | None = None
    """What the output matrix maps to the vocabulary; None where there is none."""
    vectors: tuple[Vector, ...] = ()
    untied: tuple[Vector, ...] = ()
    """Only where the output matrix is not the embedding's."""


@dataclass(frozen=True, slots=True)
class Family:
    """One model type. `defaults` has transformers' values of the keys that a configuration may leave out.

    A default of None for key-value heads, head size or intermediate size means that it follows from the others.
    """

    model_type: str
    layer: str
    """The modules' path up to a layer, with a place for its number: `model.layers.{}.`."""
    rows: tuple[Row, ...]
    tasks: Mapping[Task, Frame]
    defaults: Mapping[str, object]
    norm: Literal["layer", "rms"]
    keys: Mapping[str, str] = field(default_factory=dict)
    """The family's own names of the usual keys."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """Keys of which only one value is known; it is also the default."""
    transposed: bool = False
    """Whether the layers' matrices are stored as (d_in, d_out)."""
    vectors: tuple[Vector, ...] = ()
    """Of the whole model, beside the layers and the task."""
    tables: tuple[str, ...] = ()
    """Keys with the rows of further tables, as wide as `table_width`: positions, token types."""
    table_width: Width = "embedding"
    table_offset: int = 0
    """Rows that the first of these tables has beyond its key's value."""
    norms: int = 2
    norm_vectors: int = 1
    """Vectors per norm: 2 with a bias."""
    head_norms: bool = False
    gated: bool = True
    rotary_share: float = 1.0
    """Share of a head that positions rotate where the configuration does not say; 0 for learned positions."""
    window: Window = "none"
    parallel: bool | str = False
    """Whether, or by which switch, attention and feed-forward part read the same input."""
    hidden_dropouts: int = 2
    """Places of a layer where the hidden dropout acts."""
    embedding_dropout: str = ""
    """The key of the dropout after the embeddings; none where it is empty."""
    fused_attention: bool = True
    grouped: bool = True
    """Whether there may be fewer key-value heads than heads."""
    even_heads: bool = False
    """Whether the hidden size must be a multiple of the heads even if the head size is given."""
    own_head_size: bool = True
    """Whether the configuration may give the head size."""
    old_activations: Mapping[str, str] = field(default_factory=dict)
