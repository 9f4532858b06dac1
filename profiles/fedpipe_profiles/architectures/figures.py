"""The figures of a configuration, read by its family's description: each one bounded, all problems reported at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedpipe_profiles.architectures.errors import ArchitectureError, quoted
from fedpipe_profiles.architectures.family import Family, Width

MAX_LAYERS = 4096
"""More than any model has, and few enough that naming every weight takes no time."""
MAX_WIDTH = 1 << 24
"""Of one dimension; products of two stay exact."""
MAX_HEADS = 1 << 16
_INNER_FACTOR = 4
"""GPT-2's convention for the intermediate size where the configuration leaves it out."""
_MOST_PROBLEMS = 8


@dataclass(frozen=True, slots=True)
class Figures:
    """What the counting needs of a configuration; `switches` holds the families' own booleans."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_size: int
    inner: int
    embedding: int
    vocabulary: int
    tables: tuple[int, ...]
    """Rows of each further table."""
    rotary_size: int
    window: int
    activation: str
    hidden_dropout: float
    attention_dropout: float
    embedding_dropout: float
    score_cap: bool
    logit_cap: bool
    tied: bool
    fused_attention: bool
    switches: Mapping[str, bool]

    def width(self, name: Width, labels: int = 0) -> int:
        """Size of a dimension."""
        match name:
            case "hidden":
                return self.hidden
            case "queries":
                return self.heads * self.head_size
            case "keys":
                return self.key_value_heads * self.head_size
            case "qkv":
                return (self.heads + 2 * self.key_value_heads) * self.head_size
            case "inner":
                return self.inner
            case "twice_inner":
                return 2 * self.inner
            case "embedding":
                return self.embedding
            case "head":
                return self.head_size
            case "vocabulary":
                return self.vocabulary
            case "labels":
                return labels


class _Reader:
    """Reads typed values by a family's names, and notes what is wrong with them instead of raising."""

    def __init__(self, config: Mapping[str, object], family: Family) -> None:
        self._config = config
        self._family = family
        self.problems: list[str] = []

    def value(self, key: str) -> object:
        """The configuration's value under the family's name or the usual one, else the family's default."""
        own = self._family.keys.get(key, key)
        names = [name for name in dict.fromkeys((own, key)) if name in self._config]
        if len(names) > 1 and self._config[own] != self._config[key]:
            self.problems.append(
                f"{own} is {quoted(self._config[own])} and {key} is {quoted(self._config[key])}: they mean the same"
            )
        if names:
            return self._config[names[0]]
        return self._family.defaults.get(key, self._family.fixed.get(key))

    def size(self, key: str, most: int, derived: int | None = None) -> int:
        """A whole number from 1 to `most`; `derived` where the value is null. 1 stands for one that is wrong."""
        value = self.value(key)
        if value is None and derived is not None:
            return derived
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most:
            return value
        self._wrong(key, value, f"a whole number from 1 to {most}")
        return 1

    def switch(self, key: str) -> bool:
        """A boolean."""
        value = self.value(key)
        if isinstance(value, bool):
            return value
        self._wrong(key, value, "true or false")
        return False

    def share(self, key: str) -> float:
        """A number from 0 to 1."""
        value = self.value(key)
        if value is None:
            return 0.0
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
            return float(value)
        self._wrong(key, value, "a number from 0 to 1")
        return 0.0

    def text(self, key: str) -> str:
        """A short name."""
        value = self.value(key)
        if isinstance(value, str) and 0 < len(value) <= 50 and value.isascii() and value.isprintable():  # noqa: PLR2004 - as long as a block's
            return value
        self._wrong(key, value, "a name of at most 50 characters")
        return "unknown"

    def mapping(self, key: str) -> Mapping[Any, Any]:
        """A group of values, empty where there is none."""
        value = self._config.get(key)
        return value if isinstance(value, Mapping) else {}

    def _wrong(self, key: str, value: object, allowed: str) -> None:
        name = self._family.keys.get(key, key)
        said = "is missing" if value is None else f"is {quoted(value)}"
        self.problems.append(f"{name} {said}, it must be {allowed}")


