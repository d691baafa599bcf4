"""The head of a network, from one answer to a map of answers.

At the native resolution a head sees one cell: its tensors are [N, C], [N, C, 1, 1] or [N]. Lifted,
each of them is a map [N, C, h, w] on which the same operators work cell by cell. What mixes the
channels of a cell (Softmax, ArgMax, a norm) works along axis 1, what mixes images or would need
more than one cell is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphpass import (
    Node,
    Tensor,
    attribute,
    axes_of,
    constant,
    label,
    needed,
    operator,
    opset,
    require,
)
from graphpass.follow.image_axes import shown, size_of, target_sizes
from graphpass.follow.traced import Trace
from graphpass.ir.operators import Trait, named
from graphpass.ir.refusal import COMPUTED, UNKNOWN_SIZE
from graphpass.ir.weight import Array
from graphpass.ir.windows import windows_of
from graphpass.rewrite.edit import Editor

SOFTMAXES = ("Softmax", "LogSoftmax")
_SOFTMAX_BY_AXIS = 13


def channels_last(dims: int) -> tuple[int, ...]:
    """Return the permutation that puts the channels behind the dimensions of the image."""
    return (0, *range(2, 2 + dims), 1)


def channels_first(dims: int) -> tuple[int, ...]:
    """Return the permutation that puts the channels, which lie last, before the dimensions."""
    return (0, 1 + dims, *range(1, 1 + dims))


@dataclass(frozen=True)
class Lifted:
    """`cells`: the map [N, C, h, w]. `channel`: which axis of the original tensor C is, if any."""

    cells: Tensor
    channel: int | None
    rank: int


class Lifter:
    """Walks the head of `found.graph` from where height and width vanish to its outputs.

    `linear`: lift what commutes with a mean, from the map before it is pooled up to a Softmax.
    """

    def __init__(self, found: Trace, edit: Editor, *, linear: bool = False) -> None:
        self.found = found
        self.edit = edit
        self.linear = linear
        self.lifted: dict[int, Lifted] = {}
        self.rank = 2 + len(found.size)  # of a feature map

    def run(self) -> dict[int, Lifted]:
        """Lift every tensor of the head. Raises RefusedError with one sentence."""
        starts = {id(collapse.node): collapse for collapse in self.found.heads}
        for node in list(self.found.graph.nodes):
            if id(node) in starts:
                self._start(node, starts[id(node)].source, starts[id(node)].kind)
            elif any(id(tensor) in self.lifted for tensor in node.inputs):
                self._lift(node)
        return self.lifted

    def _start(self, node: Node, source: Tensor, kind: str) -> None:
        cells = self.found.map_size(source)
        output = node.outputs[0]
        if kind == "pool" and self.linear:
            self.lifted[id(output)] = self._before_pooling(node, source)
            return
        if kind == "pool":
            sliding = operator(node) in ("AveragePool", "MaxPool")
            require(sliding, f"{label(node)} pools over the whole image, whatever its size")
            self.lifted[id(output)] = Lifted(output, 1, self.rank)
            return
        if kind == "dense":
            self.lifted[id(output)] = Lifted(self._slide(node, source), 1, self.rank)
            return
        size = "x".join(map(str, cells))
        require(
            set(cells) == {1},
            f"{label(node)} keeps the {size} pixels of its map apart, and what reads them is no "
            "dense layer that could become a convolution",
        )
        axes = self.found.axes[id(source)]
        (channel,) = [i for i in range(1, len(axes)) if isinstance(axes[i], int)]
        require(
            len(axes) == self.rank,
            f"{label(node)} flattens something else than a batch of feature maps",
        )
        cells_first = self._channels_first(source, channel)
        shape = [size_of(axis) for axis in self.found.axes[id(output)]]
        count = size_of(axes[channel])
        self.lifted[id(output)] = Lifted(cells_first, _channel_of(node, shape, count), len(shape))

    def _channels_first(self, source: Tensor, channel: int) -> Tensor:
        if channel != self.rank - 1:
            return source
        return self.edit.permuted(source, channels_first(self.rank - 2))

    def _before_pooling(self, node: Node, source: Tensor) -> Lifted:
        """Return the map that is pooled, as the cells of what its mean becomes."""
        mean = operator(node) in ("GlobalAveragePool", "AveragePool", "ReduceMean")
        require(mean, f"{label(node)} is no mean: there is no map whose mean is the answer")
        axes = self.found.axes[id(source)]
        (channel,) = [i for i in range(1, len(axes)) if isinstance(axes[i], int)]
        maps = len(axes) == self.rank and channel in (1, self.rank - 1)
        require(maps, f"{label(node)} pools no feature maps")
        cells = self._channels_first(source, channel)
        shape = [size_of(axis) for axis in self.found.axes[id(node.outputs[0])]]
        return Lifted(cells, _channel_of(node, shape, size_of(axes[channel])), len(shape))

    def _slide(self, node: Node, source: Tensor) -> Tensor:
        """Let a Conv over a whole map that lies as [N, H, W, C] slide over it as [N, C, H, W]."""
        axes = self.found.axes[id(source)]
        (channel,) = [i for i in range(1, self.rank) if isinstance(axes[i], int)]
        order = (0, channel, *self.found.places(source))
        weight = _weight(node).transpose(order)
        cells = self.edit.permuted(source, order)
        return _slid(self.edit, node, cells, weight)

    def _lift(self, node: Node) -> None:
        op = operator(node)
        if op in ("Shape", "Size"):
            return
        if self.linear and op in SOFTMAXES:
            return
        require(
            not self.linear or op in _LINEAR,
            f"{label(node)} in the head is not linear: no map has its answer for a mean",
        )
        handler = needed(
            _HANDLERS.get(op), f"{label(node)} in the head has no counterpart on a map"
        )
        for tensor, lifted in zip(node.outputs, handler(self, node), strict=False):
            self.lifted[id(tensor)] = lifted

    # ----------------------------------------------------------------------- what handlers ask

    def first(self, node: Node) -> Lifted:
        """Return the lifted first input."""
        found = self.lifted.get(id(node.inputs[0]))
        return needed(found, f"{label(node)} in the head does not read the map first")

    def channel(self, node: Node, axis: int) -> Lifted:
        """Return the lifted first input, whose channels must lie on `axis` of the original."""
        first = self.first(node)
        axis += first.rank if axis < 0 else 0
        require(axis == first.channel, f"{label(node)} works on axis {axis}, not on the classes")
        return first

    def shape_after(self, node: Node, first: Lifted) -> list[int]:
        """Return the sizes of a view's output; a symbolic batch has a large stand-in."""
        shape = node.outputs[0].shape
        if shape is not None and all(isinstance(size, int) for size in shape[1:]):
            return [size_of(axis) for axis in shape]
        value = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        known = self.found.values.get(id(node.inputs[1])) if len(node.inputs) > 1 else None
        wanted = value.array() if value is not None else known
        before = self.found.axes_of(node.inputs[0])
        unknown = f"what {label(node)} makes of the head's shape is not known"
        wanted = needed(wanted, unknown, UNKNOWN_SIZE)
        before = needed(before, unknown, UNKNOWN_SIZE)
        return target_sizes(before, wanted.reshape(-1).tolist())


