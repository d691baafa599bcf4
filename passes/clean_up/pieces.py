"""Slice, Split, Concat and Gather: pieces of a tensor, and putting them together."""

from __future__ import annotations

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
    constant,
    each,
    integers,
    is_output,
    operator,
    producer,
    rank,
    readers,
    siblings,
    static_dim,
)
from graphpass.ir.shapes import sizes, slices, values
from graphpass.ir.sizes import Size
from graphpass.rewrite.pattern import Beyond

_TO_THE_END = 2**31 - 1  # what exporters write for the end of a slice that has none
_MOST_PIECES = 64

Cut = tuple[int, int, int]  # start, end, step


def _cuts(node: Node) -> dict[int, Cut] | None:
    """Return what a Slice does by axis (from the front); None where that is computed."""
    count, bounds = rank(node.inputs[0]), slices(node)
    if count is None or bounds is None:
        return None
    return {axis % count: (start, end, step) for axis, start, end, step in bounds}


def _slice(x: Tensor, cuts: dict[int, Cut]) -> Op:
    axes = sorted(cuts)
    parts = [[cuts[axis][part] for axis in axes] for part in range(3)]
    steps = parts[2] if any(step != 1 for step in parts[2]) else None
    return Op("Slice", x, starts=parts[0], ends=parts[1], axes=axes, steps=steps)


class DropSlice(Rule):
    """Slice(x) from the first element to the last = x, sizes that are computed included."""

    pattern = Op("Slice", any_("x"), ..., bind="node")

    def rewrite(self, node: Node, x: Tensor) -> Any:
        bounds = slices(node)
        if bounds is None:
            return x if _takes_all(node, x) else None
        for axis, start, end, step in bounds:
            size = static_dim(x, axis)
            if start or step != 1 or end < (_TO_THE_END if size is None else size):
                return None
        return x


def _takes_all(node: Node, x: Tensor) -> bool:
    """Whether the ends of a Slice are the sizes of `x` on its axes, whatever they are when run."""
    whole = sizes(x)
    if whole is None or len(node.inputs) < 3:
        return False
    given = [values(tensor) for tensor in node.inputs[1:3]]
    starts, ends = given
    if starts is None or ends is None or any(start != Size(0) for start in starts):
        return False
    axes = integers(node.inputs[3]) if len(node.inputs) > 3 else list(range(len(starts)))
    if len(node.inputs) > 4 and set(integers(node.inputs[4]) or [0]) != {1}:
        return False
    if axes is None or not all(-len(whole) <= axis < len(whole) for axis in axes):
        return False
    return all(
        end == whole[axis] or (not end.names and end.factor >= _TO_THE_END)
        for axis, end in zip(axes, ends, strict=True)
    )


class MergeSlices(Rule):
    """Slice(Slice(x, a), b) = Slice(x, a and b): other axes, or ranges within ranges."""

    pattern = Op("Slice", Op("Slice", any_("x"), ..., bind="inner"), ..., bind="outer")

    def rewrite(self, outer: Node, inner: Node, x: Tensor) -> Any:
        cuts = _merged(inner, outer)
        return None if cuts is None else _slice(x, cuts)


def _merged(inner: Node, outer: Node) -> dict[int, Cut] | None:
    """Return what two Slices do together; None where that is computed or no one Slice."""
    first, second = _cuts(inner), _cuts(outer)
    if first is None or second is None:
        return None
    cuts = dict(first)
    for axis, cut in second.items():
        both = _within(cuts[axis], cut) if axis in cuts else cut
        if both is None:
            return None
        cuts[axis] = both
    return cuts


def _within(first: Cut, second: Cut) -> Cut | None:
    """Return two ranges as one, where both count from the front in steps of 1."""
    if first[2] != 1 or second[2] != 1 or min(*first[:2], *second[:2]) < 0:
        return None
    return first[0] + second[0], min(first[1], first[0] + second[1]), 1


