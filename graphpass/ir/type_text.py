"""Types as they are written for people: `[N, 3, 224, 224] float32`."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import TensorProto

_BY_NUMPY = {"float": "float32", "double": "float64"}


def type_text(value: onnx.TypeProto) -> str:
    """Write the type of an input, an output or a value; "" where nothing is known of it."""
    which = value.WhichOneof("value")
    if which == "sequence_type":
        return _wrapped("sequence", value.sequence_type.elem_type)
    if which == "optional_type":
        return _wrapped("optional", value.optional_type.elem_type)
    if which != "tensor_type":
        return (which or "").removesuffix("_type").replace("_", " ")
    tensor = value.tensor_type
    kind = dtype_text(tensor.elem_type)
    if not tensor.HasField("shape"):
        return kind
    sizes = (str(d.dim_value) if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
    return f"{shape_text(size or '?' for size in sizes)} {kind}".strip()


def tensor_text(tensor: TensorProto) -> str:
    """Write the type of a tensor that is held."""
    return f"{shape_text(tensor.dims)} {dtype_text(tensor.data_type)}"


def shape_text(sizes: Iterable[int | str]) -> str:
    """Write a shape: `[1, 64, 8, 8]`."""
    return f"[{', '.join(map(str, sizes))}]"


def dtype_text(data_type: int) -> str:
    """Write the type of elements as numpy does: `float32`, not `FLOAT`."""
    if data_type == TensorProto.UNDEFINED:
        return ""
    if data_type not in TensorProto.DataType.values():
        return f"type {data_type}"
    name: str = TensorProto.DataType.Name(data_type).lower()
    return _BY_NUMPY.get(name, name)


def _wrapped(what: str, inner: onnx.TypeProto) -> str:
    told = type_text(inner)
    return f"{what} of {told}" if told else what
