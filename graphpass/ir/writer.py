"""From the graph that passes rewrote back to its ModelProto, without losing anything.

The proto is patched in place: a node that was not touched keeps its NodeProto as it is, whatever
it holds. Only changed nodes, and the lists of nodes, initializers and value_info where they
differ, are written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto
from onnx.helper import make_attribute

from graphpass.errors import RuleError
from graphpass.ir.graphsurgeon import LazyValues
from graphpass.ir.nodes import Constant, Graph, Node, Tensor, snapshot
from graphpass.ir.reader import attribute_parser
from graphpass.ir.weight import Array, Weight

StoreTensor = Callable[[Array, str], TensorProto]


class Writer:
    """Patches the protos of a model with what passes made of its graphs."""

    def __init__(
        self, store: StoreTensor, *, initializers_are_inputs: bool, adopts: bool = True
    ) -> None:
        """`store` turns an array into a TensorProto.

        `initializers_are_inputs`: whether each initializer is listed among the inputs as well
        (IR versions before 4 demand it). `adopts`: whether constants that no graph holds become
        initializers of the one that reads them.
        """
        self.store = store
        self.initializers_are_inputs = initializers_are_inputs
        self.adopts = adopts

    def write(self, graph: Graph) -> None:
        """Bring `graph.proto` and the bodies inside it up to date with `graph`."""
        before = {name for node in graph.proto.node for name in node.output}
        if not graph.is_function:
            before |= {tensor.name for tensor in graph.proto.initializer}
            if self.adopts:
                self._adopt_constants(graph)
        self._write_nodes(graph)
        if graph.is_function:
            return
        self._write_initializers(graph)
        after = {name for node in graph.proto.node for name in node.output}
        after |= {tensor.name for tensor in graph.proto.initializer}
        gone = before - after
        self._drop_stale(graph.proto, gone | graph.stale, gone)

    def _adopt_constants(self, graph: Graph) -> None:
        """Find the constants that a pass made without saying which graph they belong to."""
        owned: set[int] = set()
        scope: Graph | None = graph
        while scope is not None:
            owned.update(id(constant) for constant in scope.initializers)
            scope = scope.parent
        tensors = [tensor for node in graph.nodes for tensor in node.inputs]
        for tensor in [*tensors, *graph.outputs]:
            if isinstance(tensor, gs.Constant) and id(tensor) not in owned and tensor.name:
                owned.add(id(tensor))
                graph.initializers.append(tensor)

    def _write_nodes(self, graph: Graph) -> None:
        old = graph.proto.node
        for node in graph.nodes:
            for body in graph.subgraphs_of(node):
                self.write(body)
        protos = [self._node_proto(node) for node in graph.nodes]
        if len(old) == len(protos) and all(a is b for a, b in zip(old, protos, strict=True)):
            return
        # a list of its own first: extending from elements of the list being cleared would lose them
        held = onnx.GraphProto()
        held.node.extend(protos)
        del old[:]
        old.MergeFrom(held.node)
        for node, proto in zip(graph.nodes, old, strict=True):
            _rebase(node, proto)

    def _node_proto(self, node: Node) -> onnx.NodeProto:
        inputs = _names(node.inputs)
        outputs = _names(node.outputs)
        proto: onnx.NodeProto | None = node.proto
        if proto is None:
            proto = onnx.NodeProto(op_type=node.op, name=node.name, input=inputs, output=outputs)
            if node.domain:
                proto.domain = node.domain
            for key, value in node.attrs.items():
                proto.attribute.append(self._attribute(node, key, value))
            if node.like is not None and node.like.proto is not None:
                proto.doc_string = node.like.proto.doc_string
                proto.metadata_props.extend(node.like.proto.metadata_props)
            return proto
        if proto.op_type != node.op:
            proto.op_type = node.op
        if proto.name != (node.name or ""):
            proto.name = node.name
        if proto.domain != (node.domain or ""):
            proto.domain = node.domain
        if list(proto.input) != inputs:
            del proto.input[:]
            proto.input.extend(inputs)
        if list(proto.output) != outputs:
            del proto.output[:]
            proto.output.extend(outputs)
        if node._attrs is not None and node.parsed is not None:
            self._patch_attributes(node, proto)
        return proto

    def _patch_attributes(self, node: Node, proto: onnx.NodeProto) -> None:
        changed = {
            key: value
            for key, value in node.attrs.items()
            if key not in node.parsed or not _same(node.parsed[key], value)
        }
        if not changed and len(node.attrs) == len(node.parsed):
            return
        attributes = [
            self._attribute(node, a.name, changed.pop(a.name)) if a.name in changed else a
            for a in proto.attribute
            if a.name in node.attrs
        ]
        attributes += [self._attribute(node, key, value) for key, value in changed.items()]
        held = onnx.NodeProto()
        held.attribute.extend(attributes)
        del proto.attribute[:]
        proto.attribute.MergeFrom(held.attribute)
        _rebase(node, proto)  # what they are now is what the next change is held against

    def _attribute(self, node: Node, key: str, value: Any) -> AttributeProto:
        if isinstance(value, AttributeProto):
            copied = AttributeProto()
            copied.CopyFrom(value)
            copied.name = key
            return copied
        if isinstance(value, gs.Node.AttributeRef):
            return AttributeProto(name=key, ref_attr_name=value.name, type=value.type)
        if isinstance(value, (gs.Constant, Weight, np.ndarray)):
            value = self._tensor_proto(value, key)
            return AttributeProto(name=key, t=value, type=AttributeProto.TENSOR)
        if isinstance(value, Graph):
            return AttributeProto(name=key, g=value.proto, type=AttributeProto.GRAPH)
        try:
            return make_attribute(key, value, attr_type=_schema_type(node, key))
        except (TypeError, ValueError) as error:
            raise RuleError(
                f"attribute {key!r} of {node.op} {node.name!r} cannot be written: {error}"
            ) from error

    def _tensor_proto(self, value: gs.Constant | Weight | Array, name: str) -> TensorProto:
        held = value._values if isinstance(value, gs.Constant) else value
        if isinstance(held, Weight) and held.tensor is not None:
            return held.tensor
        array = held.load() if isinstance(held, LazyValues) else np.asarray(held)
        return self.store(array, name)

    def _write_initializers(self, graph: Graph) -> None:
        proto = graph.proto
        assert isinstance(proto, onnx.GraphProto)
        constant_names = {constant.name for constant in graph.initializers}
        input_names = {value.name for value in proto.input}
        graph_inputs = {t.name for t in graph.inputs if not isinstance(t, gs.Constant)}
        by_name = {tensor.name: tensor for tensor in proto.initializer}
        # overridable initializers are inputs to the passes: they stay where they were
        kept = [
            tensor
            for tensor in proto.initializer
            if tensor.name in constant_names or tensor.name in graph_inputs
        ]
        order = [tensor.name for tensor in kept]
        seen = set(order)
        order += [c.name for c in graph.initializers if c.name not in seen]
        constants = {constant.name: constant for constant in graph.initializers}
        tensors = []
        for name in order:
            constant = constants.get(name)
            tensors.append(
                by_name[name] if constant is None else self._initializer(constant, by_name)
            )
        if self.initializers_are_inputs:
            # under their own names: a tensor may have been handed on to another initializer
            named = dict(zip(order, tensors, strict=True))
            self._write_initializer_inputs(graph, proto, input_names, named)
        if len(tensors) == len(proto.initializer) and all(
            a is b and a.name == name  # a tensor may have been handed on to another initializer
            for a, b, name in zip(tensors, proto.initializer, order, strict=True)
        ):
            return
        held = onnx.GraphProto()
        held.initializer.extend(tensors)
        for name, tensor in zip(order, held.initializer, strict=True):
            tensor.name = name
        del proto.initializer[:]
        proto.initializer.MergeFrom(held.initializer)
        for tensor in proto.initializer:
            if tensor.name in constants:
                constants[tensor.name]._values = Weight.of(tensor)

    def _initializer(self, constant: Constant, by_name: Mapping[str, TensorProto]) -> TensorProto:
        held = constant._values
        old = by_name.get(constant.name)
        if isinstance(held, Weight) and held.tensor is not None and held.tensor is old:
            return old
        return self._tensor_proto(constant, constant.name)

    @staticmethod
    def _write_initializer_inputs(
        graph: Graph,
        proto: onnx.GraphProto,
        input_names: set[str],
        tensors: Mapping[str, TensorProto],
    ) -> None:
        gone = {t.name for t in proto.initializer} - set(tensors)
        kept = [value for value in proto.input if value.name not in gone]
        added = [
            onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
            for name, tensor in tensors.items()
            if name not in input_names
        ]
        # a body's initializers need not be its inputs: those are what the node passes in
        if graph.parent is not None or (not added and len(kept) == len(proto.input)):
            return
        held = onnx.GraphProto()
        held.input.extend([*kept, *added])
        del proto.input[:]
        proto.input.MergeFrom(held.input)

    @staticmethod
    def _drop_stale(proto: onnx.GraphProto, untyped: set[str], gone: set[str]) -> None:
        for field, key, dropped in (
            ("value_info", "name", untyped),
            ("quantization_annotation", "tensor_name", gone),
        ):
            if not dropped:
                continue
            entries = getattr(proto, field)
            kept = [entry for entry in entries if getattr(entry, key) not in dropped]
            if len(kept) != len(entries):
                held = onnx.GraphProto()
                getattr(held, field).extend(kept)
                del entries[:]
                entries.MergeFrom(getattr(held, field))


def unwritten(graph: Graph) -> str:
    """Say what of `graph`, not of the bodies inside it, is not as its proto says; or empty."""
    proto = graph.proto
    for node, written in zip(graph.nodes, proto.node, strict=False):
        if node.proto is not written or _is_changed(node, written):
            return f"{node.op} '{node.name}'"
    if len(graph.nodes) != len(proto.node):
        return "the list of its nodes"
    if graph.is_function:
        return ""
    held = {tensor.name: tensor for tensor in proto.initializer}
    for constant in graph.initializers:
        if not _is_held(constant._values, held.get(constant.name)):
            return f"'{constant.name}'"
    if len(graph.initializers) + len(graph.overridable) != len(held):
        return "the list of its initializers"
    for tensors, values in ((graph.inputs, proto.input), (graph.outputs, proto.output)):
        if _names(tensors) != [value.name for value in values]:
            return "its inputs and outputs"
    return ""


def _is_held(values: Any, tensor: TensorProto | None) -> bool:
    if tensor is None:
        return False
    if isinstance(values, Weight):
        return values.tensor is tensor
    array = values.load() if isinstance(values, LazyValues) else np.asarray(values)
    known = Weight.of(tensor)
    if (array.dtype, array.shape) != (known.dtype, tuple(known.shape)):
        return False
    return bool(array.tobytes() == known.array().tobytes())


def _is_changed(node: Node, proto: onnx.NodeProto) -> bool:
    if (node.op, node.name, node.domain) != (proto.op_type, proto.name, proto.domain):
        return True
    if _names(node.inputs) != list(proto.input) or _names(node.outputs) != list(proto.output):
        return True
    if node._attrs is None or node.parsed is None:
        return False
    return len(node.attrs) != len(node.parsed) or any(
        key not in node.parsed or not _same(node.parsed[key], value)
        for key, value in node.attrs.items()
    )


def node_proto(node: Node) -> onnx.NodeProto:
    """Return a NodeProto of `node` as it is now, apart from the model; its tensors are inside."""
    if node.proto is None:
        return Writer(onnx.numpy_helper.from_array, initializers_are_inputs=False)._node_proto(node)
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    del proto.input[:]
    proto.input.extend(tensor.name for tensor in node.inputs)
    del proto.output[:]
    proto.output.extend(tensor.name for tensor in node.outputs)
    return proto


def _rebase(node: Node, proto: onnx.NodeProto) -> None:
    """Point `node` and the bodies inside it at the copy of their proto that is in the model."""
    fields = node.__dict__  # past graphsurgeon's own __setattr__, which is slow
    fields["proto"] = proto
    if fields["_attrs"] is None:
        fields["_parse"] = attribute_parser(proto)
        return
    for attribute in proto.attribute:
        value = node.attrs[attribute.name]
        if isinstance(value, Graph):
            _rebase_graph(value, attribute.g)
        elif isinstance(value, list) and value and isinstance(value[0], Graph):
            for body, body_proto in zip(value, attribute.graphs, strict=True):
                _rebase_graph(body, body_proto)
        elif isinstance(value, Constant):
            value._values = Weight.of(attribute.t)
    node.parsed = snapshot(node.attrs)


def _rebase_graph(graph: Graph, proto: onnx.GraphProto) -> None:
    graph.proto = proto
    tensors = {tensor.name: tensor for tensor in proto.initializer}
    for constant in graph.initializers:
        constant._values = Weight.of(tensors[constant.name])
    for node, written in zip(graph.nodes, proto.node, strict=True):
        _rebase(node, written)


def _names(tensors: Iterable[Tensor]) -> list[str]:
    return [tensor.name for tensor in tensors]


def _same(parsed: Any, value: Any) -> bool:
    if isinstance(value, list):
        return (
            isinstance(parsed, tuple)
            and len(parsed) == len(value)
            and all(a is b or _same(a, b) for a, b in zip(parsed, value, strict=True))
        )
    if isinstance(value, gs.Constant):
        return parsed is value._values
    if isinstance(value, (gs.Graph, AttributeProto)):
        return parsed is value
    # 0.0 == -0.0, and 1 == 1.0 == True: neither pair is the same attribute
    return type(parsed) is type(value) and repr(parsed) == repr(value)


def _schema_type(node: Node, key: str) -> int | None:
    from graphpass.ir.questions import schema

    found = schema(node)
    if found is None or key not in found.attributes:
        return None
    kind: int = found.attributes[key].type.value  # type: ignore[attr-defined]
    return kind
