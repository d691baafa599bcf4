"""What becomes of an affine map where elements are averaged, compared, added or joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from graphpass import (
    Node,
    Tensor,
    attribute,
    axes_of,
    constant,
    dtype,
    label,
    operator,
    opset,
    require,
    static_dim,
)
from graphpass.ir.operators import is_training
from graphpass.ir.refusal import OLD_OPSET, TRAINING

from .affine import FLOAT_TYPES, Affine, Floats
from .maps import (
    Mover,
    as_it_is,
    axes_count,
    compressed,
    on_each,
    require_alike,
    require_no_shift,
    require_order_kept,
    size_of,
    varying,
)


def _check_cast(node: Node, change: Affine) -> None:
    kinds = {dtype(node.inputs[0]), dtype(node.outputs[0])}
    require(len(kinds) == 1 and kinds <= set(FLOAT_TYPES), f"{label(node)} changes the type")


def _check_dropout(node: Node, change: Affine) -> None:
    require(not is_training(node), f"{label(node)} may be training", TRAINING)


def _check_rectifier(node: Node, change: Affine) -> None:
    require_no_shift(node, change, "bends at zero")
    require((change.factor > 0).all(), f"{label(node)} bends at zero, and a factor is not positive")


# -------------------------------------------------------------------------------------- pooling


def _check_average(node: Node, change: Affine) -> None:
    require_alike(node, change, range(2, axes_count(node.inputs[0])))
    if operator(node) == "GlobalAveragePool" or not change.shifts:
        return
    padded = any(attribute(node, "pads") or []) or attribute(node, "auto_pad") in (
        "SAME_UPPER",
        "SAME_LOWER",
    )
    # with ceil_mode a window may hang over the edge, and runtimes count what is there differently
    whole = not attribute(node, "ceil_mode") and not (
        padded and attribute(node, "count_include_pad")
    )
    require(whole, f"{label(node)} averages over padding, which the shift does not reach")


def _check_maximum(node: Node, change: Affine) -> None:
    require_alike(node, change, range(2, axes_count(node.inputs[0])))
    require_order_kept(node, change)


def _reduced(node: Node) -> tuple[list[int], bool]:
    """Return the axes that a reduction is over, counted from the front, and whether they stay."""
    count = axes_count(node.inputs[0])
    listed = axes_of(node)
    require(listed is not None or not attribute(node, "noop_with_empty_axes"), "nothing is reduced")
    axes = sorted({axis % count for axis in listed}) if listed else list(range(count))
    return axes, bool(attribute(node, "keepdims"))


def _reduction(check: Callable[[Node, Affine], None]) -> Mover:
    def before(node: Node, change: Affine) -> Sequence[Affine | None]:
        axes, kept = _reduced(node)
        inner = change if kept else on_each(change, lambda v: np.expand_dims(v, tuple(axes)))
        require_alike(node, inner, axes)
        check(node, inner)
        return [inner]

    def after(node: Node, change: Affine, index: int) -> Affine:
        axes, kept = _reduced(node)
        require_alike(node, change, axes)
        check(node, change)
        return change if kept else on_each(change, lambda v: v.squeeze(tuple(axes)))

    return Mover(before, after)


def _check_sum(node: Node, change: Affine) -> None:
    require_no_shift(node, change, "adds up elements")


def _check_mean(node: Node, change: Affine) -> None:
    pass  # a mean is affine, whatever it is over


# ------------------------------------------------------------------------- several inputs


def _concat_axis(node: Node) -> int:
    return int(attribute(node, "axis") % axes_count(node.outputs[0]))


def _concat_before(node: Node, change: Affine) -> Sequence[Affine | None]:
    axis = _concat_axis(node)
    if axis not in varying(change):
        return [change for _ in node.inputs]
    parts: list[Affine | None] = []
    start = 0
    for tensor in node.inputs:
        end = start + size_of(tensor, axis)
        part = slice(start, end)
        parts.append(Affine(_cut(change.factor, axis, part), _cut(change.shift, axis, part)))
        start = end
    return parts


def _cut(values: Floats, axis: int, part: slice) -> Floats:
    whole = values.shape[axis] == 1
    return values if whole else compressed(values[(slice(None),) * axis + (part,)])


def _concat_after(node: Node, change: Affine, index: int) -> Affine:
    """What the others bring along stays as it is: their factors are 1, their shifts 0."""
    axis = _concat_axis(node)
    counts = [size_of(tensor, axis) for tensor in node.inputs]
    start = sum(counts[:index])

    def spread(values: Floats, rest: float) -> Floats:
        shape = list(values.shape)
        shape[axis] = counts[index]
        inner = np.broadcast_to(values, shape)
        shape[axis] = sum(counts)
        result = np.full(shape, rest)
        result[(slice(None),) * axis + (slice(start, start + counts[index]),)] = inner
        return compressed(result)

    return Affine(spread(change.factor, 1.0), spread(change.shift, 0.0))


def _sum_before(node: Node, change: Affine) -> Sequence[Affine | None]:
    """All summands take the factor, the one that can best take it the shift."""
    require(opset(node) >= 7, f"{label(node)} is from before opset 7", OLD_OPSET)
    bearer = next((k for k, t in enumerate(node.inputs) if constant(t) is not None), 0)
    if operator(node) == "Sub":
        bearer = 0 if constant(node.inputs[1]) is None else bearer
    still = np.zeros_like(change.shift)
    parts = []
    for index, tensor in enumerate(node.inputs):
        own = Affine(change.factor, change.shift if index == bearer else still)
        if operator(node) == "Sub" and index == 1 and index == bearer:
            own = Affine(change.factor, -change.shift)
        parts.append(_unbroadcast(node, tensor, own))
    return parts


def _unbroadcast(node: Node, tensor: Tensor, change: Affine) -> Affine:
    """Return the map for an operand that is broadcast to the result; constants may grow."""
    if constant(tensor) is not None:
        return change
    axes, given = change.factor.ndim, axes_count(tensor)
    for axis in varying(change):
        own = axis - axes + given
        fits = own >= 0 and static_dim(tensor, own) == static_dim(node.outputs[0], axis)
        require(
            fits and static_dim(tensor, own) is not None,
            f"{label(node)} spreads '{tensor.name}' over the channels",
        )
    return on_each(change, lambda v: v.reshape(v.shape[axes - given :]))


def _sum_after(node: Node, change: Affine, index: int) -> Affine:
    require(opset(node) >= 7, f"{label(node)} is from before opset 7", OLD_OPSET)
    require(not change.scales, f"{label(node)} adds what the factor does not reach")
    require(operator(node) != "Sub" or index == 0, f"{label(node)} takes it away")
    own, given = axes_count(node.outputs[0]), change.factor.ndim
    return on_each(change, lambda v: v.reshape(([1] * (own - given)) + list(v.shape)))


# f(a·x) = a·f(x) for positive factors: Relu and its like
HOMOGENEOUS = as_it_is(_check_rectifier)

# every row that this file knows
VALUES: dict[str, Mover] = {
    "Identity": as_it_is(lambda node, change: None),
    "Dropout": as_it_is(_check_dropout),
    "Cast": as_it_is(_check_cast),
    "AveragePool": as_it_is(_check_average),
    "GlobalAveragePool": as_it_is(_check_average),
    "MaxPool": as_it_is(_check_maximum),
    "GlobalMaxPool": as_it_is(_check_maximum),
    "ReduceMean": _reduction(_check_mean),
    "ReduceSum": _reduction(_check_sum),
    "ReduceMax": _reduction(require_order_kept),
    "Concat": Mover(_concat_before, _concat_after),
    "Add": Mover(_sum_before, _sum_after),
    "Sub": Mover(_sum_before, _sum_after),
    "Sum": Mover(_sum_before, _sum_after),
}
