"""What an edit by hand needs: taking in what it made, its interface, and closing its graph."""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphpass.errors import ModelError
from graphpass.ir.nodes import Constant, Graph, Node, Variable

Interface = tuple[str, Any, Any]  # name, dtype and shape of an input or output


class Edited:
    """A graph that is being edited, and what its inputs and outputs were before."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._inputs = {id(t): _facts(t) for t in graph.inputs}
        self._outputs = {id(t): _facts(t) for t in graph.outputs}
        self._held = [*graph.inputs, *graph.outputs]  # so that no other gets the id of one

    def interface_changed(self) -> str:
        """Say in a few words what is another input or output now; empty where nothing is."""
        for kind, before, tensors in (
            ("input", self._inputs, self.graph.inputs),
            ("output", self._outputs, self.graph.outputs),
        ):
            here = {id(tensor) for tensor in tensors}
            for key, (name, dtype, shape) in before.items():
                if key not in here:
                    return f"{kind} '{name}' is gone"
                tensor = next(t for t in tensors if id(t) == key)
                if tensor.name != name:
                    return f"{kind} '{name}' is called '{tensor.name}'"
                if _facts(tensor) != (name, dtype, shape):
                    return f"{kind} '{name}' has another type or shape"
            for tensor in tensors:
                if id(tensor) not in before:
                    return f"{kind} '{tensor.name}' is new"
            if [id(tensor) for tensor in tensors] != list(before):
                return f"the {kind}s are in another order"
        return ""

    def write_inputs(self, values: Any) -> None:
        """Write the inputs that the graph has now into the list of a proto."""
        _rewrite(values, self._inputs, self.graph.inputs)

    def write_outputs(self, values: Any) -> None:
        """Write the outputs that the graph has now into the list of a proto."""
        _rewrite(values, self._outputs, self.graph.outputs)


def _facts(tensor: Variable | Constant) -> Interface:
    if isinstance(tensor, gs.Constant):
        return tensor.name, None, None
    return tensor.name, tensor.dtype, None if tensor.shape is None else list(tensor.shape)


def _rewrite(
    values: MutableSequence[onnx.ValueInfoProto],
    before: dict[int, Interface],
    tensors: Sequence[Variable | Constant],
) -> None:
    """Let `values` be those of `tensors`: what is said of one that was there before stays."""
    names = {name for name, *_ in before.values()}
    by_name = {value.name: value for value in values}
    held = onnx.GraphProto()
    for tensor in tensors:
        former = before[id(tensor)][0] if id(tensor) in before else tensor.name
        value = held.input.add(name=tensor.name)
        if former in by_name:
            value.CopyFrom(by_name[former])
            value.name = tensor.name
            if id(tensor) in before and _facts(tensor)[1] != before[id(tensor)][1]:
                value.type.tensor_type.ClearField("elem_type")
        write_type(value, tensor)
    # before IR version 4, initializers that are new were listed already
    listed = {value.name for value in held.input}
    held.input.extend(v for v in values if v.name not in names and v.name not in listed)
    del values[:]
    values.extend(held.input)


def write_type(value: onnx.ValueInfoProto, tensor: Variable | Constant) -> None:
    """Give `value` the dtype and shape of `tensor`; what else it says of them stays."""
    tensor_type = value.type.tensor_type
    if tensor.dtype is not None and not tensor_type.elem_type:
        tensor_type.elem_type = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))
    if tensor.shape is None:
        return
    dims = tensor_type.shape.dim
    if len(dims) != len(tensor.shape):
        tensor_type.shape.Clear()
        dims = tensor_type.shape.dim
        for _ in tensor.shape:
            dims.add()
    for dim, size in zip(dims, tensor.shape, strict=True):
        if isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = size
        else:
            dim.ClearField("value")


def sorted_nodes(nodes: Sequence[Node]) -> list[Node]:
    """Return `nodes` so that producers come before readers; as they were where that holds."""
    inside = {id(node) for node in nodes}
    done: set[int] = set()
    ordered: list[Node] = []
    for start in nodes:
        stack = [(start, False)]
        while stack:
            node, ready = stack.pop()
            if id(node) in done:
                continue
            if ready:
                done.add(id(node))
                ordered.append(node)
                continue
            stack.append((node, True))
            sources = [s for tensor in _needed(node) for s in tensor.inputs]
            stack.extend(
                (source, False)
                for source in reversed(sources)
                if id(source) in inside and id(source) not in done
            )
    return ordered


def _needed(node: Node) -> Iterator[Variable | Constant]:
    yield from node.inputs
    for body in Graph.subgraphs_of(node.graph, node):
        for scope in body.scopes():
            yield from scope.outputs
            for inner in scope.nodes:
                yield from inner.inputs


def tensors_of(graph: Graph) -> Iterator[Variable | Constant]:
    """Yield every tensor of a scope, each mention of it."""
    yield from graph.inputs
    yield from graph.outputs
    yield from graph.initializers
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs


def adopt(graph: Graph) -> None:
    """Take in nodes and tensors that were made with onnx-graphsurgeon's own classes."""
    for node in graph.nodes:
        if isinstance(node, Node):
            node.graph = graph
            continue
        attrs = node.__dict__.pop("attrs")
        node.__class__ = Node
        node.__dict__.update(graph=graph, proto=None, _parse=None, _attrs=attrs, parsed=None)
        node.domain = node.domain or ""
    for tensor in tensors_of(graph):
        if not isinstance(tensor, (Variable, Constant)):
            tensor.__class__ = Constant if isinstance(tensor, gs.Constant) else Variable
    for tensor in graph.outputs:
        tensor.is_graph_output = True


# ------------------------------------------------------------------------------ after an edit


def _refuse(*_: Any, **__: Any) -> Any:
    raise ModelError(
        "this graph was there to edit inside of `with model.editing()`, which has ended: what is"
        " changed now would be lost"
    )


class _ClosedList(list[Any]):
    """What a list of a closed graph becomes: it can be read."""

    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = _refuse


class _ClosedNode(Node):
    __setattr__ = _refuse


class _ClosedVariable(Variable):
    __setattr__ = _refuse


class _ClosedConstant(Constant):
    __setattr__ = _refuse


class _ClosedGraph(Graph):
    __setattr__ = _refuse


def close(scopes: Sequence[Graph]) -> None:
    """Let nothing be changed any more in graphs that were given out to edit."""
    for scope in scopes:
        for tensor in tensors_of(scope):
            _close(tensor, _ClosedConstant if isinstance(tensor, gs.Constant) else _ClosedVariable)
        for node in scope.nodes:
            _close(node, _ClosedNode)
        fields: dict[str, Any] = scope.__dict__
        for name in ("nodes", "inputs", "outputs", "initializers"):
            fields[name] = _ClosedList(fields[name])
        if not scope.is_function:
            scope.__class__ = _ClosedGraph


def _close(what: Any, kind: type[Any]) -> None:
    if what.__class__ is kind:
        return
    fields = vars(what)
    fields.update(inputs=_ClosedList(what.inputs), outputs=_ClosedList(what.outputs))
    object.__setattr__(what, "__class__", kind)
