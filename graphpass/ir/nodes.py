"""The graph that passes see: onnx-graphsurgeon's classes, made safe to carry a model.

graphsurgeon compares nodes and tensors by content, which finds the wrong one among equals, and
keeps every weight it ever read. The classes here *are* graphsurgeon's (isinstance holds, plug-ins
written against it work); they compare by identity, read weights on demand and remember the proto
that they came from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphpass.ir.graphsurgeon import LazyValues, SynchronizedList
from graphpass.ir.weight import Array, Weight

Shape = list["int | str | None"]


class _Links(SynchronizedList):  # type: ignore[misc]
    """What graphsurgeon links nodes and tensors by; made five times for each node, so quickly."""

    def __init__(self, owner: Node | Tensor, field: str) -> None:
        self.parent_obj = owner
        self.field_name = field


class Variable(gs.Variable):  # type: ignore[misc]
    """A tensor known at run time. `shape` is None where the rank is unknown."""

    is_graph_output = False

    def __init__(
        self,
        name: str,
        dtype: Any = None,
        shape: Sequence[int | str | None] | None = None,
        type: str = "tensor_type",
    ) -> None:
        fields = self.__dict__
        fields["name"] = name
        fields["inputs"] = _Links(self, "outputs")
        fields["outputs"] = _Links(self, "inputs")
        fields["dtype"] = dtype
        fields["shape"] = None if shape is None else list(shape)
        fields["type"] = type

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Constant(gs.Constant):  # type: ignore[misc]
    """An initializer that nobody can override at run time."""

    is_graph_output = False

    def __init__(self, name: str, values: Weight | Array) -> None:
        fields = self.__dict__
        fields["name"] = name
        fields["inputs"] = _Links(self, "outputs")
        fields["outputs"] = _Links(self, "inputs")
        fields["_values"] = values
        fields["data_location"] = None
        fields["_export_dtype"] = None

    @property
    def values(self) -> Array:
        """The data, read-only: assign a new array to change it."""
        held = self._values
        return held.array() if isinstance(held, Weight) else held

    @values.setter
    def values(self, values: Array | Weight) -> None:
        self._values = values

    @property
    def weight(self) -> Weight:
        """The value without reading it."""
        return weight_in(self)

    __eq__ = object.__eq__
    __hash__ = object.__hash__


def weight_in(constant: gs.Constant) -> Weight:
    """Return the value of a constant, ours or graphsurgeon's own, without reading it."""
    held = constant._values
    if isinstance(held, Weight):
        return held
    array: Array = held.load() if isinstance(held, LazyValues) else np.asarray(held)
    data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return Weight(constant.name, array.shape, data_type, lambda: array)


Tensor = Variable | Constant
_serials = itertools.count(1)


