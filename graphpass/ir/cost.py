"""What one run of a model costs, by its shapes and not by the clock.

Multiply-adds are those of sums of products: convolutions, matrix products, recurrent layers. What
else is computed is counted by what it reads and writes alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx
from onnx import numpy_helper

from graphpass.ir.inference import infer_shapes
from graphpass.ir.operators import Trait, row
from graphpass.ir.proto_walk import all_graphs
from graphpass.ir.questions import STANDARD_DOMAINS
from graphpass.storage.reference import byte_count, is_external

Shape = Sequence[int]

# inputs of an operator: the data, the weight
_CONVOLUTIONS = {"Conv": (0, 1), "FusedConv": (0, 1), "ConvInteger": (0, 1), "QLinearConv": (0, 3)}
_PRODUCTS = {
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "FusedMatMul": (0, 1),
    "QLinearMatMul": (0, 3),
}
_RECURRENT = ("LSTM", "GRU", "RNN")
_GROWN = 256  # times what a value comes from
_HUGE = 1 << 60  # bytes; beyond, a product of sizes is none that could be right
_MOST_AXES = 64  # multiplied, as a list of sizes may have any length


@dataclass(frozen=True)
class NodeCost:
    """One node: `output`: the shape of its first output, None where that is unknown; `data_type`:
    of its elements, as ONNX numbers them, 0 where that is unknown.

    `multiply_adds`: of sums of products, 0 for what sums none, None where shapes are unknown.
    `weight_elements`, `weight_bytes`: of the initializers and Constant nodes that it reads.
    `activation_bytes`: of its outputs, as far as their shapes are known; 0 for another view of what
    is there already.
    """

    node: str
    operator: str
    output: tuple[int, ...] | None
    data_type: int
    multiply_adds: int | None
    weight_elements: int
    weight_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Cost:
    """A whole run with inputs of the shapes `inputs`, by name.

    `multiply_adds`, and `weight_bytes` and `activation_bytes`, each counted once. `uncounted`: sums
    of products whose shapes are unknown.
    """

    inputs: Mapping[str, Shape]
    multiply_adds: int
    weight_bytes: int
    activation_bytes: int
    uncounted: int


def cost_of(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> Cost:
    """Count what a run with inputs of these shapes costs. Bodies of loops count once."""
    counted = _inferred(model, shapes)
    nodes = _node_costs(counted)
    weights = (weight for graph in all_graphs(counted.model) for _, weight in _weights(graph))
    return Cost(
        {name: list(shape) for name, shape in shapes.items()},
        sum(node.multiply_adds or 0 for node in nodes),
        sum(_bytes(weight.data_type, weight.dims) for weight in weights),
        sum(node.activation_bytes for node in nodes),
        sum(node.multiply_adds is None for node in nodes),
    )


def node_costs(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> list[NodeCost]:
    """Count what each node costs, those of bodies included, with inputs of these shapes.

    The model is taken as ONNX infers it; calls of functions are counted as what they do.
    """
    return _node_costs(_inferred(model, shapes))


def _node_costs(counted: _Counted) -> list[NodeCost]:
    return [_node_cost(node, counted) for graph in all_graphs(counted.model) for node in graph.node]


@dataclass(frozen=True)
class Growth:
    """What a run makes of what the model reads.

    `made`: bytes that come of next to nothing: of less than a 256th part, through all nodes on the
    way, as ConstantOfShape, Expand or Tile make them, or padding without end. `held`: bytes of the
    inputs and weights. `steps`: how many nodes all steps of loops run. `has_loops`: how
    much and how long shows in a run alone. `has_all_sizes`: whether all sizes are known before it.
    """

    made: int
    held: int
    steps: int
    has_loops: bool
    has_all_sizes: bool


def growth_of(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> Growth:
    """Say what becomes of inputs of these shapes; what is not known of them counts as nothing."""
    bound, known, types, weights = _inferred(model, shapes)
    own = {name: _bytes(weight.data_type, weight.dims) for name, weight in weights.items()}
    for value in bound.graph.input:
        own.update(zip([value.name], _written([value.name], known, types), strict=False))
    held = sum(own.values())
    behind = dict(own)  # how much of what the model reads a value comes from, at most
    made = steps = loops = 0
    has_all_sizes = True
    waiting = [(bound.graph, 1)]
    while waiting:
        graph, times = waiting.pop()
        steps += len(graph.node) * times if times > 1 else 0
        for node in graph.node:
            if _is_constant(node):
                continue
            tensors = [a.t for a in node.attribute if a.HasField("t")]
            read = sum(behind.get(name, 0) for name in set(node.input))
            read = min(read + sum(_bytes(t.data_type, t.dims) for t in tensors), held)
            read = max(read, 1)
            found = list(_written(node.output, known, types, huge=_HUGE))
            has_all_sizes &= len(found) == len(list(filter(None, node.output)))
            written = sum(found)
            for attribute in node.attribute:
                for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    behind.update((value.name, read) for value in body.input)
                    loop = _loop(node, body, known, weights)
                    loops += loop is not None
                    count, kept = loop or (1, [])
                    waiting.append((body, times * count))
                    written += count * sum(_written(kept, known, types, huge=_HUGE))
            made += written if written > _GROWN * read else 0
            behind.update(dict.fromkeys(node.output, read))
    return Growth(made, held, steps, loops > 0, has_all_sizes)


def _loop(
    node: onnx.NodeProto,
    body: onnx.GraphProto,
    known: Mapping[str, Shape],
    weights: Mapping[str, _Held],
) -> tuple[int, list[str]] | None:
    """Return how often a loop runs its body, 1 where that is not known, and what it keeps of each.

    None for what is no loop.
    """
    outputs = [value.name for value in body.output]
    if node.op_type == "Loop":
        trips = weights.get(node.input[0]) if node.input else None
        number = 1 if trips is None else trips.number or 1
        return max(number, 1), outputs[len(node.input) - 1 :]
    given = {a.name: a for a in node.attribute}
    if node.op_type != "Scan" or "num_scan_inputs" not in given:
        return None
    first = len(node.input) - given["num_scan_inputs"].i
    axes = given["scan_input_axes"].ints if "scan_input_axes" in given else ()
    lengths = [
        shape[axis]
        for place, name in enumerate(node.input[max(first, 0) :])
        if (shape := known.get(name))
        for axis in axes[place : place + 1] or [0]
        if -len(shape) <= axis < len(shape)
    ]
    return max(lengths, default=1) or 1, outputs[max(first, 0) :]


class _Held(NamedTuple):
    """What a file holds of a weight; of a sparse one, the values that are not 0.

    `number`: the integer, where it is one.
    """

    data_type: int
    dims: Shape
    number: int | None = None


def _held(tensor: onnx.TensorProto) -> _Held:
    number = None
    is_one = math.prod(tensor.dims[:_MOST_AXES]) == 1
    if is_one and tensor.data_type == onnx.TensorProto.INT64 and not is_external(tensor):
        with contextlib.suppress(ValueError):  # its bytes are not those of its shape
            number = int(numpy_helper.to_array(tensor).item())
    return _Held(tensor.data_type, tensor.dims, number)


class _Counted(NamedTuple):
    """A model with fixed inputs, its calls written out; shapes, types and weights by name."""

    model: onnx.ModelProto
    known: dict[str, Shape]
    types: dict[str, int]
    weights: dict[str, _Held]


def _inferred(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> _Counted:
    bound = _bound(model, shapes)
    if bound.functions:
        from onnx import inliner  # rarely needed

        with contextlib.suppress(RuntimeError, ValueError):  # calls that do not fit
            bound = inliner.inline_local_functions(bound)
    inferred = infer_shapes(bound)
    known: dict[str, Shape] = {}
    types: dict[str, int] = {}
    weights: dict[str, _Held] = {}
    for graph in (*all_graphs(bound), *all_graphs(inferred)):  # what is declared, then what is so
        for value in (*graph.value_info, *graph.output, *graph.input):
            shape = _shape(value)
            if shape is not None:
                known[value.name] = shape
            types[value.name] = value.type.tensor_type.elem_type
        known.update((tensor.name, tuple(tensor.dims)) for tensor in graph.initializer)
        weights.update(_weights(graph))
    return _Counted(bound, known, types, weights)


def _weights(graph: onnx.GraphProto) -> Iterator[tuple[str, _Held]]:
    """Yield what the file holds, by name: exporters write weights as Constant nodes too."""
    for tensor in graph.initializer:
        yield tensor.name, _held(tensor)
    for sparse in graph.sparse_initializer:
        yield sparse.values.name, _Held(sparse.values.data_type, sparse.values.dims)
    for node in graph.node:
        if _is_constant(node) and node.output and node.attribute:
            yield node.output[0], _value(node.attribute[0])


def _is_constant(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and node.domain in STANDARD_DOMAINS


def _value(attribute: onnx.AttributeProto) -> _Held:
    """Return what the attribute of a Constant node holds."""
    if attribute.HasField("t") or attribute.HasField("sparse_tensor"):
        return _held(attribute.t if attribute.HasField("t") else attribute.sparse_tensor.values)
    for data_type, number, numbers in (
        (onnx.TensorProto.FLOAT, "f", attribute.floats),
        (onnx.TensorProto.INT64, "i", attribute.ints),
        (onnx.TensorProto.STRING, "s", attribute.strings),
    ):
        if numbers or attribute.HasField(number):
            return _Held(data_type, [len(numbers)] if numbers else [], attribute.i or None)
    return _Held(onnx.TensorProto.UNDEFINED, [0])


def shapes_of_outputs(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Infer the shapes of the outputs for inputs of these shapes, as far as that is known."""
    bound = _bound(model, shapes)
    for value in bound.graph.output:  # what is declared of other sizes is not so for these
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
    found = ((value.name, _shape(value)) for value in infer_shapes(bound).graph.output)
    return {name: shape for name, shape in found if shape is not None}