def read_figures(config: Mapping[str, object], family: Family) -> Figures:
    """Read the figures of a configuration.

    Raises:
        ArchitectureError: with all problems, if one is missing, out of its bounds, or contradicts another.
    """
    reader = _Reader(config, family)
    figures = _figures(reader, family)
    problems = reader.problems or [*_contradictions(config, family, figures), *_unknown_variants(config, family)]
    if problems:
        more = [f"and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
        raise ArchitectureError(
            f"the configuration of a {family.model_type} model cannot be used: "
            + "; ".join([*problems[:_MOST_PROBLEMS], *more])
            + ". Compare its config.json with the published one"
        )
    return figures


def _figures(reader: _Reader, family: Family) -> Figures:
    hidden = reader.size("hidden_size", MAX_WIDTH)
    heads = reader.size("num_attention_heads", MAX_HEADS)
    derived = max(1, hidden // heads)
    head_size = reader.size("head_dim", MAX_WIDTH, derived) if family.own_head_size else derived
    return Figures(
        layers=reader.size("num_hidden_layers", MAX_LAYERS),
        hidden=hidden,
        heads=heads,
        key_value_heads=reader.size("num_key_value_heads", MAX_HEADS, heads) if family.grouped else heads,
        head_size=head_size,
        inner=reader.size("intermediate_size", MAX_WIDTH, _INNER_FACTOR * hidden),
        embedding=reader.size("embedding_size", MAX_WIDTH, hidden),
        vocabulary=reader.size("vocab_size", MAX_WIDTH),
        tables=tuple(reader.size(key, MAX_WIDTH) for key in family.tables),
        rotary_size=_rotary_size(reader, family, head_size),
        window=_window(reader, family),
        activation=family.old_activations.get(name := reader.text("hidden_act"), name),
        hidden_dropout=reader.share("hidden_dropout") if "hidden_dropout" in family.defaults else 0.0,
        attention_dropout=reader.share("attention_dropout"),
        embedding_dropout=reader.share(family.embedding_dropout) if family.embedding_dropout else 0.0,
        score_cap="attn_logit_softcapping" in family.defaults and reader.value("attn_logit_softcapping") is not None,
        logit_cap="final_logit_softcapping" in family.defaults and reader.value("final_logit_softcapping") is not None,
        tied=reader.switch("tie_word_embeddings"),
        fused_attention=family.fused_attention and reader.value("attn_implementation") != "eager",
        switches={key: reader.switch(key) for key in _switches(family)},
    )


def _switches(family: Family) -> set[str]:
    frames = family.tasks.values()
    rows = [*family.rows, *(row for frame in frames for row in (*frame.before, *frame.after, *frame.head))]
    vectors = [*family.vectors, *(vector for frame in frames for vector in (*frame.vectors, *frame.untied))]
    names = {row.bias for row in rows if isinstance(row.bias, str)}
    names |= {row.when for row in rows} | {vector.when for vector in vectors}
    names |= {family.parallel} if isinstance(family.parallel, str) else set()
    return names - {"", "projected"}


def _rotary_size(reader: _Reader, family: Family, head_size: int) -> int:
    """Entries of a head that positions rotate; the share stands under several names, by the file's age."""
    if family.rotary_share == 0:
        return 0
    groups = (reader.mapping("rope_parameters"), reader.mapping("rope_scaling"))
    found = [group["partial_rotary_factor"] for group in groups if "partial_rotary_factor" in group]
    found += [value for key in ("partial_rotary_factor", "rotary_pct") if (value := reader.value(key)) is not None]
    share = found[0] if found else family.rotary_share
    if isinstance(share, int | float) and not isinstance(share, bool) and 0 < share <= 1:
        return int(head_size * share)
    reader.problems.append(
        f"the share of a head that positions rotate is {quoted(share)}, it must be above 0, at most 1"
    )
    return 0


def _window(reader: _Reader, family: Family) -> int:
    if family.window == "none" or reader.value("sliding_window") is None:
        return 0
    if family.window == "switched":
        if not reader.switch("use_sliding_window"):
            return 0
        kinds = reader.value("layer_types")
        if isinstance(kinds, list):
            whole = all(kind == "sliding_attention" for kind in kinds)
        else:
            whole = reader.value("max_window_layers") == 0
        if not whole:
            return 0
    return reader.size("sliding_window", MAX_WIDTH)


def _contradictions(config: Mapping[str, object], family: Family, figures: Figures) -> list[str]:
    hidden, heads = figures.hidden, figures.heads
    given = family.own_head_size and (config.get("head_dim") or family.defaults.get("head_dim")) is not None
    found = []
    if hidden % heads and (family.even_heads or not given):
        found.append(f"a hidden size of {hidden} does not divide by {heads} heads")
    if heads * figures.head_size > MAX_WIDTH:
        found.append(f"{heads} heads of {figures.head_size} are wider than {MAX_WIDTH}")
    if heads % figures.key_value_heads:
        found.append(f"{heads} heads do not divide by {figures.key_value_heads} key-value heads")
    if figures.rotary_size % 2:
        found.append(f"positions rotate {figures.rotary_size} entries of a head, which must be even")
    return found


def _unknown_variants(config: Mapping[str, object], family: Family) -> list[str]:
    return [
        f"{key} is {quoted(config[key])}, known is only {value!r}"
        for key, value in family.fixed.items()
        if key in config and config[key] != value
    ]
