"""What one run of a model costs, by its shapes and not by the clock.

Which feeds are run depends on it, and reports of two runs must not differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx

from graphpass.ir.inference import infer_shapes
from graphpass.ir.operators import Trait, traits
from graphpass.ir.proto_walk import all_graphs

Shape = Sequence[int]


def multiply_adds(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> float:
    """Estimate the multiply-adds of one run with inputs of these shapes.

    Where the shape of a result cannot be inferred, each weight is taken to be used as often as
    the square root of the elements of the largest input: between once, as behind a Flatten, and
    once for each, as at the first Conv. Bodies of loops count once.
    """
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    for value in bound.graph.input:
        if value.name in shapes and value.type.WhichOneof("value") == "tensor_type":
            _fix(value.type.tensor_type, shapes[value.name])
    inferred = infer_shapes(bound)
    known: dict[str, Shape] = {}
    for graph in (*all_graphs(bound), *all_graphs(inferred)):  # what is declared, then what is so
        for value in (*graph.value_info, *graph.output, *graph.input):
            shape = _shape(value)
            if shape is not None:
                known[value.name] = shape
        known.update((tensor.name, tuple(tensor.dims)) for tensor in graph.initializer)
    graphs = all_graphs(bound)
    reuse = math.sqrt(max((math.prod(shape) for shape in shapes.values()), default=1))
    return sum(_node_cost(node, known, reuse) for graph in graphs for node in graph.node)


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


def _node_cost(node: onnx.NodeProto, known: Mapping[str, Shape], reuse: float) -> float:
    inputs = [known.get(name) for name in node.input]
    output = known.get(node.output[0]) if node.output else None
    size = math.prod(output) if output is not None else 0
    weight = inputs[1] if len(inputs) > 1 else None
    if Trait.CONTRACTION | Trait.ON_MAGNITUDES not in traits(node.op_type) or not weight:
        return size
    if node.op_type == "ConvTranspose" and inputs[0] is not None:
        return math.prod(inputs[0]) * math.prod(weight[1:])
    if not output:
        return math.prod(weight) * reuse
    if Trait.SLIDING in traits(node.op_type):
        return size * math.prod(weight[1:])
    # A weight of K x M gives M columns, K multiply-adds for each element.
    return size * math.prod(weight[-2:]) / max(output[-1], 1)
