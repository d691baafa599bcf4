"""Conv, ConvTranspose, Gemm and MatMul: where their channels lie, and what their bias becomes."""

from __future__ import annotations

import numpy as np

from graphpass import (
    Node,
    Tensor,
    Weight,
    attribute,
    constant,
    is_output,
    label,
    operator,
    producer,
    rank,
    readers,
    require,
)

from .affine import FLOAT_TYPES, Affine, Array, Floats, rounded, scaled, weighted_sum
from .channels import Channels

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
    axes = rank(node.outputs[0])
    if not weight_first:
        return Channels(shape[-1], -1, axes)
    # of MatMul(W, x) the rows lie along the last axis if x is a vector
    operand = rank(node.inputs[1])
    require(operand is not None and operand >= 2, f"{label(node)} may have a vector for its input")
    return Channels(shape[-2], -2, axes)


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


def scaled_outputs(
    node: Node, weight: Weight, change: Affine, *, weight_first: bool = False
) -> Weight | Array:
    """Return the weight of `node` times the factor of each output channel."""
    _require_worth_a_copy(weight, change)
    if node.op == "ConvTranspose":
        factor = _along_groups(node, weight, change.factor)
    else:
        axis = -2 if weight_first else output_axis(node)
        factor = _along(axis, weight, change.factor)
    return scaled(weight, factor)


def scaled_inputs(node: Node, weight: Weight, change: Affine) -> Weight | Array:
    """Return the weight of `node` times the factor of each input channel."""
    _require_worth_a_copy(weight, change)
    return scaled(weight, _along_inputs(node, weight, change.factor))


def _require_worth_a_copy(weight: Weight, change: Affine) -> None:
    """Refuse to store a weight that others read a second time for one number's sake.

    Language models tie their last layer to the embedding and scale it: that is no normalization.
    Where all that reads it is scaled alike, one copy takes the place of it for all of them.
    """
    if change.scales and (change.factor == change.factor[0]).all():
        require(
            not is_read_elsewhere(weight.origin)
            or _are_scaled_alike(weight.origin, float(change.factor[0])),
            f"'{weight.name}' has other readers, and one factor is not worth a second copy",
        )


def _are_scaled_alike(tensor: Tensor | None, factor: float) -> bool:
    """Whether all that read a constant are multiplied by the same number, and by nothing else."""
    if tensor is None or producer(tensor) is not None or is_output(tensor):
        return False
    for reader in readers(tensor):
        below = readers(reader.outputs[0])
        if len(below) != 1 or operator(below[0]) != "Mul" or is_output(reader.outputs[0]):
            return False
        held = [w for w in map(constant, below[0].inputs) if w is not None and w.size == 1]
        is_weight = any(given is tensor for given in reader.inputs[1:2])
        if not is_weight or [float(w.array().reshape(())) for w in held] != [factor]:
            return False
    return True


def is_read_elsewhere(tensor: Tensor | None) -> bool:
    """Whether a constant, or what it is a view of, has more than one reader or is an output."""
    while tensor is not None:
        if len(readers(tensor)) > 1 or is_output(tensor):
            return True
        source = producer(tensor)
        tensor = source.inputs[0] if source is not None and source.inputs else None
    return False


def held_for_others(weight: Weight) -> str:
    """Return why a weight would have to be stored twice; empty where nothing else reads it."""
    if not is_read_elsewhere(weight.origin):
        return ""
    return f"'{weight.name}' has other readers, for which it would have to stay"


def require_own(weight: Weight) -> None:
    """Refuse a weight that others read: it would have to be stored twice."""
    reason = held_for_others(weight)
    require(not reason, reason)


def _along_inputs(node: Node, weight: Weight, values: Array) -> Array:
    """Give `values`, one per input channel, the shape that broadcasts to the weight."""
    if node.op == "Conv":
        return _along_groups(node, weight, values)
    if node.op == "ConvTranspose":
        return _along(0, weight, values)
    return _along(1 - output_axis(node) if node.op == "Gemm" else -2, weight, values)


def _along(axis: int, weight: Weight, values: Array) -> Array:
    shape = [1] * weight.ndim
    shape[axis] = values.size
    return values.reshape(shape)


def _along_groups(node: Node, weight: Weight, values: Array) -> Array:
    """Spread channels that axis 1 of the weight counts within a group, axis 0 over the groups."""
    groups, rows = attribute(node, "group"), weight.shape[0]
    require(rows % groups == 0, f"{label(node)} has {rows} channels for {groups} groups")
    by_group = values.reshape(groups, -1)
    if groups > 1:
        by_group = np.repeat(by_group, rows // groups, axis=0)
    return by_group.reshape(*by_group.shape, *[1] * (weight.ndim - 2))


def require_numbers(weight: Weight) -> None:
    """Refuse a weight that a factor cannot be multiplied into: integers, or nothing at all."""
    require(weight.dtype in FLOAT_TYPES, f"'{weight.name}' is {weight.dtype}, not floating point")
    require(weight.size > 0, f"'{weight.name}' is empty")


def _require_matrix(node: Node, shape: Shape) -> None:
    require(len(shape) >= 2, f"the weight of {label(node)} is a vector")


def gemm_bias(gemm: Node, bias: Floats | None) -> Floats | None:
    """Return β·C of a Gemm; nothing where β = 0, which ignores even a C that is not finite."""
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
    shift = _along_inputs(node, weight, change.shift)
    raised = weighted_sum(weight, shift, output_axis(node) % weight.ndim)
    if node.op == "Gemm":
        raised = raised * attribute(node, "alpha")
    values = raised if bias is None else bias + raised
    return rounded(values, weight.dtype, f"the bias of {label(node)}")
