"""Integer arithmetic on shapes, as exporters put it between Shape and Reshape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from graphpass.ir.questions import Node, attribute, axes_of
from graphpass.ir.weight import Array


def _slice_value(node: Node, data: Array, *given: Array) -> Array:
    def listed(name: str, index: int) -> list[int] | None:
        value = node.attrs.get(name)
        if value is not None:
            return list(value)
        return given[index].reshape(-1).tolist() if index < len(given) else None

    starts, ends = listed("starts", 0) or [], listed("ends", 1) or []
    axes = listed("axes", 2) or list(range(len(starts)))
    steps = listed("steps", 3) or [1] * len(starts)
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(start, end, step)
    return data[tuple(cut)]


def _divided(node: Node, a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.divide(a, b)
    return np.trunc(np.divide(a, b)).astype(np.int64)


def _cast_value(node: Node, a: Array) -> Array:
    return a.astype(onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to")))


SHAPE_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "Add": lambda node, a, b: a + b,
    "Cast": _cast_value,
    "Ceil": lambda node, a: np.ceil(a),
    "Concat": lambda node, *a: np.concatenate(a, attribute(node, "axis")),
    "Div": _divided,
    "Equal": lambda node, a, b: a == b,
    "Floor": lambda node, a: np.floor(a),
    "Gather": lambda node, a, i: np.take(a, i, attribute(node, "axis")),
    "Identity": lambda node, a: a,
    "Mod": lambda node, a, b: np.mod(a, b),
    "Mul": lambda node, a, b: a * b,
    "Not": lambda node, a: ~a,
    "ReduceProd": lambda node, a, *axes: np.prod(a, keepdims=attribute(node, "keepdims") != 0),
    "Reshape": lambda node, a, shape: a.reshape(shape),
    "Slice": _slice_value,
    "Squeeze": lambda node, a, *axes: np.squeeze(a, tuple(axes_of(node) or ()) or None),
    "Sub": lambda node, a, b: a - b,
    "Unsqueeze": lambda node, a, *axes: np.expand_dims(a, tuple(axes_of(node) or ())),
    "Where": lambda node, c, a, b: np.where(c, a, b),
}
