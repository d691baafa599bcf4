"""Questions that rules ask about nodes and tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphpass.ir.nodes import Constant, Graph, Node, Tensor, Variable, weight_in
from graphpass.ir.refusal import COMPUTED, PARAMETER, RefusedError, needed, require
from graphpass.ir.weight import Array, Weight

STANDARD_DOMAINS = ("", "ai.onnx")

_MOST_VIEWS = 16  # one on the other; clean-up leaves no more than two or three
_EXPANDED_BYTES = 1 << 16  # a bias may be written as Expand; a whole network must not come of it


def has_effects(node: Node) -> bool:
    """Whether `node` may do more than compute its outputs, as far as ONNX can tell.

    An operator that ONNX does not know may print, count or fail: it stays even if nothing reads it.
    """
    inside = (
        inner
        for body in node.graph.subgraphs_of(node)
        for scope in body.scopes()  # at any depth
        for inner in scope.nodes
    )
    return any(
        "function::" in operator(one) or schema(one) is None
        for one in itertools.chain((node,), inside)
    )


def is_unread(node: Node) -> bool:
    """Whether nothing changes without `node`."""
    named = False
    for tensor in node.outputs:
        if tensor.name:
            if tensor.outputs or is_output(tensor):
                return False
            named = True
    return named and not has_effects(node)


def label(node: Node) -> str:
    """Name `node` for a reader: operator and name, or its first output where it has none."""
    if node.name:
        return f"{node.op} '{node.name}'"
    return f"{node.op} of '{node.outputs[0].name}'" if node.outputs else node.op


def operator(node: Node) -> str:
    """Return the operator's name, with its domain where it is not the standard operator."""
    domain = node.domain or ""
    if domain not in STANDARD_DOMAINS:
        return f"{domain}::{node.op}"
    graph = node.graph
    if graph is not None and graph.own_functions and (domain, node.op) in graph.own_functions:
        return f"function::{node.op}"
    return str(node.op)


@lru_cache(maxsize=4096)
def _schema(op: str, version: int, domain: str) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None


def opset(node: Node) -> int:
    """Return the version of the node's operator set that its model imports (0: none)."""
    opsets: dict[str, int] = node.graph.opsets
    domain = node.domain or ""
    if domain in STANDARD_DOMAINS:
        return opsets.get("", opsets.get("ai.onnx", 0))
    return opsets.get(domain, 0)


def schema(node: Node) -> onnx.defs.OpSchema | None:
    """Return the operator's schema in the model's own opset; None if ONNX does not know it."""
    domain = "" if (node.domain or "") in STANDARD_DOMAINS else node.domain
    return _schema(node.op, opset(node), domain)


@lru_cache(maxsize=4096)
def _default(op: str, version: int, domain: str, name: str) -> Any:
    found = _schema(op, version, domain)
    if found is None or name not in found.attributes:
        return None
    default = found.attributes[name].default_value
    if default.type == onnx.AttributeProto.UNDEFINED:
        return None
    value = onnx.helper.get_attribute_value(default)
    return value.decode() if isinstance(value, bytes) else value


@lru_cache(maxsize=1024)
def _formal(op: str, version: int) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the names of a standard operator's attributes and inputs."""
    found = _schema(op, version, "")
    if found is None:
        return frozenset(), ()
    return frozenset(found.attributes), tuple(formal.name for formal in found.inputs)