class Node(gs.Node):  # type: ignore[misc]
    """An operator. Attributes are parsed when they are first looked at.

    `serial` grows from node to node as they are made, so that one is quickly found among readers.
    `like`: of a new node, the one whose place it takes, whose doc_string and metadata it gets.
    """

    serial = 0  # of nodes that graphsurgeon made
    like: Node | None = None

    def __init__(
        self,
        op: str,
        name: str = "",
        attrs: dict[str, Any] | None = None,
        inputs: Iterable[Tensor] = (),
        outputs: Iterable[Tensor] = (),
        domain: str = "",
        *,
        graph: Graph | None = None,
        parse: Callable[[], dict[str, Any]] | None = None,
        proto: onnx.NodeProto | None = None,
    ) -> None:
        fields = self.__dict__
        fields["serial"] = next(_serials)
        fields["op"] = op
        fields["name"] = name
        fields["domain"] = domain
        fields["graph"] = graph
        fields["proto"] = proto
        fields["_parse"] = parse
        fields["_attrs"] = (attrs or {}) if parse is None else None
        fields["parsed"] = None
        fields["inputs"] = read = _Links(self, "outputs")
        fields["outputs"] = made = _Links(self, "inputs")
        for tensor in inputs:
            list.append(read, tensor)
            list.append(tensor.outputs, self)
        for tensor in outputs:
            list.append(made, tensor)
            list.append(tensor.inputs, self)

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes by name, as graphsurgeon has them; others are an AttributeProto."""
        attrs: dict[str, Any] | None = self.__dict__["_attrs"]
        if attrs is None:
            attrs = self.__dict__["_parse"]()
            self.__dict__.update(_attrs=attrs, parsed=snapshot(attrs))
        return attrs

    @attrs.setter
    def attrs(self, attrs: dict[str, Any]) -> None:
        _ = self.attrs  # what they were is needed to see the change when writing
        self.__dict__["_attrs"] = attrs

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"{self.op}({self.name!r})"

    __str__ = __repr__


def snapshot(attrs: dict[str, Any]) -> dict[str, Any]:
    """Return what `attrs` hold now: lists and constants may be changed in place."""
    return {
        key: tuple(value)
        if isinstance(value, list)
        else value._values
        if isinstance(value, gs.Constant)
        else value
        for key, value in attrs.items()
    }


class Graph(gs.Graph):  # type: ignore[misc]
    """One scope: the main graph, the body of an If, Loop or Scan, or (`Function`) a function."""

    opsets: dict[str, int]
    initializers: list[Constant]
    lists_initializers = False  # each must be an input as well: before IR version 4
    own_functions: Mapping[tuple[str, str], Function]
    parent: Graph | None
    is_touched = False  # whether it was changed since it was last written
    proto: onnx.GraphProto | onnx.FunctionProto

    def __init__(
        self,
        proto: onnx.GraphProto | onnx.FunctionProto,
        opsets: dict[str, int],
        parent: Graph | None = None,
        own_functions: Mapping[tuple[str, str], Function] = MappingProxyType({}),
    ) -> None:
        """`own_functions`: those of the model, by domain and operator."""
        super().__init__(name=proto.name, doc_string=proto.doc_string, opset=opsets.get("", 0))
        self.proto = proto
        self.opsets = opsets
        self.parent = parent
        self.own_functions = own_functions
        self.initializers = []
        self.overridable: dict[str, Tensor] = {}  # initializers that are inputs as well, by name
        self.stale: set[str] = set()  # tensors whose declared type is wrong by now

    @property
    def is_function(self) -> bool:
        """Whether this is a function body, which holds no initializers."""
        return isinstance(self.proto, onnx.FunctionProto)

    @property
    def holds_initializers(self) -> bool:
        """Whether a weight may be an initializer of this graph, rather than a Constant node."""
        return not self.is_function and not (self.lists_initializers and self.parent is not None)

    def subgraphs_of(self, node: Node) -> Iterator[Graph]:
        """Yield the bodies that `node` holds as attributes."""
        fields = node.__dict__
        attrs = fields["_attrs"] if isinstance(node, Node) else fields["attrs"]
        for value in (attrs or {}).values():
            if isinstance(value, Graph):
                yield value
            elif isinstance(value, list) and value and isinstance(value[0], Graph):
                yield from value

    def scopes(self) -> list[Graph]:
        """Return this graph and every body inside it, outer before inner."""
        found: list[Graph] = []
        stack: list[Graph] = [self]
        while stack:
            graph = stack.pop()
            found.append(graph)
            inner = [body for node in graph.nodes for body in self.subgraphs_of(node)]
            stack.extend(reversed(inner))
        return found

    def dissolve(self) -> None:
        """Free the memory of this graph, which is of no use after that.

        Nodes and tensors hold each other: left alone, they stay until the garbage collector looks.
        """
        for scope in self.scopes():
            for node in scope.nodes:
                for tensor in (*node.inputs, *node.outputs):
                    vars(tensor).clear()
                vars(node).clear()


class Function(Graph, gs.Function):  # type: ignore[misc]
    """The body of a model-local function; its constants are Constant nodes.

    `calls`: how many nodes of the model call it, those of other functions among them.
    """

    proto: onnx.FunctionProto
    calls = 0

    def __init__(
        self,
        proto: onnx.FunctionProto,
        opsets: dict[str, int],
        own_functions: Mapping[tuple[str, str], Function],
    ) -> None:
        Graph.__init__(self, proto, opsets, None, own_functions)
        self.domain = proto.domain
        self.attrs = dict.fromkeys(proto.attribute)
        self.attrs.update(
            {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute_proto}
        )
