"""What a training step holds in memory, found by walking through it: buffers, the graph of saved ones, and back.

Owns the rules of automatic differentiation that decide how long a buffer lives. It knows nothing of layers: those are
programs over an `Arena`, written as the model's own code is, in `layer.py` and `ends.py`.

A buffer lives as long as something refers to it, by CPython's own reference counts: a variable of the program, or a
node of the graph. That is also when torch frees a tensor, so a program that has the local variables of the model frees
its buffers when the model does.

Sources of the rules: torch's autograd engine (`torch/csrc/autograd/engine.cpp`, `input_buffer.cpp`): nodes run in
falling order of their creation, a node's saved tensors are freed when it has run, and a second gradient of the same
tensor is added in place only where nothing else refers to either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PASSING, LAYERS, ATTENTION, ADAPTERS, CHECKPOINTS, LOGITS, DEQUANTIZED, GRADIENTS = range(8)
"""What a buffer is counted as. `PASSING`: made and gone again within one phase, such as gradients of activations."""

TERMS = 8


class Arena:
    """The live bytes by term, and the most that were ever live together.

    Args:
        record: Whether what is needed for the way back is saved; a checkpointed layer first runs without.
    """

    def __init__(self, *, record: bool = True) -> None:
        self.record = record
        self.live = [0.0] * TERMS
        self.total = 0.0
        self.peak = 0.0
        self.at_peak: tuple[float, ...] = tuple(self.live)
        self.nodes: list[_Node] = []
        self.gradients: list[Buffer] = []

    def add(self, term: int, size: float) -> None:
        """Count `size` more bytes, or fewer."""
        self.live[term] += size
        self.total += size
        if self.total > self.peak:
            self.peak = self.total
            self.at_peak = tuple(self.live)

    def spike(self, size: float, term: int = PASSING) -> None:
        """Count bytes that are gone again at once."""
        if size:
            self.add(term, size)
            self.add(term, -size)

    def restart_peak(self) -> None:
        """Begin a new peak at what is live now."""
        self.peak, self.at_peak = self.total, tuple(self.live)

    def apply(
        self,
        size: float,
        *inputs: "Value",
        saved: Sequence["Buffer"] = (),
        kind: int = LAYERS,
        keep_result: bool = False,
        way_back: "Back | None" = None,
    ) -> "Value":
        """One operation: its result, of `size` bytes, and what its way back needs.

        Args:
            size: Bytes of the result.
            inputs: What it is made of.
            saved: Buffers that live until its way back is done.
            kind: The term that saved buffers are counted as.
            keep_result: Whether the result is saved too.
            way_back: What is special about its way back.
        """
        back = way_back or _USUAL
        edges = tuple([i.edge for i in inputs if i.edge is not None])
        result = Value(Buffer(self, size), Edge() if edges or back.trained is not None else None)
        if result.edge is not None and self.record:
            if keep_result:
                saved = (*saved, result.buffer)
            for buffer in saved:
                buffer.keep(kind)
            sizes = tuple([i.size for i in inputs if i.edge is not None])
            self.nodes.append(_Node((result.edge,), edges, sizes, tuple(saved), back))
        return result

    def split(self, whole: "Value", count: int) -> tuple["Value", ...]:
        """Views of equal parts of a tensor; their gradients are put together in a new one."""
        edge = whole.edge
        if edge is None or not self.record:
            return tuple(Value(whole.buffer, None if edge is None else Edge(), count) for _ in range(count))
        parts = tuple(Value(whole.buffer, Edge(), count) for _ in range(count))
        ends = tuple(part.edge for part in parts if part.edge is not None)
        self.nodes.append(_Node(ends, (edge,), (whole.size,), (), _USUAL))
        return parts

    def add_up(self, one: "Value", other: "Value") -> "Value":
        """The sum of two, whose gradient is that of both, without a copy."""
        return self.apply(one.size, one, other, way_back=_SHARED)

    def go_back(self, edge: "Edge", size: float) -> None:
        """Walk back to the first node from a gradient of `size` bytes, made here for the value that `edge` is of.

        Gradients of trained parameters stay live, and so does what gathered at the edges that the walk ends at.
        """
        edge.take(Buffer(self, size), view=False)
        while self.nodes:
            self._back(self.nodes.pop())

    def _back(self, node: "_Node") -> None:
        gathered = [found for edge in node.results if (found := edge.give()) is not None]
        if not gathered:
            return
        back = node.back
        if back.shared:
            gathered[0].holders += len(node.edges) - 1
            for edge in node.edges:
                edge.take(gathered[0], view=False)
            return
        if back.trained is not None:
            own = Buffer(self, back.trained)
            own.keep(GRADIENTS)
            self.gradients.append(own)
        made = [Buffer(self, size) for size in node.sizes]
        self.spike(back.beside, back.beside_term)
        node.saved = ()
        for edge, buffer in zip(node.edges, made, strict=True):
            edge.take(buffer, view=back.view)
        for gradient in gathered:
            gradient.holders -= 1


class Buffer:
    """Some live bytes of an arena. `holders` counts the edges that share it as a gradient."""

    __slots__ = ("arena", "holders", "size", "term")

    def __init__(self, arena: Arena, size: float, term: int = PASSING) -> None:
        self.arena, self.size, self.term, self.holders = arena, size, term, 1
        arena.add(term, size)

    def __del__(self) -> None:
        self.arena.live[self.term] -= self.size
        self.arena.total -= self.size

    def keep(self, term: int) -> None:
        """Count it as saved; what a layer saves anyway is not counted as saved for its adapters."""
        if self.term == PASSING or (self.term == ADAPTERS and term != ADAPTERS):
            live = self.arena.live
            live[self.term] -= self.size
            live[term] += self.size
            self.term = term


class Edge:
    """Where the gradient of a value gathers."""

    __slots__ = ("gradient", "view")

    def __init__(self) -> None:
        self.gradient: Buffer | None = None
        self.view = False

    def take(self, new: Buffer, *, view: bool) -> None:
        """Gather one more gradient; `view`: torch holds it through a view, and so never adds to it in place."""
        old = self.gradient
        if old is None:
            self.gradient, self.view = new, view
            return
        if old.holders == 1 and not self.view:
            new.holders -= 1
            return
        if new.holders == 1 and not view:
            old.holders -= 1
            self.gradient, self.view = new, view
            return
        self.gradient, self.view = Buffer(new.arena, new.size), False
        old.holders -= 1
        new.holders -= 1

    def give(self) -> Buffer | None:
        """What was gathered."""
        found, self.gradient = self.gradient, None
        return found


class Value:
    """What a variable of a model's code refers to; without an edge it needs no gradient.

    `size` is its bytes: a part of its buffer's, where it is one of `parts`.
    """

    __slots__ = ("buffer", "edge", "size")

    def __init__(self, buffer: Buffer, edge: Edge | None, parts: int = 1) -> None:
        self.buffer, self.edge, self.size = buffer, edge, buffer.size / parts


@dataclass(frozen=True, slots=True)
class Back:
    """An operation's way back.

    `beside` bytes live for a moment beside the gradients of its inputs, `trained` bytes are the gradient of its own
    parameters. `view`: the input's gradient is handed on as a view of another shape.
    """

    beside: float = 0.0
    beside_term: int = PASSING
    trained: float | None = None
    view: bool = False
    shared: bool = False


_USUAL = Back()
_SHARED = Back(shared=True)


class _Node:
    __slots__ = ("back", "edges", "results", "saved", "sizes")

    def __init__(
        self,
        results: tuple[Edge, ...],
        edges: tuple[Edge, ...],
        sizes: tuple[float, ...],
        saved: tuple[Buffer, ...],
        back: Back,
    ) -> None:
        self.results, self.edges, self.sizes, self.saved, self.back = results, edges, sizes, saved, back
