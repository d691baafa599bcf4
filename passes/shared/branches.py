"""Linear operators in a graph as linear maps, and linear maps as operators.

Conv, AveragePool, MatMul, Gemm, BatchNormalization, and Mul, Add, Sub, Div by a constant.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from graphpass import (
    Node,
    Op,
    Tensor,
    Weight,
    attribute,
    constant,
    label,
    operator,
    rank,
    require,
    static_dim,
)
from graphpass.ir.operators import Trait, named
from graphpass.ir.questions import is_overridable
from graphpass.ir.windows import windows_of

from .affine import FLOAT_TYPES, Floats
from .affine_ops import change_of
from .channels import Channels, per_channel, vector
from .linear import require_own
from .linear_map import (
    Grid,
    LinearMap,
    Sizes,
    average,
    bias_of_map,
    composed,
    diagonal,
    weight_of_map,
)

WEIGHTY = ("Conv", "MatMul", "Gemm")
Branch = tuple[Node, ...]  # from the input outwards; empty: the input itself

AFFINE = ("BatchNormalization", *named(Trait.ARITHMETIC))


def kind_of(*nodes: Node) -> Node | None:
    """Return the operator that a merged one is like: the first with a weight; None: no such one."""
    found = [node for node in nodes if operator(node) in WEIGHTY]
    kinds = {operator(node) for node in found}
    if not found or ("Conv" in kinds and len(kinds) > 1):
        return None
    # where there is a Gemm, x is a matrix; a MatMul takes more
    return next((node for node in found if operator(node) == "Gemm"), found[0])


def branch_maps(
    kind: Node, x: Tensor, branches: Sequence[Branch], *, without_bias: Node | None = None
) -> tuple[LinearMap, LinearMap] | None:
    """Read two branches over `x`; None where they compute with more than constants.

    `without_bias`: an operator that is read as if it added nothing.
    """
    weights: dict[Node, LinearMap] = {}
    for node in (node for branch in branches for node in branch if operator(node) in WEIGHTY):
        found = map_of(node, node.inputs[0], adds=node is not without_bias)
        if found is None:
            return None
        weights[node] = found
    axes = len(weights[kind].grid.taps)
    firsts = [next((weights[n] for n in branch if n in weights), None) for branch in branches]
    channels = next(found.inputs for found in firsts if found is not None)
    made = []
    for branch in branches:
        total = diagonal(f"'{x.name}'", np.ones(channels), None, axes, 0)
        seen = x
        for node in branch:
            step = weights.get(node) or _channel_map(node, seen, total.outputs, axes)
            if step is None or (node in weights and node.inputs[0] is not seen):
                return None
            require(
                step.inputs == total.outputs,
                f"{label(node)} reads {step.inputs} channels of '{seen.name}'",
            )
            total = step if seen is x else composed(step, total)
            seen = node.outputs[0]
        made.append(total)
    return made[0], made[1]


def map_of(node: Node, x: Tensor, *, adds: bool = True) -> LinearMap | None:
    """Read a Conv, MatMul or Gemm over `x`; None where its weight is computed.

    `adds`: with its bias. Refuses weights that the caller may override or that others read: they
    would be stored twice.
    """
    if node.inputs[0] is not x or len(node.inputs) < 2:
        return None
    weight = _held(node.inputs[1], node)
    further = [tensor for tensor in node.inputs[2:] if tensor.name and adds]
    biases = [_held(tensor, node) for tensor in further]
    if weight is None or None in biases or weight.ndim < 2 or weight.dtype not in FLOAT_TYPES:
        return None
    if weight.size == 0 or (operator(node) != "Conv" and weight.ndim != 2):
        return None
    require_own(weight)
    if operator(node) == "Conv":
        return _conv_map(node, weight, biases)
    return _matrix_map(node, weight, biases)


def _held(tensor: Tensor, node: Node) -> Weight | None:
    found = constant(tensor)
    require(
        found is not None or not is_overridable(tensor),
        f"'{tensor.name}', which {label(node)} reads, may be overridden at run time",
    )
    if found is None:
        return None
    held = copy.copy(found)
    held.name, held.origin = tensor.name, tensor
    return held


def _conv_map(conv: Node, weight: Weight, biases: list[Weight | None]) -> LinearMap:
    group = attribute(conv, "group")
    outputs = weight.shape[0]
    require(outputs % group == 0, f"{label(conv)} has {outputs} channels for {group} groups")
    bias = vector(biases[0], outputs) if biases and biases[0] is not None else None
    return LinearMap(
        label(conv),
        outputs,
        weight.shape[1] * group,
        group,
        _grid(conv, weight.shape[2:]),
        lambda block: weight.rows(block).astype(np.float64),
        bias,
        weight.size,
        weight.size + (0 if bias is None else outputs),
    )


def _grid(node: Node, taps: Sizes) -> Grid:
    """Read kernel, pads, strides and dilations of a Conv or AveragePool."""
    windows = windows_of(node)
    begins, ends = [], []
    for axis, window in enumerate(windows):
        # with a stride of 1 the size does not matter: any will do
        size = 1 if window.stride == 1 else static_dim(node.inputs[0], 2 + axis)
        known = not window.same or window.kernel == 1 or size is not None
        require(known, f"what {label(node)} pads depends on the size of '{node.inputs[0].name}'")
        begin, end = window.padding(size or 1)
        begins.append(begin)
        ends.append(end)
    require(min(*begins, *ends, 0) >= 0, f"{label(node)} has negative pads")
    strides = tuple(window.stride for window in windows)
    dilations = tuple(window.dilation for window in windows)
    return Grid(tuple(taps), tuple(begins), tuple(ends), strides, dilations)


def _matrix_map(node: Node, weight: Weight, biases: list[Weight | None]) -> LinearMap:
    turned = operator(node) == "Gemm" and attribute(node, "transB")
    outputs, inputs = weight.shape if turned else weight.shape[::-1]
    alpha, bias = 1.0, None
    if operator(node) == "Gemm":
        require(not attribute(node, "transA"), f"{label(node)} transposes its input")
        alpha = float(attribute(node, "alpha"))
        beta = float(attribute(node, "beta"))
        if biases and biases[0] is not None and beta != 0:
            where = f"the output of {label(node)}"
            bias = beta * per_channel(biases[0], Channels(outputs, -1, 2), where)

    def rows(block: slice) -> Floats:
        held = weight.rows(block) if turned else weight.array()[:, block].T
        return alpha * held.astype(np.float64)

    return LinearMap(
        label(node),
        outputs,
        inputs,
        1,
        Grid((), (), (), (), ()),
        rows,
        bias,
        weight.size,
        weight.size + sum(part.size for part in biases if part is not None),
    )


def _channel_map(node: Node, x: Tensor, channels: int, axes: int) -> LinearMap | None:
    """Read what computes each channel of `x` from itself: an average, a factor, a shift.

    `axes`: how many of `x` are spatial; 0: its channels lie along the last axis. None where it
    computes with more than constants. Refuses an average that leaves what it pads out.
    """
    if operator(node) == "AveragePool":
        return average(label(node), channels, _pooled(node)) if axes else None
    terms = [tensor for tensor in node.inputs if tensor is not x]
    if operator(node) == "BatchNormalization":
        term = None
        if node.inputs[0] is not x:
            return None
    elif len(terms) != 1 or (term := _held(terms[0], node)) is None:
        return None
    own = Channels(channels, -1 - axes, axes + 2 if axes else rank(x))
    change = change_of(node, term, own, f"'{x.name}'")
    held = [weight for weight in map(constant, terms) if weight is not None]
    stored = sum(weight.size for weight in held)
    shift = change.shift if change.shifts else None
    return diagonal(label(node), change.factor, shift, axes, stored)


def _pooled(pool: Node) -> Grid:
    grid = _grid(pool, tuple(attribute(pool, "kernel_shape")))
    require(not attribute(pool, "ceil_mode"), f"{label(pool)} rounds its size up")
    require(
        attribute(pool, "count_include_pad") or not grid.pads,
        f"{label(pool)} leaves what it pads out of its mean",
    )
    return grid


def operator_of(linear: LinearMap, kind: Node, x: Tensor) -> Op:
    """Write a map over `x` as an operator like `kind`, whose weight gives the type."""
    held = constant(kind.inputs[1])
    assert held is not None
    if operator(kind) == "Conv":
        weight = weight_of_map(linear, held.dtype)
        bias = bias_of_map(linear, held.dtype)
        grid = linear.grid
        return Op(
            "Conv",
            x,
            weight,
            bias,
            dilations=list(grid.dilations),
            group=linear.group,
            kernel_shape=list(grid.taps),
            pads=[*grid.begins, *grid.ends],
            strides=list(grid.strides),
        )
    bias = bias_of_map(linear, held.dtype)
    if operator(kind) == "Gemm":
        return Op("Gemm", x, weight_of_map(linear, held.dtype), bias, transB=1)
    product = Op("MatMul", x, weight_of_map(linear, held.dtype, columns=True))
    return product if bias is None else Op("Add", product, bias)
