"""Transposes that a Reshape can do, or that do with each other what one does."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpass import (
    Node,
    Op,
    Rule,
    Tensor,
    any_,
    is_output,
    label,
    operator,
    opset,
    producer,
    readers,
    require,
)
from graphpass.ir.shapes import RESHAPES, as_target, reshaped, sizes
from graphpass.ir.sizes import Size, product

from ..shared.transposes import merged, permutation, run_faster_apart


class DropTranspose(Rule):
    """Transpose(x, [0, 1, …]) = x."""

    pattern = Op("Transpose", any_("x"), bind="node")

    def rewrite(self, node: Node, x: Tensor) -> Any:
        axes = permutation(node)
        return x if axes is not None and axes == sorted(axes) else None


class MergeTransposes(Rule):
    """Transpose(Transpose(x, p), q) = Transpose(x, p[q]), and x where that is the identity.

    Two that move whole blocks stay apart where their product would move element by element.
    """

    pattern = Op("Transpose", Op("Transpose", any_("x"), bind="inner", shared=True), bind="outer")

    def rewrite(self, outer: Node, inner: Node, x: Tensor) -> Any:
        both = merged(inner, outer)
        if both is None:
            apart = run_faster_apart(inner, outer)
            require(not apart, f"{label(inner)} and {label(outer)} run faster than one would")
            return None
        return x if both == sorted(both) else Op("Transpose", x, perm=both)


class TransposeIsReshape(Rule):
    """Transpose(x) = Reshape(x) where axes of size 1 are all that changes place.

    Only beside another view: they become one then.
    """

    pattern = Op("Transpose", any_("x"), bind="node")

    def rewrite(self, node: Node, x: Tensor) -> Any:
        order, shape = permutation(node), sizes(x)
        if order is None or shape is None or opset(node) < 5 or not _beside_view(node):
            return None
        kept = [axis for axis in order if shape[axis] != Size(1)]
        if kept != sorted(kept) or order == sorted(order):
            return None
        if any(size.factor == 0 for size in shape):
            return None
        target = as_target([shape[axis] for axis in order], shape)
        return None if target is None else Op("Reshape", x, np.array(target, np.int64))


def _beside_view(node: Node) -> bool:
    above = producer(node.inputs[0])
    if above is not None and operator(above) in RESHAPES and len(readers(node.inputs[0])) == 1:
        return True
    output = node.outputs[0]
    below = readers(output)
    return not is_output(output) and len(below) == 1 and operator(below[0]) in RESHAPES


class TransposeInGroups(Rule):
    """Reshape(Transpose(Reshape(x))) = Transpose(x) where axes are joined, moved, parted again."""

    pattern = Op(
        RESHAPES,
        Op("Transpose", Op(RESHAPES, any_("x"), ..., bind="joined"), bind="moved"),
        ...,
        bind="parted",
    )

    def rewrite(self, parted: Node, moved: Node, joined: Node, x: Tensor) -> Any:
        shape = sizes(x)
        middle = reshaped(joined, shape)
        order = permutation(moved)
        if shape is None or middle is None or order is None or len(order) != len(middle):
            return None
        groups = _groups(shape, middle)
        final = reshaped(parted, [middle[axis] for axis in order])
        if groups is None or final is None:
            return None
        perm = [axis for group in order for axis in groups[group]]
        if [shape[axis] for axis in perm] != final:
            return None
        return x if perm == sorted(perm) else Op("Transpose", x, perm=perm)


def _groups(shape: list[Size], middle: list[Size]) -> list[list[int]] | None:
    """Return which axes of `shape` each axis of `middle` joins; None where one is parted.

    An axis of size 1 goes to the group that begins with it, where that is open.
    """
    groups: list[list[int]] = []
    at = 0
    for size in middle:
        group: list[int] = []
        while at < len(shape) and product(shape[axis] for axis in group) != size:
            group.append(at)
            at += 1
        if product(shape[axis] for axis in group) != size:
            return None
        groups.append(group)
    rest = range(at, len(shape))
    if any(shape[axis] != Size(1) for axis in rest):
        return None
    if rest:
        if not groups:
            return None
        groups[-1].extend(rest)
    return groups


LAYOUT_RULES = (DropTranspose(), MergeTransposes(), TransposeIsReshape(), TransposeInGroups())

__all__ = ["LAYOUT_RULES", "DropTranspose", "MergeTransposes"]
