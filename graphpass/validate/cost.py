"""What one run of a model costs, by its shapes and not by the clock.

Which feeds are run depends on it, and reports of two runs must not differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx

from graphpass.validate.walk import all_graphs

Shape = Sequence[int]


def multiply_adds(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> float:
    """Estimate the multiply-adds of one run with inputs of these shapes.

    Where a shape cannot be inferred, every weight counts once. Bodies of loops count once.
    """
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    for value in bound.graph.input:
        if value.name in shapes and value.type.WhichOneof("value") == "tensor_type":
            _fix(value.type.tensor_type, shapes[value.name])
    try:
        bound = onnx.shape_inference.infer_shapes(bound)
    except Exception:  # a malformed model: its cost is the least of the problems
        return 0.0
    known: dict[str, Shape] = {}
    graphs = list(all_graphs(bound))
    for graph in graphs:
        for value in (*graph.input, *graph.output, *graph.value_info):
            shape = _shape(value)
            if shape is not None:
                known[value.name] = shape
        known.update((tensor.name, tuple(tensor.dims)) for tensor in graph.initializer)
    return sum(_node_cost(node, known) for graph in graphs for node in graph.node)


def _fix(tensor: onnx.TypeProto.Tensor, shape: Shape) -> None:
    del tensor.shape.dim[:]
    for size in shape:
        tensor.shape.dim.add().dim_value = size


def _shape(value: onnx.ValueInfoProto) -> Shape | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    if any(not dim.HasField("dim_value") for dim in dims):
        return None
    return [dim.dim_value for dim in dims]


def _node_cost(node: onnx.NodeProto, known: Mapping[str, Shape]) -> float:
    inputs = [known.get(name) for name in node.input]
    output = known.get(node.output[0]) if node.output else None
    size = math.prod(output) if output is not None else 0
    weight = inputs[1] if len(inputs) > 1 else None
    if node.op_type == "Conv" and weight is not None:
        return max(size, 1) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose" and weight is not None and inputs[0] is not None:
        return math.prod(inputs[0]) * math.prod(weight[1:])
    if node.op_type in ("MatMul", "Gemm") and weight:
        # A weight of K x M gives M columns, K multiply-adds for each element.
        return size * math.prod(weight[-2:]) / output[-1] if output and size else math.prod(weight)
    return size
