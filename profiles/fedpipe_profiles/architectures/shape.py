"""The shape of a model from its configuration alone, exactly as its real modules would be counted.

Pure. `families.py` knows the architectures, `figures.py` reads the configuration; here the entries are counted.
"""

from collections.abc import Iterable, Iterator, Mapping

from fedpipe_profiles.architectures.errors import ArchitectureError, quoted
from fedpipe_profiles.architectures.families import FAMILIES
from fedpipe_profiles.architectures.family import Family, Frame, Row, Vector
from fedpipe_profiles.architectures.figures import Figures, read_figures
from fedpipe_profiles.architectures.refusals import refuse_unknown, refuse_unsupported
from fedpipe_profiles.costs.step import Task
from fedpipe_profiles.model import BlockShape, ModelShape, ParameterShape, WeightShape
from fedpipe_profiles.values import MAX_COUNT

__all__ = ["MAX_LABELS", "ArchitectureError", "shape_of"]

MAX_LABELS = 1 << 24


def shape_of(config: Mapping[str, object], *, task: Task, num_labels: int = 0, fingerprint: str = "") -> ModelShape:
    """The shape of the model that a parsed config.json describes.

    Args:
        config: What the file holds; keys that it leaves out have transformers' defaults.
        task: What the model is loaded for.
        num_labels: Rows of a classification's last layer; for causal-lm none.
        fingerprint: Of the model's tensors, where they were read.

    Raises:
        ArchitectureError: if the architecture is not known or not supported, or a figure is missing or absurd.
    """
    refuse_unsupported(config)
    name = config.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise refuse_unknown(name)
    frame = family.tasks.get(task)
    if frame is None:
        able = ", ".join(sorted(f.model_type for f in FAMILIES.values() if task in f.tasks))
        raise ArchitectureError(f"there is no {task} model of type {quoted(name)}; such are: {able}")
    if task == "sequence-classification" and not 1 <= num_labels <= MAX_LABELS:
        raise ArchitectureError(f"a classification needs 1 to {MAX_LABELS} labels, got {quoted(num_labels)}")
    figures = read_figures(config, family)
    return _Counter(family, frame, figures, num_labels).shape(fingerprint)


class _Counter:
    """Counts one model; every method is a function of the four arguments."""

    def __init__(self, family: Family, frame: Frame, figures: Figures, labels: int) -> None:
        self._family = family
        self._frame = frame
        self._figures = figures
        self._labels = labels

    def shape(self, fingerprint: str) -> ModelShape:
        """Everything together.

        Raises:
            ArchitectureError: if the model has more parameters than can be counted.
        """
        family, figures = self._family, self._figures
        others, lookups = self._other_parameters(), self._lookups()
        weights = tuple(self._weights())
        if others + sum(weight.parameters for weight in weights) > MAX_COUNT:
            raise ArchitectureError(
                f"the configuration describes a {family.model_type} model of more than {MAX_COUNT} parameters: "
                "compare its config.json with the published one"
            )
        return ModelShape(
            model_type=family.model_type,
            layers=figures.layers,
            hidden_size=figures.hidden,
            intermediate_size=figures.inner,
            heads=figures.heads,
            vocabulary_size=figures.vocabulary,
            weights=weights,
            other_parameters=others,
            lookup_parameters=lookups,
            head=tuple(self._head()),
            block=self._block(),
            fused_attention=figures.fused_attention,
            fingerprint=fingerprint,
        )

    def _weights(self) -> Iterator[WeightShape]:
        yield from self._named("", self._frame.before, transposed=False)
        for number in range(self._figures.layers):
            prefix = self._family.layer.format(number)
            yield from self._named(prefix, self._family.rows, transposed=self._family.transposed)
        yield from self._named("", self._frame.after, transposed=False)

    def _named(self, prefix: str, rows: Iterable[Row], *, transposed: bool) -> Iterator[WeightShape]:
        for row in rows:
            if self._is_on(row.when):
                d_out, d_in = self._figures.width(row.d_out), self._figures.width(row.d_in)
                yield WeightShape(name=prefix + row.name, d_out=d_out, d_in=d_in, transposed=transposed)

    def _head(self) -> Iterator[ParameterShape]:
        for row in self._frame.head:
            d_out, d_in = (self._figures.width(width, self._labels) for width in (row.d_out, row.d_in))
            yield ParameterShape(name=f"{row.name}.weight", shape=(d_out, d_in))
            if self._is_on(row.bias):
                yield ParameterShape(name=f"{row.name}.bias", shape=(d_out,))

    def _other_parameters(self) -> int:
        family, frame, figures = self._family, self._frame, self._figures
        layer = family.norms * family.norm_vectors * figures.hidden + self._biases(family.rows)
        if family.head_norms:
            layer += 2 * family.norm_vectors * figures.head_size
        around = self._biases((*frame.before, *frame.after))
        vectors = self._entries((*family.vectors, *frame.vectors))
        return figures.layers * layer + around + vectors + self._words() + self._tables() + self._output()

    def _output(self) -> int:
        """Entries of the output matrix where it is one of its own, and of what comes with it."""
        if self._frame.output is None or self._figures.tied:
            return 0
        matrix = self._figures.vocabulary * self._figures.width(self._frame.output)
        return matrix + self._entries(self._frame.untied)

    def _lookups(self) -> int:
        tied = self._frame.output is not None and self._figures.tied
        return self._tables() + (0 if tied else self._words())

    def _words(self) -> int:
        return self._figures.vocabulary * self._figures.embedding

    def _tables(self) -> int:
        offset = self._family.table_offset if self._figures.tables else 0
        return (sum(self._figures.tables) + offset) * self._figures.width(self._family.table_width)

    def _biases(self, rows: Iterable[Row]) -> int:
        return sum(self._figures.width(row.d_out) for row in rows if self._is_on(row.when) and self._is_on(row.bias))

    def _entries(self, vectors: Iterable[Vector]) -> int:
        return sum(vector.count * self._figures.width(vector.width) for vector in vectors if self._is_on(vector.when))

    def _is_on(self, condition: bool | str) -> bool:  # noqa: FBT001 - a row's own column
        """Whether a column of the table holds: always, never, or as a switch of the configuration says."""
        match condition:
            case bool():
                return condition
            case "":
                return True
            case "projected":
                return self._figures.embedding != self._figures.hidden
            case _:
                return self._figures.switches[condition]

    def _block(self) -> BlockShape:
        family, figures = self._family, self._figures
        return BlockShape(
            norm=family.norm,
            norms=family.norms,
            head_norms=family.head_norms,
            key_value_heads=figures.key_value_heads,
            head_size=figures.head_size,
            rotary_size=figures.rotary_size,
            gated=family.gated,
            activation=figures.activation,
            hidden_dropout=figures.hidden_dropout,
            attention_dropout=figures.attention_dropout,
            window=figures.window,
            parallel=self._is_on(family.parallel),
            hidden_dropouts=family.hidden_dropouts,
            embedding_dropout=figures.embedding_dropout,
            score_cap=figures.score_cap,
            logit_cap=figures.logit_cap,
        )
