"""Editing a graph by hand, for passes that do what no rule can: change ranks and interfaces.

Either all of an edit takes place or nothing: where the pass refuses half-way, the graph has not
been touched.

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
from graphpass.ir.questions import as_written, producer
from graphpass.ir.refusal import require
from graphpass.ir.weight import Array
from graphpass.rewrite.surgery import Surgeon


class Editor:
    """Makes nodes in `graph` and lets tensors take each other's place."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._names = set(_names(graph))
        self._made: list[Node] = []
        self._like: list[tuple[Node, Node]] = []
        self._replaced: list[tuple[Tensor, Tensor]] = []
        self._renamed: list[tuple[Tensor, str]] = []
        self._outputs: list[Tensor] = []
        self._imports: dict[str, int] = {}
        self._kept: set[int] = set()  # outputs whose readers go on reading what they were

    def node(
        self,
        op: str,
        inputs: Sequence[Tensor | Array | None],
        *,
        like: Node | None = None,
        outputs: int = 1,
        domain: str | None = None,
        **attributes: Any,
    ) -> list[Tensor]:
        """Make a node and return its outputs; an array becomes a constant.

        `like`: the node whose name, domain and further attributes it takes over; an attribute
        given as None is left out.
        """
        base = op if like is None else like.name or like.outputs[0].name
        given = {**(like.attrs if like is not None else {}), **attributes}
        attrs = {key: value for key, value in given.items() if value is not None}
        if domain is None:
            domain = like.domain if like is not None else ""
        inputs, attrs = as_written(op, domain, self.graph, inputs, attrs)
        made = Node(op, self.fresh(base), attrs, (), (), domain, graph=self.graph)
        # linked on one side: the tensors it reads see it once the edit is complete
        list.extend(made.inputs, [self._operand(value, base) for value in inputs])
        for _ in range(outputs):
            tensor = Variable(self.fresh(f"{base}.{op.lower()}"))
            list.append(made.outputs, tensor)
            list.append(tensor.inputs, made)
        for index, tensor in enumerate(made.outputs):
            kind = like.outputs[index].dtype if like and index < len(like.outputs) else None
            source = made.inputs[0].dtype if made.inputs else None
            tensor.dtype = kind if kind is not None else source
        self._made.append(made)
        if like is not None:
            self._like.append((made, like))
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
        """Let what reads `old` read `new` once the edit is complete.

        What was made here may read `old` itself: it goes on reading what `old` was. A node that
        is made after it and means what is there now reads `current(old)`.
        """
        self._replaced.append((old, new))

    def current(self, tensor: Tensor) -> Tensor:
        """Return what takes the place of `tensor` as of now, or itself: what a new node reads."""
        found = [new for old, new in self._replaced if old is tensor]
        return found[-1] if found else tensor

    def put_out(self, output: Tensor, new: Tensor) -> None:
        """Let the graph's `output` be `new`; what reads it goes on reading what it was."""
        if producer(output) is None:
            raise ValueError(f"'{output.name}' is computed by no node")
        self._kept.add(id(output))
        self._replaced.append((output, new))

    def rename(self, tensor: Tensor, name: str) -> None:
        """Give a tensor another name; an input or output where the pass says changes_interface.

        Raises `RefusedError` where the graph has that name already.
        """
        if name != tensor.name:
            require(name not in self._names, f"'{name}' is in the graph already")
            self._names.add(name)
            self._renamed.append((tensor, name))

    def add_output(self, tensor: Tensor) -> None:
        """Make a tensor an output of the graph, the last one."""
        self._outputs.append(tensor)

    def import_opset(self, domain: str, version: int) -> None:
        """Import an operator set. Raises `RefusedError` where another version is imported."""
        held = self.graph.opsets.get(domain, self._imports.get(domain, version))
        require(held == version, f"the model imports version {held} of {domain}, not {version}")
        self._imports[domain] = version

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
            return  # no tensor of the graph knows of what was made
        surgeon = Surgeon(self.fresh)
        surgeon.insert(self.graph, self._made, self._replaced, self._kept)
        surgeon.close([self.graph])
        self._keep_names()
        self.graph.opsets.update(self._imports)
        for tensor, name in self._renamed:
            tensor.name = name
        for tensor in self._outputs:
            self.graph.outputs.append(tensor)

    def _keep_names(self) -> None:
        """Give a node the name of the one whose place it took, now that this is gone."""
        there = {id(node) for node in self.graph.nodes}
        taken: set[str] = set()
        for made, like in self._like:
            if id(made) in there and id(like) not in there and like.name not in taken:
                made.name = like.name
                taken.add(like.name)

    def _operand(self, value: Tensor | Array | None, base: str) -> Tensor:
        if value is None:
            return Variable("")
        if isinstance(value, np.ndarray):
            return Constant(self.fresh(f"{base}.constant"), value)
        return value


def _names(graph: Graph) -> Iterator[str]:
    for scope in graph.scopes():
        for tensors in (scope.inputs, scope.outputs, scope.initializers):
            yield from (tensor.name for tensor in tensors)
        yield from (t.name for t in getattr(scope.proto, "initializer", ()))
        for node in scope.nodes:
            yield node.name
            yield from (tensor.name for tensor in (*node.inputs, *node.outputs))
