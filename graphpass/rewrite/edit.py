"""Editing a graph by hand, for passes that do what no rule can: change ranks and interfaces.

Either all of an edit takes place or nothing: new nodes are linked while they are made, and
unlinked again where the pass refuses half-way.

    with Editor(graph) as edit:
        pooled = edit.node("AveragePool", [x], kernel_shape=[7, 7])
        edit.replace(old_output, pooled)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from graphpass.ir.nodes import Constant, Graph, Node, Tensor, Variable
from graphpass.ir.questions import is_output, producer
from graphpass.ir.weight import Array


class Editor:
    """Makes nodes in `graph` and lets tensors take each other's place."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._names = set(_names(graph))
        self._made: list[Node] = []
        self._replaced: list[tuple[Tensor, Tensor]] = []
        self._put_out: list[tuple[Tensor, Tensor, Node]] = []

    def node(
        self,
        op: str,
        inputs: Sequence[Tensor | Array | None],
        *,
        like: Node | None = None,
        outputs: int = 1,
        **attributes: Any,
    ) -> list[Tensor]:
        """Make a node and return its outputs; an array becomes a constant.

        `like`: the node whose name, domain and further attributes it takes over; an attribute
        given as None is left out.
        """
        base = op if like is None else like.name or like.outputs[0].name
        attrs = {**(like.attrs if like is not None else {}), **attributes}
        made = Node(
            op,
            self.fresh(base),
            {key: value for key, value in attrs.items() if value is not None},
            [self._operand(value, base) for value in inputs],
            [Variable(self.fresh(f"{base}.{op.lower()}")) for _ in range(outputs)],
            like.domain if like is not None else "",
            graph=self.graph,
        )
        for index, tensor in enumerate(made.outputs):
            kind = like.outputs[index].dtype if like and index < len(like.outputs) else None
            source = made.inputs[0].dtype if made.inputs else None
            tensor.dtype = kind if kind is not None else source
        self._made.append(made)
        return list(made.outputs)

    def one(self, op: str, inputs: Sequence[Tensor | Array | None], **keywords: Any) -> Tensor:
        """Make a node with one output and return that."""
        return self.node(op, inputs, **keywords)[0]

    def permuted(self, tensor: Tensor, perm: Sequence[int]) -> Tensor:
        """Return `tensor` transposed; the inverse of a Transpose made here is its source."""
        source = producer(tensor)
        if source is not None and source in self._made and source.op == "Transpose":
            both = [source.attrs["perm"][axis] for axis in perm]
            if both == sorted(both):
                before: Tensor = source.inputs[0]
                return before
        return self.one("Transpose", [tensor], perm=list(perm))

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Let what reads `old` read `new` once the edit is complete."""
        self._replaced.append((old, new))

    def put_out(self, output: Tensor, new: Tensor) -> None:
        """Let the graph's `output` be `new`; what reads it goes on reading what it was."""
        former = producer(output)
        if former is None:
            raise ValueError(f"'{output.name}' is computed by no node")
        kept = Variable(self.fresh(f"{output.name}.kept"), output.dtype, output.shape)
        self._put_out.append((output, kept, former))
        self._replaced.append((output, new))

    def fresh(self, base: str) -> str:
        """Return a name near `base` that the graph does not have."""
        name, count = base, 0
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name

    def __enter__(self) -> Editor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            for node in self._made:
                node.inputs.clear()
            return
        self.graph.nodes.extend(self._made)
        for output, kept, former in self._put_out:
            _relink(output, kept)
            former.outputs[_index(former.outputs, output)] = kept
        dropped = [self._take_place(old, new) for old, new in self._replaced]
        formers = [former for _, _, former in self._put_out]
        _sweep(self.graph, [*dropped, *formers, *self._made])

    def _operand(self, value: Tensor | Array | None, base: str) -> Tensor:
        if value is None:
            return Variable("")
        if isinstance(value, np.ndarray):
            return Constant(self.fresh(f"{base}.constant"), value)
        return value

    def _take_place(self, old: Tensor, new: Tensor) -> Node | None:
        """Relink; an output of the graph keeps its tensor and with it its name."""
        former = producer(old)
        if not is_output(old):
            _relink(old, new)
            return former
        if former is not None:
            former.outputs[_index(former.outputs, old)] = Variable(self.fresh(f"{old.name}.old"))
        maker = producer(new)
        if maker is None or is_output(new) or maker.graph is not self.graph:
            identity = Node("Identity", self.fresh(old.name), {}, [new], [old], graph=self.graph)
            self.graph.nodes.append(identity)
            return former
        maker.outputs[_index(maker.outputs, new)] = old
        _relink(new, old)
        self._replaced = [(a, old if b is new else b) for a, b in self._replaced]
        return former


def _index(tensors: Sequence[Tensor], tensor: Tensor) -> int:
    return next(i for i, other in enumerate(tensors) if other is tensor)


def _relink(old: Tensor, new: Tensor) -> None:
    for reader in list(old.outputs):
        for index, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[index] = new


def _sweep(graph: Graph, suspects: Sequence[Node | None]) -> None:
    """Remove those of `suspects` whose outputs nothing reads, and what only they needed."""
    stack = [node for node in suspects if node is not None]
    dead: set[int] = set()
    while stack:
        node = stack.pop()
        if id(node) in dead or any(t.outputs or is_output(t) for t in node.outputs):
            continue
        dead.add(id(node))
        sources = [producer(tensor) for tensor in node.inputs]
        constants = [t for t in node.inputs if isinstance(t, Constant)]
        node.inputs.clear()
        stack.extend(source for source in sources if source is not None)
        unread = {id(t) for t in constants if not t.outputs and not is_output(t)}
        graph.initializers[:] = [c for c in graph.initializers if id(c) not in unread]
    graph.nodes[:] = [node for node in graph.nodes if id(node) not in dead]


def _names(graph: Graph) -> Iterator[str]:
    for scope in graph.scopes():
        for tensors in (scope.inputs, scope.outputs, scope.initializers):
            yield from (tensor.name for tensor in tensors)
        yield from (t.name for t in getattr(scope.proto, "initializer", ()))
        for node in scope.nodes:
            yield node.name
            yield from (tensor.name for tensor in (*node.inputs, *node.outputs))
