"""What profiles may ask of a node: its window, channels, sizes, types."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from graphpass.ir import operators
from graphpass.ir.nodes import Node, Tensor
from graphpass.ir.operators import Trait
from graphpass.ir.questions import (
    attribute,
    axes_of,
    constant,
    dtype,
    operator,
    rank,
    static_dim,
    static_shape,
)
from graphpass.ir.refusal import RefusedError
from graphpass.ir.windows import windows_of

# each with what it means, as docs/targets.md lists them
NAMES: Final[dict[str, str]] = {
    "rank": "the largest number of axes of an input or output",
    "input_rank": "the number of axes of the first input",
    "output_rank": "the number of axes of the first output",
    "second_rank": "the number of axes of the second input",
    "wide_axes": "how many axes of the first input are larger than 1",
    "input_count": "how many inputs it has",
    "batch": "the first axis of the first input",
    "static": "whether the sizes of all inputs and outputs are fixed",
    "dtype": "the type of the first input, such as float32",
    "kernel_h": "the height of the kernel or pooling window; of one axis, its length is kernel_w",
    "kernel_w": "its width",
    "stride_h": "by how much it moves down",
    "stride_w": "by how much it moves right",
    "dilation_h": "how far its taps are apart, down",
    "dilation_w": "and right",
    "dilated_h": "the height that it spans",
    "dilated_w": "the width that it spans",
    "pad_top": "padding before the first row",
    "pad_bottom": "after the last",
    "pad_left": "before the first column",
    "pad_right": "after the last",
    "window_axes": "over how many axes it moves",
    "groups": "of a convolution",
    "depthwise": "whether each input channel has filters of its own",
    "input_channels": "the second axis of the first input; of Gemm and MatMul, what is summed over",
    "output_channels": "the second axis of the output; of Gemm and MatMul, its last",
    "input_h": "the height of the first input, its last axis but one",
    "input_w": "the width of the first input, its last axis",
    "input_pixels": "height times width of the first input",
    "input_constant": "whether the first input is a constant",
    "weight_constant": "whether the second input is a constant",
    "axis": "the attribute `axis`, counted from 0",
    "last_axis": "whether `axis` is the last one",
    "axes": "those that a reduction is over, counted from 0, in their order",
    "keepdims": "the attribute `keepdims`: 1 where axes that are reduced stay, of size 1",
    "mode": "the attribute `mode`",
    "transA": "the attribute `transA` of a Gemm",
    "alpha": "its attribute `alpha`",
    "beta": "its attribute `beta`",
    "ceil_mode": "the attribute `ceil_mode`: 1 where sizes are rounded up",
    "count_include_pad": "the attribute `count_include_pad`: 1 where an average counts padding",
}

_ATTRIBUTES: Final = ("mode", "keepdims", "transA", "alpha", "beta")
_POOLS: Final = ("AveragePool", "LpPool", "MaxPool")


def facts_of(node: Node) -> dict[str, Any]:
    """Return what is known of `node`, by name; None or missing where it is not known."""
    inputs = [tensor for tensor in node.inputs if tensor.name]
    outputs = [tensor for tensor in node.outputs if tensor.name]
    first = inputs[0] if inputs else None
    shape = static_shape(first) if first is not None else None
    found: dict[str, Any] = {
        "rank": _largest([rank(tensor) for tensor in (*inputs, *outputs)]),
        "input_rank": rank(first) if first is not None else 0,
        "output_rank": rank(outputs[0]) if outputs else 0,
        "second_rank": rank(inputs[1]) if len(inputs) > 1 else None,
        "wide_axes": None if shape is None else sum(size != 1 for size in shape),
        "input_count": len(inputs),
        "batch": static_dim(first, 0) if first is not None else None,
        "static": all(static_shape(tensor) is not None for tensor in (*inputs, *outputs)),
        "dtype": _type_name(first),
        "input_channels": static_dim(first, 1) if first is not None else None,
        "output_channels": static_dim(outputs[0], 1) if outputs else None,
        "input_h": shape[-2] if shape is not None and len(shape) > 2 else None,
        "input_w": shape[-1] if shape is not None and len(shape) > 2 else None,
        "input_pixels": math.prod(shape[2:]) if shape is not None and len(shape) > 2 else None,
        "input_constant": first is not None and constant(first) is not None,
        "weight_constant": len(inputs) > 1 and constant(inputs[1]) is not None,
    }
    if operator(node) in ("Gemm", "MatMul"):
        found |= _matrix(node)
    if operators.has(node, Trait.SLIDING):
        found |= _window(node)
    axis, axes = attribute(node, "axis"), found["input_rank"]
    if isinstance(axis, int) and axes:
        found["axis"] = axis % axes
        found["last_axis"] = axis % axes == axes - 1
    found |= {
        name: attribute(node, name) for name in ("mode", "keepdims", "transA", "alpha", "beta")
    }
    reduced = axes_of(node) if operators.has(node, Trait.REDUCTION) else None
    if reduced is not None and axes:
        found["axes"] = sorted(axis % axes for axis in reduced)
    if operator(node) in _POOLS:  # before they had these attributes, they did what 0 says
        found |= {name: attribute(node, name, 0) for name in ("ceil_mode", "count_include_pad")}
    return found


def _matrix(node: Node) -> dict[str, Any]:
    """Channels of a matrix product: what is summed over, and what comes out."""
    transposed = operator(node) == "Gemm" and bool(attribute(node, "transA"))
    return {
        "input_channels": static_dim(node.inputs[0], 0 if transposed else -1),
        "output_channels": static_dim(node.outputs[0], -1),
    }


def _window(node: Node) -> dict[str, Any]:
    try:
        windows = windows_of(node)
    except RefusedError:
        return {}
    if not windows:
        return {}
    found: dict[str, Any] = {"window_axes": len(windows)}
    # of a window along one axis, that is the width
    names = ("h", "w") if len(windows) > 1 else ("w",)
    sides = {"h": ("pad_top", "pad_bottom"), "w": ("pad_left", "pad_right")}
    sizes = node.inputs[0].shape
    for name, window, axis in zip(names, windows[-2:], range(-len(names), 0), strict=True):
        found[f"kernel_{name}"] = window.kernel
        found[f"stride_{name}"] = window.stride
        found[f"dilation_{name}"] = window.dilation
        found[f"dilated_{name}"] = window.dilation * (window.kernel - 1) + 1
        size = sizes[axis] if sizes is not None else None
        if isinstance(size, int) or not window.same:
            pads = window.padding(size if isinstance(size, int) else 0)
            found.update(zip(sides[name], pads, strict=True))
    if "h" not in names:
        found |= {"kernel_h": 1, "stride_h": 1, "dilation_h": 1, "dilated_h": 1}
        found |= {"pad_top": 0, "pad_bottom": 0}
    groups = attribute(node, "group")
    if isinstance(groups, int):
        channels = static_dim(node.inputs[0], 1)
        found["groups"] = groups
        found["depthwise"] = groups > 1 and groups == channels if channels is not None else None
    return found


def _largest(ranks: Iterable[int | None]) -> int | None:
    known = list(ranks)
    return None if None in known else max((axes for axes in known if axes is not None), default=0)


def _type_name(tensor: Tensor | None) -> str | None:
    kind = dtype(tensor) if tensor is not None else None
    return None if kind is None else kind.name