def as_written(
    op: str, domain: str, graph: Graph, operands: Sequence[Any], attributes: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return operands and attributes of an operator as the opset of `graph` has them.

    The axes of Squeeze and ReduceMean, the bounds of Slice, the sizes of Split: attributes once,
    inputs today, lists of integers both. Who makes such a node gives attributes in any opset. Of
    other domains than ONNX's own they stay as they are.
    """
    if domain:
        return list(operands), dict(attributes)
    known, inputs = _formal(op, graph.opsets.get("", graph.opsets.get("ai.onnx", 0)))
    moved = {
        inputs.index(name): np.array(value, np.int64)
        for name, value in attributes.items()
        if isinstance(value, list) and name not in known and name in inputs
    }
    if not moved:
        return list(operands), dict(attributes)
    count = max(len(operands), *(place + 1 for place in moved))
    held = [*operands, *[None] * (count - len(operands))]
    gone = {inputs[place] for place in moved}
    stay = {name: value for name, value in attributes.items() if name not in gone}
    return [moved.get(place, part) for place, part in enumerate(held)], stay


def attribute(node: Node, name: str, default: Any = None) -> Any:
    """Return an attribute, or the default that its schema has in the model's own opset.

    `default` where it is neither given nor has a default there. Raises `RefusedError` where its
    value is a parameter of the function around it.
    """
    value = node.attrs.get(name)
    if isinstance(value, gs.Node.AttributeRef):
        raise RefusedError(f"the {name} of {label(node)} is a parameter of its function", PARAMETER)
    if value is not None:
        return value
    domain = "" if (node.domain or "") in STANDARD_DOMAINS else node.domain
    known = _default(node.op, opset(node), domain, name)
    if known is None:
        return default
    return list(known) if isinstance(known, (list, tuple)) else known


def producer(tensor: Tensor) -> Node | None:
    """Return the node that computes `tensor`; None for inputs and initializers."""
    return tensor.inputs[0] if len(tensor.inputs) == 1 else None


def readers(tensor: Tensor) -> list[Node]:
    """Return the nodes that read `tensor`, those in bodies of If, Loop and Scan among them."""
    return list(tensor.outputs)


def is_output(tensor: Tensor) -> bool:
    """Whether `tensor` is an output of the graph, or of a body or function inside it."""
    return bool(getattr(tensor, "is_graph_output", False))


def rank(tensor: Tensor) -> int | None:
    """Return the number of dimensions; None if unknown."""
    return None if tensor.shape is None else len(tensor.shape)


def dims(tensor: Tensor) -> list[int | str | None] | None:
    """Return the dimensions: ints, names of symbolic ones, None for unknown; None: no rank."""
    return None if tensor.shape is None else list(tensor.shape)


def static_dim(tensor: Tensor, axis: int) -> int | None:
    """Return the size of one axis if it is fixed; negative axes count from the end."""
    shape = tensor.shape
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    size = shape[axis]
    return size if isinstance(size, int) else None


def static_shape(tensor: Tensor) -> tuple[int, ...] | None:
    """Return the shape if every dimension is fixed."""
    shape = tensor.shape
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    return tuple(shape)


def dtype(tensor: Tensor) -> np.dtype[Any] | None:
    """Return the element type as a numpy dtype; None if unknown or no tensor."""
    found = tensor.dtype
    return None if found is None else np.dtype(found)


def cast_type(node: Node) -> np.dtype[Any] | None:
    """Return the element type that a Cast or CastLike makes; None if it is not known."""
    if node.op == "CastLike":
        return dtype(node.inputs[1])
    target = attribute(node, "to")
    if isinstance(target, str):  # before opset 6
        target = onnx.TensorProto.DataType.Value(target)
    if target not in onnx.TensorProto.DataType.values():
        return None
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(target))


def is_overridable(tensor: Tensor) -> bool:
    """Whether `tensor` is an initializer that the caller may override at run time."""
    if isinstance(tensor, gs.Constant):
        return False
    graph: Graph | None = next((n.graph for n in tensor.outputs), None)
    while graph is not None:
        if graph.overridable.get(tensor.name) is tensor:
            return True
        graph = graph.parent
    return False


def constant(tensor: Tensor | None) -> Weight | None:
    """Return the value of a tensor that is the same in every run; None if it is not.

    Sees initializers, Constant nodes in all their forms, and these through Identity, Cast,
    Reshape, Flatten, Squeeze, Unsqueeze and Transpose, and what Expand makes of them if it is
    small (a bias). An initializer that the caller may override is no constant.
    """
    views: list[Node] = []
    while tensor is not None and len(views) <= _MOST_VIEWS:
        if tensor.name == "":
            return None
        if isinstance(tensor, gs.Constant):
            return _viewed(weight_in(tensor), views)
        node = producer(tensor)
        if node is None:
            return None
        op = operator(node)
        if op == "Constant":
            return _viewed(_constant_node(node), views)
        if op not in _VIEWS or not node.inputs:
            return None
        views.append(node)
        tensor = node.inputs[0]
    return None


def _viewed(weight: Weight | None, views: list[Node]) -> Weight | None:
    """Return what `views`, the last one first, make of a weight."""
    try:
        for node in reversed(views):
            weight = None if weight is None else _VIEWS[operator(node)](node, weight)
    except RefusedError:
        return None
    return weight


def _constant_node(node: Node) -> Weight | None:
    name = node.outputs[0].name
    ((key, value),) = node.attrs.items() if len(node.attrs) == 1 else ((None, None),)
    if isinstance(value, gs.Node.AttributeRef) or key is None:
        return None
    if key == "value" and isinstance(value, gs.Constant):
        weight = weight_in(value)
        if weight.tensor is None:
            return Weight(name, weight.shape, weight.data_type, weight.array)
        return Weight.of(weight.tensor, name)
    kinds = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if key not in kinds:
        return None  # strings and sparse values are no weights
    return weight_of(np.asarray(value, kinds[key]), name)


def weight_of(array: Array, name: str = "") -> Weight:
    """Wrap an array that is in memory."""
    data_type = int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
    return Weight(name, array.shape, data_type, lambda: array.view())


def _identity(node: Node, source: Weight) -> Weight:
    return source


def _cast(node: Node, source: Weight) -> Weight | None:
    target = attribute(node, "to")
    if target == source.data_type:
        return source
    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(target))
    numeric = (np.float16, np.float32, np.float64, np.int32, np.int64)
    if source.dtype not in numeric or kind not in numeric:
        return None
    if source.dtype.kind == "f" and kind.kind == "i":
        return None  # what happens out of range is up to the runtime
    if kind == np.float16 and source.dtype not in (np.float16, np.float32):
        return None  # some go by way of float32, which rounds twice
    return Weight(source.name, source.shape, target, lambda: source.array().astype(kind))


def _transpose(node: Node, source: Weight) -> Weight:
    axes = attribute(node, "perm") or list(range(source.ndim))[::-1]
    shape = [source.shape[axis] for axis in axes]
    return Weight(source.name, shape, source.data_type, lambda: source.array().transpose(axes))


def _reshaped(node: Node, source: Weight) -> Weight | None:
    shape = static_shape(node.outputs[0])
    if shape is None or int(np.prod(shape, dtype=np.int64)) != source.size:
        return None
    return source.reshape(*shape)


def _expanded(node: Node, source: Weight) -> Weight | None:
    target = integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if target is None:
        return None
    try:
        shape = np.broadcast_shapes(source.shape, tuple(target))
    except ValueError:
        return None
    if math.prod(shape) * source.dtype.itemsize > _EXPANDED_BYTES:
        return None
    read = source.array
    return Weight(source.name, shape, source.data_type, lambda: np.broadcast_to(read(), shape))


_VIEWS = {
    "Identity": _identity,
    "Cast": _cast,
    "Expand": _expanded,
    "Transpose": _transpose,
    "Reshape": _reshaped,
    "Flatten": _reshaped,
    "Squeeze": _reshaped,
    "Unsqueeze": _reshaped,
}


def integers(tensor: Tensor | None) -> list[int] | None:
    """Return a constant integer tensor (axes, a shape) as a flat list; None if it is not one."""
    weight = constant(tensor)
    if weight is None or weight.dtype.kind != "i":
        return None
    return [int(value) for value in weight.array().reshape(-1)]


def axes_of(node: Node) -> list[int] | None:
    """Return the axes of Squeeze, Unsqueeze, ReduceMean …, given as attribute or as second input.

    None where none are given. Raises `RefusedError` where they are computed.
    """
    listed = attribute(node, "axes")
    if listed is not None:
        return list(listed)
    if len(node.inputs) < 2 or node.inputs[1].name == "":
        return None
    return needed(integers(node.inputs[1]), f"the axes of {label(node)} are computed", COMPUTED)


__all__ = [
    "Constant",
    "Graph",
    "Node",
    "RefusedError",
    "Tensor",
    "Variable",
    "as_written",
    "attribute",
    "axes_of",
    "cast_type",
    "constant",
    "dims",
    "dtype",
    "integers",
    "is_output",
    "is_overridable",
    "label",
    "needed",
    "operator",
    "opset",
    "producer",
    "rank",
    "readers",
    "require",
    "schema",
    "static_dim",
    "static_shape",
    "weight_of",
]
