"""Reshape, Flatten, Squeeze and Unsqueeze: drop those that change nothing, merge what follows."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpass import (
    Node,
    Op,
    Rule,
    Tensor,
    any_,
    attribute,
    axes_of,
    constant,
    is_output,
    label,
    needed,
    operator,
    opset,
    readers,
)
from graphpass.ir.refusal import UNKNOWN_SIZE
from graphpass.ir.shapes import RESHAPES, as_target, moved, reshaped, sizes, target_of
from graphpass.ir.sizes import Size, product


class DropReshape(Rule):
    """Reshape(x, shape of x) = x; likewise Flatten, Squeeze and Unsqueeze."""

    pattern = Op(RESHAPES, any_("x"), ..., bind="node")

    def rewrite(self, node: Node, x: Tensor) -> Any:
        shape = sizes(x)
        return x if shape is not None and reshaped(node, shape) == shape else None


class MergeReshapes(Rule):
    """Reshape(Reshape(x, s), t) = Reshape(x, t), and x where that has the shape of x."""

    pattern = Op(
        RESHAPES,
        Op(RESHAPES, any_("x"), ..., bind="inner", shared=True),
        ...,
        bind="outer",
    )

    def rewrite(self, outer: Node, inner: Node, x: Tensor) -> Any:
        if {operator(outer), operator(inner)} == {"Squeeze", "Unsqueeze"}:
            axes = axes_of(outer)
            if axes is not None and axes == axes_of(inner):
                return x
        shape = sizes(x)
        final = reshaped(outer, reshaped(inner, shape))
        if final is not None and final == shape:
            return x
        middle = inner.outputs[0]
        if is_output(middle) or len(readers(middle)) > 1:
            return None  # the first one stays: nothing would be gained
        return _as_one(outer, inner, x, shape, final)


def _as_one(
    outer: Node, inner: Node, x: Tensor, shape: list[Size] | None, final: list[Size] | None
) -> Op | None:
    """Return one operator for both."""
    op = operator(outer)
    if op == "Reshape" and _is_absolute(outer):
        return Op("Reshape", x, *outer.inputs[1:], **outer.attrs)
    if shape is None or final is None:
        return None
    if op == "Flatten":
        for axis in range(len(shape) + 1):
            if [product(shape[:axis]), product(shape[axis:])] == final:
                return Op("Flatten", x, axis=axis)
    if op == operator(inner) and op in ("Squeeze", "Unsqueeze"):
        return _with_both_axes(outer, inner, x, len(shape))
    target = as_target(final, shape)
    if target is None or opset(outer) < 5:
        return None
    return Op("Reshape", x, np.array(target, np.int64))


def _is_absolute(node: Node) -> bool:
    """Whether a Reshape asks for constant sizes none of which it copies."""
    if len(node.inputs) > 1 and constant(node.inputs[1]) is None:
        return False
    target = target_of(node)
    return target is not None and all(size.factor and not size.names for size in target)


def _with_both_axes(outer: Node, inner: Node, x: Tensor, rank: int) -> Op | None:
    between = moved(inner, list(range(rank)))
    marks = None if between is None else moved(outer, between)
    if marks is None:
        return None
    if operator(outer) == "Unsqueeze":
        axes = [axis for axis, mark in enumerate(marks) if mark is None]
    else:
        axes = [axis for axis in range(rank) if axis not in marks]
    return Op(operator(outer), x, axes=axes)


class FixReshape(Rule):
    """Reshape(x, Concat(Shape(x)[0], [-1])) = Reshape(x, [0, -1]), and the like."""

    pattern = Op("Reshape", any_("x"), any_("shape"), bind="node")

    def rewrite(self, node: Node, x: Tensor, shape: Tensor) -> Any:
        if constant(shape) is not None:
            return None
        target = target_of(node)
        if target is None or (attribute(node, "allowzero") and Size(0) in target):
            return None
        found = needed(
            as_target(target, sizes(x)),
            f"the shape of {label(node)} holds several sizes known only when run",
            UNKNOWN_SIZE,
        )
        return Op("Reshape", x, np.array(found, np.int64))


__all__ = ["DropReshape", "FixReshape", "MergeReshapes"]
