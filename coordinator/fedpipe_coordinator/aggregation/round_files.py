"""The files of a round: the global adapter, the updates, and what late ones were trained from, open and checked.

Owns reading them, one weight or head parameter at a time. What is made of them is others' matter.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from fedpipe_coordinator.aggregation.change_averaging import (
    AggregationError,
    Factors,
    HeadChange,
    Place,
    WeightChange,
    masses,
)
from fedpipe_profiles.model import ModelShape
from fedpipe_wire.tensors import (
    TensorError,
    TensorFile,
    TensorSpec,
    a_name,
    b_name,
    check_tensors,
    factors_spec,
    head_name,
)


@dataclass(frozen=True, slots=True)
class UpdateFile:
    """An accepted update on disk; `components` and optimizer `steps` as in the plan that it answers.

    An update of an earlier round has the global adapter that it was trained from as `base`, and a `weight`. `clip` is
    what its change is multiplied by, 1 where it is not clipped.
    """

    agent: str
    examples: int
    path: Path
    components: Mapping[str, tuple[int, ...]]
    weight: float = 1.0
    base: Path | None = None
    steps: int = 1
    clip: float = 1.0

    @property
    def place(self) -> Place:
        """Which of the round's updates it is."""
        return self.agent, self.base is not None


@dataclass(frozen=True, slots=True)
class _Opened:
    """An update and its base, open for reading."""

    update: UpdateFile
    file: TensorFile
    base: TensorFile | None


class RoundFiles:
    """Open while the `with` block lasts; several threads may read at once.

    Args:
        global_path: The global adapter before the round.
        updates: What was accepted, in any order.
        shape: Of the model.

    Attributes:
        spec: What a global adapter of this shape holds.
        weights: The weights that it covers, in the model's order.
        heads: The parameters that are trained whole, by their names in the files.

    Raises:
        AggregationError: if there is no update, or one trained what the global adapter does not have.
        TensorError: if a file does not hold what its components say.
        OSError: if a file cannot be read.
    """

    def __init__(self, global_path: Path, updates: Sequence[UpdateFile], shape: ModelShape) -> None:
        masses(updates)
        self._stack = ExitStack()
        with self._stack:
            self._start = self._open(global_path)
            self.weights, self.spec = _global_spec(self._start.header, shape)
            bases = {path: self._open(path) for path in sorted({u.base for u in updates if u.base})}
            for base in bases.values():
                check_tensors(base.header, self.spec)
            self._opened = [
                _Opened(update, self._open(update.path), bases[update.base] if update.base else None)
                for update in updates
            ]
            for each in self._opened:
                _check_update(each.update, each.file.header, shape, self.weights)
            self.heads = [head_name(part.name) for part in shape.head]
            self._stack = self._stack.pop_all()

    def _open(self, path: Path) -> TensorFile:
        return self._stack.enter_context(TensorFile(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def weight(self, name: str) -> tuple[Factors, list[WeightChange]]:
        """One weight's factors: the global's, and those of every agent that trained it.

        Raises:
            AggregationError: if components are none of the global adapter's.
            TensorError: if a file was cut short.
        """
        changes = [
            WeightChange(
                each.update.agent,
                each.update.examples,
                indices,
                each.file.read(b_name(name)),
                each.file.read(a_name(name)),
                None if each.base is None else _components(each.base, name, indices),
                each.update.weight,
                each.update.clip,
            )
            for each in self._opened
            if (indices := each.update.components.get(name))
        ]
        return Factors(self._start.read(b_name(name)), self._start.read(a_name(name))), changes

    def head(self, name: str) -> tuple[NDArray[Any], list[HeadChange]]:
        """A parameter that is trained whole: the global's values, and those of every agent."""
        changes = [
            HeadChange(
                each.update.agent,
                each.update.examples,
                each.file.read(name),
                None if each.base is None else each.base.read(name),
                each.update.weight,
                each.update.clip,
            )
            for each in self._opened
        ]
        return self._start.read(name), changes


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say which tensor an error is about."""
    try:
        yield
    except AggregationError as error:
        raise AggregationError(f"{name}: {error}") from None


def _global_spec(header: Mapping[str, TensorSpec], shape: ModelShape) -> tuple[list[str], dict[str, TensorSpec]]:
    """The weights that the global adapter covers, in the model's order, and what it must hold."""
    found = {w.name: header[a_name(w.name)] for w in shape.weights if a_name(w.name) in header}
    ranks = {name: spec.shape[0] if spec.shape else 0 for name, spec in found.items()}
    spec = factors_spec(shape, ranks)
    check_tensors(header, spec)
    return list(found), spec


def _check_update(
    update: UpdateFile,
    header: Mapping[str, TensorSpec],
    shape: ModelShape,
    weights: Sequence[str],
) -> None:
    """Refuse an update whose file or components do not fit."""
    ranks = {name: len(indices) for name, indices in update.components.items() if indices}
    foreign = sorted(set(ranks) - set(weights))
    if foreign:
        raise AggregationError(f"{update.agent} trained {foreign[:5]}, not in the global adapter")
    try:
        check_tensors(header, factors_spec(shape, ranks))
    except TensorError as error:
        raise TensorError(f"{update.agent}: {error}") from None


def _components(file: TensorFile, weight: str, indices: tuple[int, ...]) -> Factors:
    """Some components of a weight of a global adapter; b: (d_out, r), a: (r, d_in)."""
    b, a = file.read(b_name(weight)), file.read(a_name(weight))
    wrong = [index for index in indices if not 0 <= index < len(a)]
    if wrong:
        raise AggregationError(f"{weight}: components {wrong} are not distinct numbers from 0 to {len(a) - 1}")
    return Factors(b[:, list(indices)], a[list(indices)])