def _bound(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> onnx.ModelProto:
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    for value in bound.graph.input:
        if value.name in shapes and value.type.WhichOneof("value") == "tensor_type":
            _fix(value.type.tensor_type, shapes[value.name])
    return bound


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


def _node_cost(node: onnx.NodeProto, counted: _Counted) -> NodeCost:
    _, known, types, weights = counted
    output = known.get(node.output[0]) if node.output else None
    held = {name: weights[name] for name in node.input if name in weights}.values()
    found = row(node.op_type, node.domain)
    written = 0
    if not _is_constant(node) and (found is None or Trait.VIEW not in found.traits):
        written = sum(_written(node.output, known, types))
    return NodeCost(
        node.name or (node.output[0] if node.output else ""),
        node.op_type,
        None if output is None else tuple(output),
        types.get(node.output[0], 0) if node.output else 0,
        _multiply_adds(node, known),
        sum(math.prod(tensor.dims) for tensor in held),
        sum(_bytes(tensor.data_type, tensor.dims) for tensor in held),
        written,
    )


def _written(
    names: Sequence[str], known: Mapping[str, Shape], types: Mapping[str, int], huge: int = 0
) -> Iterator[int]:
    for name in names:
        if types.get(name) and name in known:
            is_huge = huge and math.prod(known[name][:_MOST_AXES]) > huge
            yield huge if is_huge else _bytes(types[name], known[name])


def _bytes(data_type: int, dims: Sequence[int]) -> int:
    return byte_count(data_type, list(dims)) or 0


def _multiply_adds(node: onnx.NodeProto, known: Mapping[str, Shape]) -> int | None:
    """Return those of a sum of products, 0 for another operator, None where it is not known."""
    op = node.op_type
    inputs = [known.get(name) for name in node.input]
    output = known.get(node.output[0]) if node.output else None
    if op == "ConvTranspose":
        if len(inputs) < 2 or inputs[0] is None or inputs[1] is None:
            return None
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if op in _RECURRENT:
        if len(inputs) < 3 or inputs[0] is None or inputs[1] is None or inputs[2] is None:
            return None
        return math.prod(inputs[0][:2]) * (math.prod(inputs[1]) + math.prod(inputs[2]))
    roles = _CONVOLUTIONS.get(op) or _PRODUCTS.get(op)
    if roles is None:
        return 0
    data, weight = (inputs[place] if place < len(inputs) else None for place in roles)
    if output is None:
        return None
    if op in _CONVOLUTIONS:
        return None if weight is None else math.prod(output) * math.prod(weight[1:])
    length = _summands(node, data, weight)
    return None if length is None else math.prod(output) * length


def _summands(node: onnx.NodeProto, data: Shape | None, weight: Shape | None) -> int | None:
    """Return how many products each element of a matrix product sums up."""
    turned = any(a.name == "transB" and a.i for a in node.attribute)
    if weight:
        return weight[-1] if turned or len(weight) == 1 else weight[-2]
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return (data[-2] if turned else data[-1]) if data else None