Handler = Callable[[Lifter, Node], list[Lifted]]


def _channel_of(node: Node, shape: list[int], count: int) -> int:
    """Find the axis that holds `count` channels; all others but the batch must be 1."""
    wide = [i for i, size in enumerate(shape) if size != 1 and i > 0]
    if count == 1 and not wide:
        return min(1, len(shape) - 1)
    require(
        len(wide) == 1 and shape[wide[0]] == count,
        f"{label(node)} splits the classes or joins them with the batch: {shown(shape[1:])}",
    )
    return wide[0]


def _count(lifter: Lifter, node: Node) -> int:
    first = lifter.first(node)
    axes = lifter.found.axes_of(node.inputs[0])
    if axes is not None and first.channel is not None and isinstance(axes[first.channel], int):
        return size_of(axes[first.channel])
    return math.prod(size_of(a) for a in axes[1:]) if axes is not None else 0


def _view(lifter: Lifter, node: Node) -> list[Lifted]:
    first = lifter.first(node)
    shape = lifter.shape_after(node, first)
    require(shape, f"{label(node)} drops the batch")
    if first.channel is None:
        return [Lifted(first.cells, None if len(shape) == 1 else 1, len(shape))]
    return [Lifted(first.cells, _channel_of(node, shape, _count(lifter, node)), len(shape))]


def _transpose(lifter: Lifter, node: Node) -> list[Lifted]:
    first = lifter.first(node)
    perm = attribute(node, "perm") or list(range(first.rank))[::-1]
    require(perm[0] == 0, f"{label(node)} moves the batch")
    channel = None if first.channel is None else list(perm).index(first.channel)
    return [Lifted(first.cells, channel, first.rank)]


def _drop(lifter: Lifter, node: Node) -> list[Lifted]:
    return [lifter.first(node)]