class SliceOnceEach(Rule):
    """Slice(s, a), Slice(s, b), … of s = Slice(x, c) = Slice(x, a and c), Slice(x, b and c), …"""

    pattern = siblings(Op("Slice", any_("s"), ..., bind="cuts"), of="s")

    def rewrite(self, s: Tensor, cuts: list[Node]) -> Any:
        inner = producer(s)
        if inner is None or operator(inner) != "Slice" or inner.graph is not cuts[0].graph:
            return None
        if is_output(s) or len(readers(s)) != len(cuts):
            return None
        taken = [_merged(inner, cut) for cut in cuts]
        if None in taken:
            return None
        return Beyond([_slice(inner.inputs[0], cut) for cut in taken if cut], [inner])


class GatherIsSlice(Rule):
    """Gather(x, [i, i + 1, …]) = Slice(x, i, …), along one axis."""

    pattern = Op("Gather", any_("x"), const("index", quiet=True), bind="node")

    def rewrite(self, node: Node, x: Tensor, index: Weight) -> Any:
        axis, count = attribute(node, "axis"), rank(x)
        if count is None or index.ndim != 1 or not 2 <= index.size <= 1 << 16:
            return None
        size = static_dim(x, axis)
        found = [int(i) for i in index.array()]
        if size is None or constant(x) is not None or found[0] < 0 or found[-1] >= size:
            return None
        if found != list(range(found[0], found[-1] + 1)):
            return None
        return _slice(x, {axis % count: (found[0], found[-1] + 1, 1)})


class SlicesAreSplit(Rule):
    """Slices of x that lie end to end along one axis = Split(x)."""

    pattern = siblings(Op("Slice", any_("x"), ..., bind="cuts"), of="x")

    def rewrite(self, x: Tensor, cuts: list[Node]) -> Any:
        count = rank(x)
        ranges = [_cuts(node) for node in cuts]
        if count is None or len(cuts) > _MOST_PIECES or constant(x) is not None:
            return None
        axes = {axis for found in ranges if found is not None for axis in found}
        for axis in sorted(axes):
            pieces = _end_to_end(ranges, axis, static_dim(x, axis))
            if pieces is None:
                continue
            merged = sum(_is_sliced_on(cuts[index]) for index in pieces)
            if 1 + merged < len(pieces) or not merged:
                return _split(cuts, x, axis, pieces)
        return None


def _is_sliced_on(cut: Node) -> bool:
    """Whether all that reads a Slice is one other, with which it becomes one."""
    output = cut.outputs[0]
    below = readers(output)
    if is_output(output) or len(below) != 1 or below[0].graph is not cut.graph:
        return False
    return operator(below[0]) == "Slice" and _merged(cut, below[0]) is not None


def _end_to_end(
    ranges: list[dict[int, Cut] | None], axis: int, size: int | None
) -> dict[int, tuple[int, int]] | None:
    """Return start and length of the slices that cover an axis once, by their index."""
    if not size:
        return None
    found: dict[int, int] = {}  # by start: which
    lengths: dict[int, int] = {}
    for index, cuts in enumerate(ranges):
        if cuts is None or set(cuts) != {axis} or cuts[axis][2] != 1:
            continue
        start, end, _ = cuts[axis]
        start = max(start + size, 0) if start < 0 else min(start, size)
        end = max(end + size, 0) if end < 0 else min(end, size)
        if end > start and start not in found:
            found[start], lengths[start] = index, end - start
    pieces: dict[int, tuple[int, int]] = {}
    at = 0
    while at in found:
        pieces[found[at]] = (at, lengths[at])
        at += lengths[at]
    return pieces if at == size and len(pieces) > 1 else None


def _split(cuts: list[Node], x: Tensor, axis: int, pieces: dict[int, tuple[int, int]]) -> list[Any]:
    order = sorted(pieces, key=lambda index: pieces[index][0])
    lengths = [pieces[index][1] for index in order]
    made = Op("Split", x, axis=axis, split=lengths, outputs=len(lengths))
    return [made[order.index(index)] if index in pieces else None for index in range(len(cuts))]


