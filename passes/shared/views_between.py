"""A view between two Transposes: one Transpose does for both, or none.

Heads of attention come of a view of channels that lie last, between a Transpose that put them there
and one that takes the heads in front of the positions. Where the view only splits axes, it can be
done before both; where it only merges them, after both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphpass import Node, Op, Rule, Tensor, any_, attribute, is_output, operator, opset, readers
from graphpass.ir.questions import integers
from graphpass.ir.shapes import as_target, reshaped, sizes
from graphpass.ir.sizes import Size, product

from .transposes import inverse, permutation

_FEW_AXES = 4
_COPIES_SIZES = 5  # from this opset on, a 0 in the shape of a Reshape stands for the input's size

_View = tuple[list[int], list[int]]  # axes before, axes after: one of them holds one axis


@dataclass(frozen=True)
class _OneTranspose:
    """Reshape, then Transpose, or the other way round; `shape`: what Reshape is to make."""

    perm: list[int]
    shape: list[int]
    view_first: bool

    def of(self, x: Any) -> Op:
        """Return what takes the place of Transpose, view and Transpose on `x`."""
        straight = self.perm == sorted(self.perm)
        shape = np.array(self.shape, np.int64)
        if self.view_first:
            view = Op("Reshape", x, shape)
            return view if straight else Op("Transpose", view, perm=self.perm)
        turned = x if straight else Op("Transpose", x, perm=self.perm)
        return Op("Reshape", turned, shape)


def _as_one(
    first: Sequence[int], shape: list[Size], final: list[Size], second: Sequence[int]
) -> _OneTranspose | None:
    """Read Transpose(view(Transpose(x, first)), second); `shape`: of x, `final`: of the view.

    Views in more than four axes are taken apart first (see `fewer_axes`).
    """
    if len(final) > _FEW_AXES:
        return None
    middle = [shape[axis] for axis in first]
    groups = _groups(middle, final)
    if groups is None:
        return None
    if all(len(before) == 1 for before, _ in groups):
        after = {first[before[0]]: axes for before, axes in groups}
        order = [axis for source in range(len(shape)) for axis in after[source]]
        target = as_target([final[axis] for axis in order], shape)
        perm = [order.index(axis) for axis in second]
        return None if target is None else _OneTranspose(perm, target, True)
    if all(len(after) == 1 for _, after in groups):
        sources = {after[0]: [first[axis] for axis in before] for before, after in groups}
        perm = [axis for out in second for axis in sources[out]]
        target = as_target([final[axis] for axis in second], [shape[axis] for axis in perm])
        return None if target is None else _OneTranspose(perm, target, False)
    return None


def _groups(before: list[Size], after: list[Size]) -> list[_View] | None:
    """Return which axes become which, in order; None where that is not told by the sizes."""
    found: list[_View] = []
    i = j = 0
    while i < len(before) and j < len(after):
        left, right = [i], [j]
        while product(before[k] for k in left) != product(after[k] for k in right):
            if len(left) == 1 and right[-1] + 1 < len(after) and _may_grow(before[i], after, right):
                right.append(right[-1] + 1)
            elif len(right) == 1 and left[-1] + 1 < len(before):
                left.append(left[-1] + 1)
            else:
                return None
        found.append((left, right))
        i, j = left[-1] + 1, right[-1] + 1
    return found if (i, j) == (len(before), len(after)) else None


def _may_grow(whole: Size, after: list[Size], taken: list[int]) -> bool:
    """Whether `whole` is split into the axes taken and further ones, and not merged with others."""
    part = product(after[k] for k in taken)
    return bool(
        not whole.names
        and not part.names
        and part.factor
        and whole.factor % part.factor == 0
        and whole.factor > part.factor
    )


class OneTransposeForTwo(Rule):
    """Transpose(Reshape(Transpose(x, p), s), q) = Transpose(Reshape(x, s'), q'), or Reshape last.

    Where the view splits axes it is done first, where it merges axes last.
    """

    pattern = Op(
        "Transpose",
        Op(
            "Reshape",
            Op("Transpose", any_("x"), bind="inner", shared=True),
            ...,
            bind="view",
        ),
        bind="outer",
    )

    def rewrite(self, outer: Node, view: Node, inner: Node, x: Tensor) -> Any:
        first, second, shape = permutation(inner), permutation(outer), sizes(x)
        if first is None or second is None or shape is None or opset(view) < _COPIES_SIZES:
            return None
        final = reshaped(view, [shape[axis] for axis in first])
        if final is None or any(not size.is_axis and size.names for size in final):
            return None
        found = _as_one(first, shape, final, second)
        return None if found is None else found.of(x)


class SplitAheadOfTranspose(Rule):
    """Split(Transpose(x, p), axis) = Transpose of each of Split(x, p[axis]), where that one goes.

    That is where each part is viewed and transposed again: see `OneTransposeForTwo`.
    """

    pattern = Op(
        "Split", Op("Transpose", any_("x"), bind="turn"), ..., bind="split", all_outputs=True
    )

    def rewrite(self, split: Node, turn: Node, x: Tensor) -> Any:
        order = permutation(turn)
        if order is None or not all(_goes(output, order) for output in split.outputs):
            return None
        given = split.inputs[1:]
        if any(tensor.name and integers(tensor) is None for tensor in given):
            return None
        attrs = {**split.attrs, "axis": order[attribute(split, "axis") % len(order)]}
        parts = Op("Split", x, *given, outputs=len(split.outputs), **attrs)
        return [Op("Transpose", part, perm=order) for part in parts]


def _goes(part: Tensor, order: list[int]) -> bool:
    """Whether the Transpose that `part` would get is done by the one behind its only view."""
    shape, views = sizes(part), readers(part)
    if is_output(part) or shape is None or len(views) != 1 or operator(views[0]) != "Reshape":
        return False
    (view,), below = views, readers(views[0].outputs[0])
    if is_output(view.outputs[0]) or opset(view) < _COPIES_SIZES or len(below) != 1:
        return False
    final, source = reshaped(view, shape), [shape[axis] for axis in inverse(order)]
    second = permutation(below[0]) if operator(below[0]) == "Transpose" else None
    return (
        final is not None
        and second is not None
        and (_as_one(order, source, final, second) is not None)
    )


VIEWS_BETWEEN: Sequence[Rule] = (OneTransposeForTwo(), SplitAheadOfTranspose())

__all__ = ["VIEWS_BETWEEN", "OneTransposeForTwo", "SplitAheadOfTranspose"]
