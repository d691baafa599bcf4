"""Conv, ConvTranspose, Gemm and MatMul: where their channels lie, and what their bias becomes."""

from __future__ import annotations

import numpy as np

from graphpass import Node, Tensor, Weight, attribute, label, opset, rank, require, static_dim

from ._affine import FLOAT_TYPES, Affine, Array, Floats, rounded, weighted_sum
from ._channels import Channels

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Shape = tuple[int, ...]


def output_channels(node: Node, shape: Shape, *, weight_first: bool = False) -> Channels:
    """Return the channels of the output of `node`, whose weight has `shape`.

    `weight_first`: MatMul(W, x), whose channels are the rows of W.
    """
    if node.op == "Conv":
        return Channels(shape[0], 1 - len(shape), len(shape))
    if node.op == "ConvTranspose":
        return Channels(shape[1] * attribute(node, "group"), 1 - len(shape), len(shape))
    if node.op == "Gemm":
        return Channels(shape[output_axis(node)], -1, 2)
    _require_matrix(node, shape)
    axis = -2 if weight_first else -1
    return Channels(shape[axis], axis, rank(node.outputs[0]))


def input_channels(node: Node, shape: Shape) -> Channels:
    """Return the channels of the first input of `node`, those that its weight is summed over."""
    if node.op == "Conv":
        return Channels(shape[1] * attribute(node, "group"), 1 - len(shape), len(shape))
    if node.op == "ConvTranspose":
        return Channels(shape[0], 1 - len(shape), len(shape))
    if node.op == "Gemm":
        return Channels(shape[1 - output_axis(node)], -2 if attribute(node, "transA") else -1, 2)
    _require_matrix(node, shape)
    return Channels(shape[-2], -1, rank(node.inputs[0]))


def output_axis(node: Node) -> int:
    """Return the axis of the weight that counts the output channels (ConvTranspose: of a group)."""
    if node.op == "Gemm":
        return 0 if attribute(node, "transB") else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op, -1)


def along_outputs(node: Node, shape: Shape, values: Array, *, weight_first: bool = False) -> Array:
    """Give `values`, one per output channel, the shape that broadcasts to the weight."""
    if node.op == "ConvTranspose":
        return _along_groups(node, shape[0], values, len(shape))
    axis = -2 if weight_first else output_axis(node)
    return _along(axis, values, len(shape))


def along_inputs(node: Node, shape: Shape, values: Array) -> Array:
    """Give `values`, one per input channel, the shape that broadcasts to the weight."""
    if node.op == "Conv":
        return _along_groups(node, shape[0], values, len(shape))
    if node.op == "ConvTranspose":
        return _along(0, values, len(shape))
    axis = 1 - output_axis(node) if node.op == "Gemm" else -2
    return _along(axis, values, len(shape))


def _along(axis: int, values: Array, ndim: int) -> Array:
    shape = [1] * ndim
    shape[axis] = values.size
    return values.reshape(shape)


def _along_groups(node: Node, rows: int, values: Array, ndim: int) -> Array:
    """Spread channels that axis 1 of the weight counts within a group, axis 0 over the groups."""
    groups = attribute(node, "group")
    require(rows % groups == 0, f"{label(node)} has {rows} channels for {groups} groups")
    by_group = values.reshape(groups, -1)
    if groups > 1:
        by_group = np.repeat(by_group, rows // groups, axis=0)
    return by_group.reshape(*by_group.shape, *[1] * (ndim - 2))


def require_numbers(weight: Weight) -> None:
    """Refuse a weight that a factor cannot be multiplied into: integers, or nothing at all."""
    require(weight.dtype in FLOAT_TYPES, f"'{weight.name}' holds {weight.dtype}")
    require(weight.size > 0, f"'{weight.name}' is empty")


def _require_matrix(node: Node, shape: Shape) -> None:
    require(len(shape) >= 2, f"the weight of {label(node)} is a vector")


def pads_nothing(conv: Node, shape: Shape, x: Tensor) -> bool:
    """Whether no position of `conv`, whose weight has `shape`, looks beyond the edge of `x`."""
    mode = attribute(conv, "auto_pad")
    if mode == "NOTSET":
        return not any(attribute(conv, "pads") or [])
    if mode == "VALID":
        return True
    spatial = range(len(shape) - 2)
    strides = attribute(conv, "strides") or [1 for _ in spatial]
    dilations = attribute(conv, "dilations") or [1 for _ in spatial]
    return all(
        _same_padding(shape[2 + k], strides[k], dilations[k], static_dim(x, 2 + k)) == 0
        for k in spatial
    )


def _same_padding(kernel: int, stride: int, dilation: int, size: int | None) -> int | None:
    """Return what auto_pad SAME_* adds along one axis: enough for ⌈size / stride⌉ positions."""
    if kernel == 1:
        return 0
    if size is None:
        return None
    positions = -(-size // stride)
    return max(0, (positions - 1) * stride + (kernel - 1) * dilation + 1 - size)


def gemm_bias(gemm: Node, bias: Floats | None) -> Floats | None:
    """Return β·C of a Gemm; nothing where β = 0, which ignores even a C that is not finite."""
    require(opset(gemm) >= 7, f"{label(gemm)} is from before opset 7")
    beta = float(attribute(gemm, "beta"))
    return None if bias is None or beta == 0 else beta * bias


def bias_after(node: Node, change: Affine, bias: Floats | None, weight: Weight) -> Array | None:
    """Return the bias of `node`, once its output is changed; `weight` gives the type."""
    if bias is not None:
        values = change.factor * bias + change.shift
    elif change.shifts:
        values = change.shift
    else:
        return None
    return rounded(values, weight.dtype, f"the bias of {label(node)}")


def bias_ahead(node: Node, change: Affine, bias: Floats | None, weight: Weight) -> Array:
    """Return the bias of `node`, once it reads what `change` was applied to before."""
    shift = along_inputs(node, weight.shape, change.shift)
    raised = weighted_sum(weight, shift, output_axis(node) % weight.ndim)
    if node.op == "Gemm":
        raised = raised * attribute(node, "alpha")
    values = raised if bias is None else bias + raised
    return rounded(values, weight.dtype, f"the bias of {label(node)}")