class SplitIsGather(Rule):
    """Squeeze(Split(x)[i], axis) = Gather(x, i) where all parts are squeezed along its axis."""

    pattern = Op("Squeeze", any_("part"), ..., bind="squeeze")

    def rewrite(self, squeeze: Node, part: Tensor) -> Any:
        source = producer(part)
        if source is None or operator(source) != "Split" or source.graph is not squeeze.graph:
            return None
        x, count = source.inputs[0], rank(source.inputs[0])
        if count is None or constant(x) is not None:
            return None
        axis = attribute(source, "axis") % count
        if not all(_is_taken_alone(other, axis, count) for other in source.outputs):
            return None
        place = next(i for i, other in enumerate(source.outputs) if other is part)
        return Beyond(Op("Gather", x, np.array(place), axis=axis), [source])


def _is_taken_alone(part: Tensor, axis: int, count: int) -> bool:
    """Whether a part of a Split is one slice, and a Squeeze is all that reads it."""
    if is_output(part) or static_dim(part, axis) != 1:
        return False
    below = readers(part)
    return all(
        operator(node) == "Squeeze" and [a % count for a in axes_of(node) or ()] == [axis]
        for node in below
    )


class DropSplit(Rule):
    """Split(x) into one = x."""

    pattern = Op("Split", any_("x"), ..., bind="node", all_outputs=True)

    def rewrite(self, node: Node, x: Tensor) -> Any:
        return [x] if len(node.outputs) == 1 else None


class DropConcat(Rule):
    """Concat(x) = x."""

    pattern = Op("Concat", any_("x"))

    def rewrite(self, x: Tensor) -> Any:
        return x


class ConcatOfSplit(Rule):
    """Concat(Split(x)) = x: all parts, in their order, along the same axis."""

    pattern = Op("Concat", each("parts"), bind="concat")

    def rewrite(self, concat: Node, parts: list[Tensor | None]) -> Any:
        first = parts[0]
        source = None if first is None else producer(first)
        if source is None or operator(source) != "Split" or source.graph is not concat.graph:
            return None
        count = rank(source.inputs[0])
        if count is None or len(parts) != len(source.outputs):
            return None
        if not all(a is b for a, b in zip(parts, source.outputs, strict=True)):
            return None
        if attribute(source, "axis") % count != attribute(concat, "axis") % count:
            return None
        return Beyond(source.inputs[0], [source])


class MergeConcats(Rule):
    """Concat(a, Concat(b, c), d) = Concat(a, b, c, d) along the same axis, without empty parts."""

    pattern = Op("Concat", each("parts"), bind="concat")

    def rewrite(self, concat: Node, parts: list[Tensor | None]) -> Any:
        count = rank(concat.outputs[0])
        axis = attribute(concat, "axis")
        if count is None or None in parts or axis is None:
            return None
        found: list[Tensor] = []
        inner: list[Node] = []
        for part in parts:
            assert part is not None
            if len(parts) > 1 and _is_empty(part, axis % count):
                continue
            source = _inner(part, concat, axis % count)
            if source is None:
                found.append(part)
            else:
                inner.append(source)
                found.extend(source.inputs)
        if len(found) == len(parts) and not inner:
            return None
        if not found:
            return None
        term = found[0] if len(found) == 1 else Op("Concat", *found, **concat.attrs)
        return Beyond(term, inner) if inner else term


def _is_empty(part: Tensor, axis: int) -> bool:
    """Whether a part has no elements because it has size 0 on the axis along which it is joined."""
    return static_dim(part, axis) == 0


def _inner(part: Tensor, concat: Node, axis: int) -> Node | None:
    """Return the Concat that makes `part` for this one alone, along the same axis."""
    source = producer(part)
    if source is None or operator(source) != "Concat" or source.graph is not concat.graph:
        return None
    count = rank(part)
    if is_output(part) or len(readers(part)) != 1 or count is None:
        return None
    own = attribute(source, "axis")
    return source if own is not None and own % count == axis else None


PIECE_RULES = (
    DropSlice(),
    MergeSlices(),
    SliceOnceEach(),
    GatherIsSlice(),
    SlicesAreSplit(),
    SplitIsGather(),
    DropSplit(),
    DropConcat(),
    ConcatOfSplit(),
    MergeConcats(),
)

__all__ = ["PIECE_RULES"]
