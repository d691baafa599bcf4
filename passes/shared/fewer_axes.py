"""What exporters write in five axes or more, in four: compilers for chips take no more.

Attention gets queries, keys and values from one layer. Exporters view its channels as three times
heads times channels of a head, move the three to the front and take it apart. Taken apart before
it is viewed, there are never five axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphpass import (
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    attribute,
    axes_of,
    const,
    is_output,
    operator,
    opset,
    rank,
    readers,
)
from graphpass.ir.questions import integers
from graphpass.ir.shapes import RESHAPES, reshaped, sizes

from .transposes import permutation

_FEW_AXES = 4
_SLICES_TAKE_INPUTS = 10
_COPIES_SIZES = 5  # from this opset on, a 0 in the shape of a Reshape stands for the input's size

_VIEWED = Op(
    "Transpose",
    Op("Reshape", any_("x"), ..., bind="view", shared=True),
    bind="turn",
    shared=True,
)


@dataclass(frozen=True)
class _Groups:
    """Channels, the last axis of x, viewed as `count` groups of sizes `each`, and transposed.

    `axis`: of x. `order`: of the Transpose without the groups.
    """

    axis: int
    count: int
    each: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def width(self) -> int:
        """The number of channels in a group."""
        return int(np.prod(self.each))

    def viewed(self, part: Any) -> Op:
        """Return one group of channels as the original has it, without the axis of the groups."""
        shape = np.array([*[0] * self.axis, *self.each], np.int64)
        return Op("Transpose", Op("Reshape", part, shape), perm=list(self.order))


def _groups(turn: Node, view: Node, x: Tensor, taken: int) -> _Groups | None:
    """Read the views; `taken`: the axis behind them along which something is taken."""
    order, shape = permutation(turn), sizes(x)
    final = reshaped(view, shape)
    if order is None or shape is None or final is None or len(order) <= _FEW_AXES:
        return None
    axis = order[taken % len(order)]
    known = [size.factor for size in final[axis:] if not size.names]
    if axis != len(shape) - 1 or final[:axis] != shape[:axis] or len(known) < len(final) - axis:
        return None
    if opset(view) < _COPIES_SIZES or 0 in known:
        return None
    rest = tuple(a - (a > axis) for a in order if a != axis)
    return _Groups(axis, known[0], tuple(known[1:]), rest)


class SplitAheadOfGroups(Rule):
    """Split(Transpose(x as […, n, m], p), n) = each of Split(x, m) as […, 1, m], transposed."""

    pattern = Op("Split", _VIEWED, ..., bind="split", all_outputs=True)

    def rewrite(self, split: Node, turn: Node, view: Node, x: Tensor) -> Any:
        taken = attribute(split, "axis")
        found = _groups(turn, view, x, taken)
        if found is None or len(split.outputs) != found.count or not _is_even(split):
            return None
        taken %= len(found.order) + 1
        if not all(_loses(output, taken) for output in split.outputs):
            return None
        lengths = [found.width] * found.count
        parts = Op("Split", x, axis=found.axis, split=lengths, outputs=found.count)
        return [Op("Unsqueeze", found.viewed(part), axes=[taken]) for part in parts]


def _is_even(split: Node) -> bool:
    """Whether each part is one group."""
    given = attribute(split, "split")
    if given is None and len(split.inputs) > 1 and split.inputs[1].name:
        given = integers(split.inputs[1])
        return given is not None and set(given) == {1}
    return given is None or set(given) == {1}


def _loses(output: Tensor, axis: int) -> bool:
    """Whether all that reads a part takes the axis of the groups away."""
    return not is_output(output) and all(
        operator(reader) == "Squeeze"
        and [a % (rank(output) or 1) for a in axes_of(reader) or ()] == [axis]
        for reader in readers(output)
    )


class GatherAheadOfGroups(Rule):
    """Gather(Transpose(x as […, n, m], p), i) over n = x[…, i·m : (i+1)·m], viewed, transposed."""

    pattern = Op("Gather", _VIEWED, const("index"), bind="gather")

    def rewrite(self, gather: Node, turn: Node, view: Node, x: Tensor, index: Weight) -> Any:
        found = _groups(turn, view, x, attribute(gather, "axis"))
        if found is None or index.ndim > 0 or opset(gather) < _SLICES_TAKE_INPUTS:
            return None
        number = int(index.array()) % found.count
        ends = (number * found.width, (number + 1) * found.width, found.axis)
        return found.viewed(Op("Slice", x, *(np.array([end], np.int64) for end in ends)))


class SqueezeAheadOfTranspose(Rule):
    """Squeeze(Transpose(x, p), a) = Transpose(Squeeze(x, p[a]), p without a).

    Where the Transpose is of five axes or more.
    """

    pattern = Op("Squeeze", Op("Transpose", any_("x"), bind="turn"), ..., bind="squeeze")

    def rewrite(self, squeeze: Node, turn: Node, x: Tensor) -> Any:
        order, axes = permutation(turn), axes_of(squeeze)
        if order is None or len(order) <= _FEW_AXES or not axes:
            return None
        gone = sorted({order[axis] for axis in axes})
        kept = [axis for axis in range(len(order)) if axis not in gone]
        inner = Op("Squeeze", x, axes=gone)
        return Op("Transpose", inner, perm=[kept.index(axis) for axis in order if axis in kept])


class GatherFromVector(Rule):
    """Reshape(Gather(x[n, 1, …], i), shape of i) = Gather(x as [n], i)."""

    pattern = Op(
        RESHAPES, Op("Gather", any_("x"), any_("indices"), bind="gather"), ..., bind="view"
    )

    def rewrite(self, view: Node, gather: Node, x: Tensor, indices: Tensor) -> Any:
        shape, wanted = sizes(x), sizes(indices)
        if shape is None or wanted is None or attribute(gather, "axis") not in (0, -len(shape)):
            return None
        column = len(shape) > 1 and all(size.factor == 1 and not size.names for size in shape[1:])
        if not column or opset(view) < _COPIES_SIZES:
            return None
        if reshaped(view, sizes(gather.outputs[0])) != wanted:
            return None
        return Op("Gather", Op("Reshape", x, np.array([-1], np.int64)), indices, axis=0)


FEWER_AXES: Sequence[Rule] = (
    SplitAheadOfGroups(),
    GatherAheadOfGroups(),
    SqueezeAheadOfTranspose(),
    GatherFromVector(),
)

__all__ = [
    "FEWER_AXES",
    "GatherAheadOfGroups",
    "GatherFromVector",
    "SplitAheadOfGroups",
    "SqueezeAheadOfTranspose",
]
