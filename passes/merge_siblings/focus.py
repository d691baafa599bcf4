"""Every second pixel, four times, as channels: the Conv that reads them moves by two pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphpass import (
    Beyond,
    Choice,
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    attribute,
    const,
    each,
    is_output,
    label,
    operator,
    optional,
    producer,
    rank,
    readers,
    require,
    static_dim,
)
from graphpass.ir.shapes import slices
from graphpass.ir.windows import windows_of

from ..shared.affine import FLOAT_TYPES
from ..shared.linear import require_own

_TO_THE_END = 2**31 - 1  # what exporters write for the end of a slice that has none
_MOST_SLICES = 8  # one above the other, for one piece

Starts = tuple[int, ...]


class FocusAsStride(Rule):
    """Conv(Concat(x[::s, ::s], x[1::s, ::s], …), W) = Conv(x, W'), W' s times as large, stride s.

    With W'[o, c, s·a + i, s·b + j] = W[o, p·C + c, a, b], where piece p begins at (i, j): YOLOv5's
    Focus. The same products in another order; where the pieces do not have the same size, the
    original does not run.
    """

    pattern = Op(
        "Conv",
        Op("Concat", each("pieces"), bind="concat", shared=True),
        const("weight"),
        optional(const("bias")),
        bind="conv",
    )
    choice = Choice.WHERE_LESS

    def rewrite(
        self,
        conv: Node,
        concat: Node,
        pieces: list[Tensor | None],
        weight: Weight,
        bias: Weight | None,
    ) -> Any:
        axes = weight.ndim
        if None in pieces or attribute(concat, "axis") not in (1, 1 - axes):
            return None
        read = [_piece(piece, axes) for piece in pieces if piece is not None]
        found = [piece for piece in read if piece is not None]
        if len(found) != len(pieces) or not found:
            return None
        x, step = found[0].x, found[0].step
        if any(piece.x is not x or piece.step != step for piece in found):
            return None
        starts = [piece.starts for piece in found]
        if sorted(starts) != list(itertools.product(range(step), repeat=axes - 2)):
            return None
        require(_is_read_once(concat), f"{label(concat)} has other readers, for which it stays")
        term = _strided(conv, x, weight, bias, step, starts)
        nodes = list(dict.fromkeys(node for piece in found for node in piece.nodes))
        return None if term is None else Beyond(term, nodes)


class SpaceToDepthAsStride(Rule):
    """Conv(SpaceToDepth(x), W) = Conv(x, W'), W' s times as large, stride s."""

    pattern = Op(
        "Conv",
        Op("SpaceToDepth", any_("x"), bind="depth"),
        const("weight"),
        optional(const("bias")),
        bind="conv",
    )
    choice = Choice.WHERE_LESS

    def rewrite(
        self, conv: Node, depth: Node, x: Tensor, weight: Weight, bias: Weight | None
    ) -> Any:
        step = attribute(depth, "blocksize")
        starts = list(itertools.product(range(step), repeat=2))
        return _strided(conv, x, weight, bias, step, starts)


def _is_read_once(node: Node) -> bool:
    return len(readers(node.outputs[0])) == 1 and not is_output(node.outputs[0])


class _Piece:
    """A piece x[…, i::s, j::s]: where it begins by axis of the pixels, and the nodes that cut."""

    def __init__(self, x: Tensor, step: int, starts: Starts, nodes: Sequence[Node]) -> None:
        self.x, self.step, self.starts, self.nodes = x, step, starts, nodes


def _piece(piece: Tensor, axes: int) -> _Piece | None:
    cuts: dict[int, tuple[int, int]] = {}
    nodes: list[Node] = []
    x = piece
    while len(nodes) < _MOST_SLICES:
        node = producer(x)
        if node is None or operator(node) != "Slice":
            break
        bounds = slices(node)
        if bounds is None or rank(node.inputs[0]) != axes:
            return None
        for axis, start, end, step in bounds:
            size = static_dim(node.inputs[0], axis)
            whole = end >= (_TO_THE_END if size is None else size)
            if axis % axes in cuts or not 0 <= start < step or not whole:
                return None
            cuts[axis % axes] = start, step
        nodes.append(node)
        x = node.inputs[0]
        if len(cuts) == axes - 2:
            break
    steps = {step for _, step in cuts.values()}
    if sorted(cuts) != list(range(2, axes)) or len(steps) != 1 or steps == {1}:
        return None
    return _Piece(x, steps.pop(), tuple(cuts[axis][0] for axis in range(2, axes)), nodes)


def _strided(
    conv: Node,
    x: Tensor,
    weight: Weight,
    bias: Weight | None,
    step: int,
    starts: Sequence[Starts],
) -> Op | None:
    """Return the Conv on x for one on pieces of x, each with every `step`-th pixel."""
    windows = windows_of(conv)
    outputs, inputs, *kernel = weight.shape
    count = len(starts)
    require(attribute(conv, "group") == 1, f"{label(conv)} has groups, which take other pieces")
    if weight.dtype not in FLOAT_TYPES or inputs % count or count != step ** len(kernel):
        return None
    require(
        all(window.dilation == 1 for window in windows),
        f"{label(conv)} leaves out pixels between those that it reads",
    )
    require(
        not any(window.same for window in windows),
        f"how far {label(conv)} pads depends on the size of its input",
    )
    require_own(weight)
    channels = inputs // count
    held = weight.array()
    shape = (outputs, channels, *(step * size for size in kernel))
    larger = np.zeros(shape, held.dtype)
    for index, begin in enumerate(starts):
        part = held[:, index * channels : (index + 1) * channels]
        pixels = (slice(None), slice(None), *(slice(start, None, step) for start in begin))
        larger[pixels] = part
    assert math.prod(shape) == held.size
    attributes = {
        **conv.attrs,
        "auto_pad": None,
        "kernel_shape": list(shape[2:]),
        "strides": [step * window.stride for window in windows],
        "pads": [step * w.begin for w in windows] + [step * w.end for w in windows],
    }
    return Op("Conv", x, larger, bias, **attributes)