def _unary(lifter: Lifter, node: Node) -> list[Lifted]:
    first = lifter.first(node)
    cells = lifter.edit.one(node.op, [first.cells, *node.inputs[1:]], like=node)
    return [Lifted(cells, first.channel, first.rank)]


def _normalization(lifter: Lifter, node: Node) -> list[Lifted]:
    require(lifter.first(node).channel == 1, f"{label(node)} is not over the classes")
    return _unary(lifter, node)


def _elementwise(lifter: Lifter, node: Node) -> list[Lifted]:
    maps = [lifter.lifted.get(id(tensor)) for tensor in node.inputs]
    known = [found for found in maps if found is not None]
    ranks = [found.rank for found in known]
    constants = [constant(t) if m is None else None for t, m in zip(node.inputs, maps, strict=True)]
    rank = max([*ranks, *(weight.ndim for weight in constants if weight is not None)])
    places = {
        found.channel + rank - found.rank for found in known if found.channel is not None
    } or {1}
    require(
        len(places) == 1 and len(set(ranks)) == 1 and rank == ranks[0],
        f"{label(node)} in the head joins tensors whose classes lie on different axes",
    )
    (channel,) = places
    operands: list[Any] = []
    for tensor, found, weight in zip(node.inputs, maps, constants, strict=True):
        require(
            found is not None or weight is not None,
            f"{label(node)} in the head reads '{tensor.name}', which is no map",
        )
        if found is not None:
            operands.append(found.cells)
        elif weight is not None and weight.size == 1 and weight.ndim <= rank:
            operands.append(tensor)
        else:
            assert weight is not None
            shape = (1,) * (rank - weight.ndim) + weight.shape
            others = [size for axis, size in enumerate(shape) if axis != channel]
            require(
                all(size == 1 for size in others),
                f"{label(node)} in the head has a weight of shape {list(weight.shape)}",
            )
            pixel = [1] * (lifter.rank - 2)
            operands.append(weight.array().reshape(1, shape[channel], *pixel))
    cells = lifter.edit.one(node.op, operands, like=node)
    return [Lifted(cells, channel if known[0].channel is not None else None, rank)]


def cellwise_softmax(edit: Editor, node: Node, cells: Tensor, dims: int) -> Tensor:
    """Return Softmax, LogSoftmax or Hardmax over the channels of every cell.

    Before opset 13 these flatten everything from their axis on: the channels must come last.
    """
    if opset(node) >= _SOFTMAX_BY_AXIS:
        return edit.one(node.op, [cells], like=node, axis=1)
    turned = edit.permuted(cells, channels_last(dims))
    last = edit.one(node.op, [turned], like=node, axis=1 + dims)
    return edit.permuted(last, channels_first(dims))


def _softmax(lifter: Lifter, node: Node) -> list[Lifted]:
    first = lifter.first(node)
    axis = attribute(node, "axis")
    axis += first.rank if axis < 0 else 0
    flattens = opset(node) < _SOFTMAX_BY_AXIS
    over_classes = first.channel is not None and (
        1 <= axis <= first.channel if flattens else axis == first.channel
    )
    require(over_classes, f"{label(node)} works on axis {axis}, not on the classes")
    cells = cellwise_softmax(lifter.edit, node, first.cells, lifter.rank - 2)
    return [Lifted(cells, first.channel, first.rank)]


def _along_channel(lifter: Lifter, node: Node) -> list[Lifted]:
    first = lifter.channel(node, attribute(node, "axis"))
    cells = lifter.edit.node(
        node.op, [first.cells, *node.inputs[1:]], like=node, outputs=len(node.outputs), axis=1
    )
    return [Lifted(tensor, first.channel, first.rank) for tensor in cells]


def _concat(lifter: Lifter, node: Node) -> list[Lifted]:
    first = lifter.channel(node, attribute(node, "axis"))
    maps = [lifter.lifted.get(id(tensor)) for tensor in node.inputs]
    same = [m for m in maps if m is not None and (m.channel, m.rank) == (first.channel, first.rank)]
    require(len(same) == len(maps), f"{label(node)} in the head joins a map with something else")
    cells = lifter.edit.one(node.op, [found.cells for found in same], like=node, axis=1)
    return [Lifted(cells, first.channel, first.rank)]


def _arg(lifter: Lifter, node: Node) -> list[Lifted]:
    first = lifter.channel(node, attribute(node, "axis"))
    kept = attribute(node, "keepdims") != 0
    cells = lifter.edit.one(node.op, [first.cells], like=node, axis=1, keepdims=1)
    return [Lifted(cells, first.channel if kept else None, first.rank - (not kept))]


