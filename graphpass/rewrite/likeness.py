"""When two sites are alike, so that what was measured at one holds for the other."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence

import onnx

from graphpass.ir.weight import Weight
from graphpass.rewrite.window import Window

# integers that decide on shapes, as axes and sizes are; weights are alike whatever they hold
_MOST_READ = 64
_INTEGERS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL)


def likeness(window: Window, shapes: Mapping[str, Sequence[int]] | None = None) -> str:
    """Return a name, 16 hexadecimal digits, that sites which are alike share.

    They have the same operators with the same attributes, joined in the same way, before and
    after, weights of the same types and shapes, and inputs of the same types and `shapes` (None:
    as they are declared). What anything is called does not matter, nor what weights hold.
    """
    told = [_side(side, shapes) for side in (window.before, window.after)]
    text = json.dumps(told, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _side(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None) -> list[object]:
    graph = model.graph
    numbers: dict[str, int] = {"": -1}

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers))

    nodes = [
        [
            node.domain,
            node.op_type,
            [number(name) for name in node.input],
            [number(name) for name in node.output],
            sorted(_attribute(held) for held in node.attribute),
        ]
        for node in graph.node
    ]
    inputs = [
        [
            number(value.name),
            value.type.tensor_type.elem_type,
            _declared(value) if shapes is None else list(shapes[value.name]),
        ]
        for value in graph.input
    ]
    weights = [[number(tensor.name), *_weight(tensor)] for tensor in graph.initializer]
    outputs = [number(value.name) for value in graph.output]
    imports = sorted((entry.domain, entry.version) for entry in model.opset_import)
    return [imports, nodes, sorted(inputs), sorted(weights, key=str), sorted(outputs)]


def _attribute(held: onnx.AttributeProto) -> str:
    if held.type == onnx.AttributeProto.TENSOR:
        return f"{held.name} {_weight(held.t)}"
    return f"{held.name} {held.SerializeToString(deterministic=True).hex()}"


def _declared(value: onnx.ValueInfoProto) -> list[int | None] | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]


def _weight(tensor: onnx.TensorProto) -> list[object]:
    told: list[object] = [tensor.data_type, list(tensor.dims)]
    if tensor.data_type in _INTEGERS and math.prod(tensor.dims) <= _MOST_READ:
        told.append(Weight.of(tensor, "").array().ravel().tolist())
    return told
