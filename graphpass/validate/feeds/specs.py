"""What a model takes: its inputs with types, dimensions, and the range that its indices allow."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto

from graphpass.ir.operators import Trait, named
from graphpass.validate.process.channel import dtype_of

Kind = Literal["tensor", "sequence", "optional", "unsupported"]

# Operators that hand integers on as they are, or shifted by too little to matter.
_INDEX_CARRIERS = frozenset((*named(Trait.MOVEMENT, without=Trait.BROADCASTING), "Cast"))
# Operators with the input whose integers decide a size, and what these are: a target into which all
# elements go, sizes that any others broadcast to, how much is added, a number of things.
ROLES = {
    ("Reshape", 1): "target",
    ("Expand", 1): "ones",
    ("Pad", 1): "added",
    ("Tile", 1): "count",
    ("ConstantOfShape", 0): "count",
    ("Resize", 3): "count",
    ("TopK", 1): "ones",
}
# What exporters write for "some size": no two of these need to be the same.
_NAMELESS = {"", "?", "-1", "None", "unk"}


@dataclass(frozen=True)
class InputSpec:
    """One input. `dims` holds numbers and symbols; None where not even the rank is known.

    `index_bound`: the smallest size of a constant that the input's values index, if any.
    `overridable`: has a default, an initializer of the same name (IR version 4 and later).
    `role`: what the values decide about shapes, if they do (see `ROLES`).
    """

    name: str
    kind: Kind
    dtype: np.dtype[Any] | None
    dims: tuple[int | str, ...] | None
    index_bound: int | None = None
    overridable: bool = False
    type_text: str = ""
    role: str = ""


def input_specs(model: onnx.ModelProto) -> list[InputSpec]:
    """Describe what a caller can feed: every input but initializers below IR version 4."""
    graph = model.graph
    defaults = {tensor.name for tensor in graph.initializer}
    defaults |= {tensor.values.name for tensor in graph.sparse_initializer}
    bounds, roles = _index_bounds(graph), _roles(graph)
    return [
        replace(
            _spec(value, bounds.get(value.name), value.name in defaults),
            role=roles.get(value.name, ""),
        )
        for value in graph.input
        if value.name not in defaults or model.ir_version >= 4
    ]


def _spec(value: onnx.ValueInfoProto, bound: int | None, overridable: bool) -> InputSpec:
    kind, tensor = _unwrap(value.type)
    dtype = _dtype(tensor.elem_type) if tensor is not None else None
    text = _type_text(value.type)
    if tensor is None or dtype is None:
        return InputSpec(value.name, "unsupported", None, None, None, overridable, text)
    dims = _dims(value.name, tensor) if tensor.HasField("shape") else None
    return InputSpec(value.name, kind, dtype, dims, bound, overridable, text)


def _unwrap(type_: onnx.TypeProto) -> tuple[Kind, onnx.TypeProto.Tensor | None]:
    which = type_.WhichOneof("value")
    if which == "tensor_type":
        return "tensor", type_.tensor_type
    if which == "sequence_type":
        inner = type_.sequence_type.elem_type
        if inner.WhichOneof("value") == "tensor_type":
            return "sequence", inner.tensor_type
    if which == "optional_type":
        kind, tensor = _unwrap(type_.optional_type.elem_type)
        return ("optional" if kind == "tensor" else kind), tensor
    return "unsupported", None


def _type_text(type_: onnx.TypeProto) -> str:
    which = type_.WhichOneof("value") or "undefined"
    text = str(which).removesuffix("_type").replace("_", " ")
    if which == "tensor_type":
        text += f" of {TensorProto.DataType.Name(type_.tensor_type.elem_type).lower()}"
    return text


def _dtype(elem_type: int) -> np.dtype[Any] | None:
    if elem_type == TensorProto.STRING:
        return np.dtype(object)
    try:
        dtype = dtype_of(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)
    except (KeyError, TypeError, AttributeError):
        return None
    # Two or more elements to a byte: ONNX Runtime's Python interface cannot feed these.
    return None if re.search("int[24]$|float4", dtype.name) else dtype


def _dims(name: str, tensor: onnx.TypeProto.Tensor) -> tuple[int | str, ...]:
    def dim(axis: int, size: onnx.TensorShapeProto.Dimension) -> int | str:
        if size.WhichOneof("value") == "dim_value" and size.dim_value >= 0:
            return int(size.dim_value)
        return f"{name}[{axis}]" if size.dim_param in _NAMELESS else str(size.dim_param)

    return tuple(dim(axis, size) for axis, size in enumerate(tensor.shape.dim))


def _index_bounds(graph: onnx.GraphProto) -> dict[str, int]:
    """Find, for each value that ends as the indices of a Gather from a constant, its size."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            tensors = (a.t for a in node.attribute if a.name == "value")
            sizes.update((node.output[0], tuple(tensor.dims)) for tensor in tensors)
    bounds: dict[str, int] = {}
    # Nodes are in topological order, so that one way back from the outputs suffices.
    for node in reversed(graph.node):
        if node.op_type in ("Gather", "GatherElements") and len(node.input) == 2:
            data, indices = node.input
            if sizes.get(data):
                axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
                if -len(sizes[data]) <= axis < len(sizes[data]):
                    _lower(bounds, [indices], sizes[data][axis])
        if node.op_type in _INDEX_CARRIERS:
            found = [bounds[name] for name in node.output if name in bounds]
            if found:
                carried = node.input if node.op_type == "Concat" else node.input[:1]
                _lower(bounds, carried, min(found))
    return bounds


def _roles(graph: onnx.GraphProto) -> dict[str, str]:
    """Find, for each value that decides a size, directly or handed on, in which way."""
    roles: dict[str, str] = {}
    for node in reversed(graph.node):
        for index, name in enumerate(node.input):
            if name and (node.op_type, index) in ROLES:
                roles[name] = ROLES[node.op_type, index]
        if node.op_type in ("Cast", "Identity") and node.output[0] in roles:
            roles[node.input[0]] = roles[node.output[0]]
    return roles


def _lower(bounds: dict[str, int], names: Iterable[str], bound: int) -> None:
    for name in names:
        bounds[name] = min(bound, bounds.get(name, bound))