def _reduce(lifter: Lifter, node: Node) -> list[Lifted]:
    first = lifter.first(node)
    over = needed(axes_of(node), f"{label(node)} reduces everything, the batch included")
    places = {axis % first.rank for axis in over}
    kept = attribute(node, "keepdims") != 0
    require(0 not in places, f"{label(node)} reduces the batch")
    if first.channel not in places:
        require(node.op in _ONE_CELL, f"{label(node)} reduces a single cell")
        return _view(lifter, node)
    cells = lifter.edit.one(node.op, [first.cells], like=node, axes=[1], keepdims=1)
    return [Lifted(cells, first.channel if kept else None, first.rank - (not kept) * len(places))]


def _layer_norm(lifter: Lifter, node: Node) -> list[Lifted]:
    first = lifter.channel(node, attribute(node, "axis"))
    require(first.channel == first.rank - 1, f"{label(node)} is not over the classes alone")
    dims = lifter.rank - 2
    last = lifter.edit.permuted(first.cells, channels_last(dims))
    normed = lifter.edit.one(node.op, [last, *node.inputs[1:]], like=node, axis=1 + dims)
    cells = lifter.edit.permuted(normed, channels_first(dims))
    return [Lifted(cells, first.channel, first.rank)]


def _conv(lifter: Lifter, node: Node) -> list[Lifted]:
    first = lifter.first(node)
    require(
        all(window.padding(1) == (0, 0) for window in windows_of(node)),
        f"{label(node)} in the head pads the one cell that it sees",
    )
    if first.channel == 1 and all(window.kernel == 1 for window in windows_of(node)):
        cells = lifter.edit.one("Conv", [first.cells, *node.inputs[1:]], like=node)
        return [Lifted(cells, 1, lifter.rank)]
    # [N, 1, 1, C] under a kernel of 1xC: a dense layer written as a convolution
    weight = _weight(node)
    channels = weight.reshape(weight.shape[0], -1, *[1] * (lifter.rank - 2))
    return [Lifted(_slid(lifter.edit, node, first.cells, channels), 1, lifter.rank)]


def _matmul(lifter: Lifter, node: Node) -> list[Lifted]:
    """[N, 1, 1, C] · W: a dense layer on the channels, which lie last."""
    first = lifter.first(node)
    weight = needed(
        constant(node.inputs[1]), f"the weight of {label(node)} is not a constant", COMPUTED
    )
    channels = first.rank > 1 and first.channel == first.rank - 1
    require(channels and weight.ndim == 2, f"{label(node)} is not over the classes alone")
    kernel = weight.array().T.reshape(*weight.shape[::-1], *[1] * (lifter.rank - 2))
    cells = lifter.edit.one("Conv", [first.cells, np.ascontiguousarray(kernel)], like=node)
    return [Lifted(cells, first.channel, first.rank)]


def _weight(node: Node) -> Array:
    weight = needed(
        constant(node.inputs[1]), f"the weight of {label(node)} is not a constant", COMPUTED
    )
    require(attribute(node, "group") == 1, f"{label(node)} in the head has groups")
    return weight.array()


def _slid(edit: Editor, node: Node, cells: Tensor, weight: Array) -> Tensor:
    operands = [cells, np.ascontiguousarray(weight), *node.inputs[2:]]
    return edit.one(
        "Conv", operands, like=node, kernel_shape=list(weight.shape[2:]), strides=None, pads=None
    )


def _global_pool(lifter: Lifter, node: Node) -> list[Lifted]:
    return [lifter.first(node)]  # of one cell


_LINEAR = (*named(Trait.VIEW, Trait.CONTRACTION), "BatchNormalization", "Dropout", "Transpose")
# of one element, that element
_ONE_CELL = (*named(Trait.REDUCTION | Trait.SUM, Trait.REDUCTION | Trait.PICKS), "ReduceProd")

_HANDLERS: Mapping[str, Handler] = {
    **dict.fromkeys(named(Trait.ELEMENTWISE), _unary),
    **dict.fromkeys(named(Trait.BROADCASTING), _elementwise),
    **dict.fromkeys(named(Trait.REDUCTION), _reduce),
    **dict.fromkeys(named(Trait.VIEW), _view),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("TopK", "Split", "LpNormalization"), _along_channel),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("BatchNormalization", "LRN"), _normalization),
    **dict.fromkeys(("Identity", "Dropout"), _drop),
    "Concat": _concat,
    "Conv": _conv,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "Transpose": _transpose,
}

__all__ = [
    "SOFTMAXES",
    "Lifted",
    "Lifter",
    "cellwise_softmax",
    "channels_first",
    "channels_last",
]
