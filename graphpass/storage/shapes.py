"""Which tensors shape inference reads: runtimes load no model that keeps those in another file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx import AttributeProto, NodeProto, TensorProto

# Targets, axes, starts, pads, counts; also what they are computed with (Gather, Concat, Mul …).
_WHOLE = (TensorProto.INT32, TensorProto.INT64)
_MOST_ELEMENTS = 512  # no list of sizes or axes is as long
# The inputs whose floats decide a size.
_SCALES = {"Resize": (1, 2), "Upsample": (1,), "Range": (0, 1, 2)}


def read_by_shape_inference(model: onnx.ModelProto) -> frozenset[bytes]:
    """Return the tensors, each serialized, whose values decide shapes.

    These are short vectors and scalars of integers, and the scales of Resize, Upsample and Range.
    """
    found = _of_graph(model.graph.node, model.graph.initializer)
    for function in model.functions:
        found += _of_graph(function.node, ())
    return frozenset(tensor.SerializeToString(deterministic=True) for tensor in found)


def _of_graph(nodes: Sequence[NodeProto], initializers: Sequence[TensorProto]) -> list[TensorProto]:
    held = {tensor.name: tensor for tensor in initializers}
    constants = list(initializers)
    found: list[TensorProto] = []
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                constants.append(attribute.t)
                held.update((name, attribute.t) for name in node.output)
            for body in _bodies(attribute):
                found += _of_graph(body.node, body.initializer)
    found += [tensor for tensor in constants if tensor.data_type in _WHOLE and _is_list(tensor)]
    for node in nodes:
        for index in _SCALES.get(node.op_type, ()):
            tensor = held.get(node.input[index]) if index < len(node.input) else None
            if tensor is not None and _is_list(tensor):
                found.append(tensor)
    return found


def _is_list(tensor: TensorProto) -> bool:
    return len(tensor.dims) == 0 or (len(tensor.dims) == 1 and tensor.dims[0] <= _MOST_ELEMENTS)


def _bodies(attribute: AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.type == AttributeProto.GRAPH:
        yield attribute.g
    elif attribute.type == AttributeProto.GRAPHS:
        yield from attribute.graphs
