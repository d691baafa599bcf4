"""How Conv, ConvTranspose, Gemm, MatMul and BatchNormalization take an affine map in.

A map of what they give goes into weight and bias (`…_after`), one of what they read goes into the
weight and, summed up, into the bias (`…_ahead`). All return the operator that takes their place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpass import Node, Op, Tensor, Weight, constant, label, operator, require
from graphpass.ir.windows import pads_nothing

from .affine import Affine, rounded
from .affine_ops import change_of
from .channels import Channels, vector
from .dequantize import quantized
from .fold_quantized import quantized_after
from .linear import (
    LINEAR,
    bias_after,
    bias_ahead,
    gemm_bias,
    input_channels,
    output_channels,
    require_numbers,
    scaled_inputs,
    scaled_outputs,
)
from .maps import of_channels


def conv_after(conv: Node, weight: Weight, bias: Weight | None, change: Affine) -> Op:
    """f·Conv(x, W, b) + s = Conv(x, f·W, f·b + s); ConvTranspose likewise."""
    held = None if bias is None else vector(bias, change.factor.size)
    folded = scaled_outputs(conv, weight, change)
    new_bias = bias_after(conv, change, held, weight)
    return Op(conv.op, conv.inputs[0], folded, new_bias, **conv.attrs)


def gemm_after(gemm: Node, weight: Weight, bias: Weight | None, change: Affine) -> Op:
    """f·Gemm(x, W, C) + s = Gemm(x, f·W, f·β·C + s) with the new β = 1."""
    folded = scaled_outputs(gemm, weight, change)
    held = None if bias is None else bias.astype(np.float64)
    new_bias = bias_after(gemm, change, gemm_bias(gemm, held), weight)
    return Op("Gemm", gemm.inputs[0], folded, new_bias, **{**gemm.attrs, "beta": None})


def matmul_after(matmul: Node, weight: Weight, change: Affine, channels: Channels) -> Op:
    """f·MatMul(x, W) + s = MatMul(x, f·W) + s, and no sum where s = 0; MatMul(W, x) likewise."""
    first = constant(matmul.inputs[1]) is None
    folded = scaled_outputs(matmul, weight, change, weight_first=first)
    x = matmul.inputs[1 if first else 0]
    product = Op("MatMul", folded, x) if first else Op("MatMul", x, folded)
    if not change.shifts:
        return product
    shift = rounded(change.shift, weight.dtype, f"the sum after {label(matmul)}")
    return Op("Add", product, channels.spread(shift))


def conv_ahead(conv: Node, x: Any, weight: Weight, bias: Weight | None, change: Affine) -> Op:
    """Conv(f·x + s, W, b) = Conv(x, f·W, b + Σ W·s); where zeros are padded only if s = 0."""
    if change.shifts:
        require(
            conv.op == "Conv",
            f"near its edges {label(conv)} adds up fewer weights, so that no one bias fits",
        )
        require(
            pads_nothing(conv),
            f"{label(conv)} pads with zeros, which a shift of its input does not reach",
        )
    folded = scaled_inputs(conv, weight, change)
    if not change.shifts:
        return Op(conv.op, x, folded, bias, **conv.attrs)
    held = None if bias is None else vector(bias, weight.shape[0])
    return Op("Conv", x, folded, bias_ahead(conv, change, held, weight), **conv.attrs)


def gemm_ahead(gemm: Node, x: Any, weight: Weight, bias: Weight | None, change: Affine) -> Op:
    """Gemm(f·x + s, W, C) = Gemm(x, f·W, β·C + α·Σ W·s) with the new β = 1."""
    folded = scaled_inputs(gemm, weight, change)
    if not change.shifts:
        return Op("Gemm", x, folded, bias, **gemm.attrs)
    held = None if bias is None else bias.astype(np.float64)
    new_bias = bias_ahead(gemm, change, gemm_bias(gemm, held), weight)
    return Op("Gemm", x, folded, new_bias, **{**gemm.attrs, "beta": None})


def matmul_ahead(matmul: Node, x: Any, weight: Weight, change: Affine) -> Op:
    """MatMul(f·x + s, W) = MatMul(x, f·W) + Σ W·s."""
    product = Op("MatMul", x, scaled_inputs(matmul, weight, change))
    if not change.shifts:
        return product
    return Op("Add", product, bias_ahead(matmul, change, None, weight))


def normalization_after(norm: Node, change: Affine) -> Op:
    """f·BatchNormalization(x, γ, β, μ, σ²) + s = BatchNormalization(x, f·γ, f·β + s, μ, σ²)."""
    x, scale, offset, mean, variance = norm.inputs[:5]
    held, shift = constant(scale), constant(offset)
    assert held is not None and shift is not None  # change_of has seen them
    size = held.size
    change = Affine(np.broadcast_to(change.factor, size), np.broadcast_to(change.shift, size))
    name = f"of {label(norm)}"
    new_scale = rounded(change.factor * vector(held, size), held.dtype, f"the scale {name}")
    moved = change.factor * vector(shift, size) + change.shift
    new_offset = rounded(moved, shift.dtype, f"the offset {name}")
    return Op("BatchNormalization", x, new_scale, new_offset, mean, variance, **norm.attrs)


# ------------------------------------------------------------------- whichever it is, in a graph


def takes_in(node: Node) -> bool:
    """Whether `node` is one of the operators above, by its operands' places alone."""
    if operator(node) == "BatchNormalization":
        return True
    if operator(node) not in LINEAR:
        return False
    return any(_weight(node, index) for index in (1, 0))


