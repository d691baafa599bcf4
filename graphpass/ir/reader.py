"""From a ModelProto to the graph that passes see: graph objects are built *over* the proto.

`writer` takes what passes changed back into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto
from onnx.helper import tensor_dtype_to_np_dtype

from graphpass.ir.nodes import Constant, Function, Graph, Node, Tensor, Variable
from graphpass.ir.weight import Weight

# name -> (numpy dtype or None, dims or None) as shape inference has it
Types = Mapping[str, tuple[Any, "list[int | str | None] | None"]]

_EMPTY = ""


def read_graph(
    proto: onnx.GraphProto,
    inferred: onnx.GraphProto,
    opsets: dict[str, int],
    own_functions: Mapping[tuple[str, str], Function],
    initializers_are_constant: bool,
) -> Graph:
    """Build the graph over `proto`.

    `inferred` is the same graph after shape inference. `initializers_are_constant`: whether an
    initializer that is also an input is a constant all the same (IR versions before 4).
    """
    reader = _Reader(opsets, own_functions, initializers_are_constant)
    return reader.graph(proto, inferred, None, {})


def read_function(
    proto: onnx.FunctionProto, own_functions: Mapping[tuple[str, str], Function]
) -> Function:
    """Build the graph over a function's body; nothing is known of its shapes."""
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    reader = _Reader(opsets, own_functions, True)
    function = Function(proto, opsets, own_functions)
    names: dict[str, Tensor] = {name: Variable(name) for name in proto.input}
    function.inputs = list(names.values())
    reader.nodes(function, proto.node, proto.node, names)
    function.outputs = [_lookup(names, name) for name in proto.output]
    for tensor in function.outputs:
        tensor.is_graph_output = True
    return function


class _Reader:
    def __init__(
        self,
        opsets: dict[str, int],
        own_functions: Mapping[tuple[str, str], Function],
        initializers_are_constant: bool,
    ) -> None:
        self.opsets = opsets
        self.own_functions = own_functions
        self.initializers_are_constant = initializers_are_constant

    def graph(
        self,
        proto: onnx.GraphProto,
        inferred: onnx.GraphProto,
        parent: Graph | None,
        outer: Mapping[str, Tensor],
    ) -> Graph:
        graph = Graph(proto, self.opsets, parent, self.own_functions)
        graph.lists_initializers = self.initializers_are_constant
        types = _types(inferred, proto)
        names: dict[str, Tensor] = _Scope(outer)
        input_names = {value.name for value in proto.input}
        overridable = set()
        for tensor in proto.initializer:
            if tensor.name in input_names and not self.initializers_are_constant:
                overridable.add(tensor.name)
                continue
            constant = Constant(tensor.name, Weight.of(tensor))
            names[tensor.name] = constant
            graph.initializers.append(constant)
        for value in proto.input:
            if dict.get(names, value.name) is None:
                names[value.name] = _variable(value.name, types)
            graph.inputs.append(dict.__getitem__(names, value.name))
            if value.name in overridable:
                graph.overridable[value.name] = names[value.name]
        for sparse in proto.sparse_initializer:
            name = sparse.values.name
            if dict.get(names, name) is None:
                names[name] = _variable(name, types)
        for node in proto.node:
            for name in node.output:
                if name:
                    names[name] = _variable(name, types)
        self.nodes(graph, proto.node, inferred.node, names)
        graph.outputs = [_lookup(names, value.name) for value in proto.output]
        for output in graph.outputs:
            output.is_graph_output = True
        for annotation in proto.quantization_annotation:
            for entry in annotation.quant_parameter_tensor_names:
                if entry.value in names:
                    names[entry.value].is_graph_output = True
        return graph

    def nodes(
        self,
        graph: Graph,
        protos: Iterable[onnx.NodeProto],
        inferred: Iterable[onnx.NodeProto],
        names: dict[str, Tensor],
    ) -> None:
        if graph.is_function:
            for proto in protos:
                for name in proto.output:
                    if name:
                        names[name] = Variable(name)
        for proto, typed in zip(protos, inferred, strict=True):
            node = Node(
                proto.op_type,
                proto.name,
                None,
                [_lookup(names, name) for name in proto.input],
                [_lookup(names, name) for name in proto.output],
                proto.domain,
                graph=graph,
                proto=proto,
                parse=attribute_parser(proto),
            )
            if proto.attribute and _holds_bodies(proto):
                node._parse = attribute_parser(proto, self._bodies(proto, typed, graph, names))
                _ = node.attrs  # bodies capture tensors: their readers must be known at once
            graph.nodes.append(node)

    def _bodies(
        self,
        proto: onnx.NodeProto,
        typed: onnx.NodeProto,
        graph: Graph,
        names: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        bodies: dict[str, Any] = {}
        for attribute, typed_attribute in zip(proto.attribute, typed.attribute, strict=True):
            if attribute.type == AttributeProto.GRAPH:
                bodies[attribute.name] = self.graph(attribute.g, typed_attribute.g, graph, names)
            elif attribute.type == AttributeProto.GRAPHS:
                bodies[attribute.name] = [
                    self.graph(body, typed_body, graph, names)
                    for body, typed_body in zip(
                        attribute.graphs, typed_attribute.graphs, strict=True
                    )
                ]
        return bodies


def _holds_bodies(proto: onnx.NodeProto) -> bool:
    return any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in proto.attribute)