def _weight(node: Node, index: int) -> bool:
    if index == 0 and operator(node) != "MatMul":
        return False
    tensor = node.inputs[index]
    return constant(tensor) is not None or quantized(tensor) is not None


def taken_in_after(node: Node, change: Affine) -> Op:
    """Return `node` with `change`, a map of its output with that many axes, in its weights."""
    if operator(node) == "BatchNormalization":
        axes = change.factor.ndim
        scale = constant(node.inputs[1])
        size = 0 if scale is None else scale.size
        change_of(node, None, Channels(size, 1 - axes, axes), f"'{node.inputs[0].name}'")
        return normalization_after(node, of_channels(node, change, Channels(size, 1 - axes, axes)))
    first = operator(node) == "MatMul" and _weight(node, 1) is False
    weight = constant(node.inputs[0 if first else 1])
    if weight is None:
        return quantized_after(node, change)
    require_numbers(weight)
    channels = output_channels(node, weight.shape, weight_first=first)
    own = of_channels(node, change, channels)
    if node.op == "MatMul":
        return matmul_after(node, weight, own, channels)
    take_in = gemm_after if node.op == "Gemm" else conv_after
    return take_in(node, weight, constant_bias(node), own)


def taken_in_ahead(node: Node, x: Any, change: Affine) -> Op:
    """Return `node` reading `x`, with `change`, the map of what it read before, in its weights."""
    weight = constant(node.inputs[1])
    assert weight is not None
    require_numbers(weight)
    own = of_channels(node, change, input_channels(node, weight.shape))
    if node.op == "MatMul":
        require(weight.ndim == 2, f"the weight of {label(node)} is no matrix")
        return matmul_ahead(node, x, weight, own)
    take_in = gemm_ahead if node.op == "Gemm" else conv_ahead
    return take_in(node, x, weight, constant_bias(node), own)


def constant_bias(node: Node) -> Weight | None:
    """Return the bias of a Conv or Gemm; refuse one that is computed."""
    tensor: Tensor | None = node.inputs[2] if len(node.inputs) > 2 else None
    if tensor is None or tensor.name == "":
        return None
    weight = constant(tensor)
    require(weight is not None, f"the bias of {label(node)}, '{tensor.name}', is not a constant")
    return weight