class _Scope(dict[str, "Tensor"]):
    """Names of one graph; what is missing is looked up in the scope around it."""

    def __init__(self, outer: Mapping[str, Tensor]) -> None:
        self.outer = outer

    def __missing__(self, name: str) -> Tensor:
        return self.outer[name]

    def __contains__(self, name: object) -> bool:
        return dict.__contains__(self, name) or name in self.outer


def _lookup(names: dict[str, Tensor], name: str) -> Tensor:
    if not name:
        return Variable(_EMPTY)
    try:
        return names[name]
    except KeyError:  # an invalid model: carried as it is, for the checker to name
        names[name] = Variable(name)
        return names[name]


def _variable(name: str, types: Types) -> Variable:
    dtype, shape = types.get(name, (None, None))
    return Variable(name, dtype, shape)


def _types(inferred: onnx.GraphProto, declared: onnx.GraphProto) -> Types:
    """Types by name; inference wins, since value_info in the wild is often stale."""
    types: dict[str, tuple[Any, list[int | str | None] | None]] = {}
    parsed: dict[bytes, tuple[Any, list[int | str | None] | None]] = {}  # most types come often
    for source in (
        declared.value_info,
        declared.output,
        inferred.value_info,
        inferred.output,
        declared.input,
    ):
        for value in source:
            content = value.type.SerializeToString()
            if content not in parsed:
                parsed[content] = value_type(value.type)
            name, found = value.name, parsed[content]
            known = types.get(name)
            types[name] = found if known is None else _merged(found, known)
    return types


def _merged(
    found: tuple[Any, list[int | str | None] | None],
    known: tuple[Any, list[int | str | None] | None],
) -> tuple[Any, list[int | str | None] | None]:
    """Fill in from `known` what is open in `found`."""
    dtype, shape = found
    known_dtype, known_shape = known
    if shape is None:
        shape = known_shape
    elif known_shape is not None and len(known_shape) == len(shape):
        shape = [old if new is None else new for new, old in zip(shape, known_shape, strict=True)]
    return known_dtype if dtype is None else dtype, shape


def value_type(type_proto: onnx.TypeProto) -> tuple[Any, list[int | str | None] | None]:
    """Return (numpy dtype, dims) of a tensor type; None where unknown or no tensor."""
    if not type_proto.HasField("tensor_type"):
        return None, None
    tensor = type_proto.tensor_type
    dtype = np.dtype(tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return dtype, None
    dims: list[int | str | None] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value"):
            dims.append(dim.dim_value if dim.dim_value >= 0 else None)
        else:
            dims.append(dim.dim_param or None)
    return dtype, dims


def attribute_parser(
    proto: onnx.NodeProto, bodies: Mapping[str, Any] | None = None
) -> Callable[[], dict[str, Any]]:
    """Return what parses the attributes of `proto` when they are first looked at."""
    return lambda: {a.name: _attribute_value(a, bodies or {}) for a in proto.attribute}


def _attribute_value(attribute: AttributeProto, bodies: Mapping[str, Any]) -> Any:
    kind = attribute.type
    if attribute.ref_attr_name:
        return gs.Node.AttributeRef(attribute.ref_attr_name, kind)
    if attribute.name in bodies:
        return bodies[attribute.name]
    if kind == AttributeProto.FLOAT:
        return attribute.f
    if kind == AttributeProto.INT:
        return attribute.i
    if kind == AttributeProto.STRING:
        return _text(attribute.s, attribute)
    if kind == AttributeProto.FLOATS:
        return list(attribute.floats)
    if kind == AttributeProto.INTS:
        return list(attribute.ints)
    if kind == AttributeProto.STRINGS:
        texts = [_text(value, None) for value in attribute.strings]
        return attribute if None in texts else texts
    if kind == AttributeProto.TENSOR:
        return Constant(attribute.t.name, Weight.of(attribute.t))
    return attribute


def _text(value: bytes, otherwise: Any) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return otherwise
