"""Where a cell of a feature map comes from: exact receptive fields along one spatial axis.

A convolution or pooling with kernel k, stride s, dilation d and padding p before the first cell
reads, for its cell i, the cells i·s − p + j·d (0 ≤ j < k) of its input. So along one axis a map
whose cells are `stride` pixels apart, `window` pixels wide and begin at pixel `offset` becomes one
with stride·s, window + stride·d·(k − 1) and offset − stride·p (Dumoulin & Visin, "A guide to
convolution arithmetic for deep learning", 2016; Araujo, Norris & Sim, "Computing Receptive Fields
of Convolutional Neural Networks", 2019). Padding holds no pixels: what a cell at the border really
depends on is kept apart, as `first` and `last`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graphpass.ir.questions import Node, attribute, constant, label, require

Pixels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Line:
    """One spatial axis of a feature map, traced back to the image. All numbers are pixels.

    Cell i spans [offset + i·stride, offset + i·stride + window), which may reach beyond the image.
    The pixels that it depends on lie between `first[i]` and `last[i]` (exclusive), both of which
    do influence it; a cell that sees only padding has first >= last.
    """

    offset: int
    stride: int
    window: int
    first: Pixels
    last: Pixels

    @property
    def size(self) -> int:
        """The number of cells."""
        return len(self.first)

    @classmethod
    def image(cls, size: int) -> Line:
        """Return the axis of an image of `size` pixels."""
        pixels = np.arange(size, dtype=np.int64)
        return cls(0, 1, 1, pixels, pixels + 1)

    def taken(self, start: int, step: int, count: int) -> Line:
        """Return the axis that has cells start, start + step, …; cells outside see nothing."""
        return self.through(Window(1, step, -start, 0), count)

    def through(self, window: Window, count: int | None = None) -> Line:
        """Return the axis after a convolution or pooling (of `count` cells, if given)."""
        begin, _ = window.padding(self.size)
        cells = window.count(self.size) if count is None else count
        taps = (
            np.arange(cells, dtype=np.int64)[:, None] * window.stride
            - begin
            + np.arange(window.kernel, dtype=np.int64) * window.dilation
        )
        inside = (taps >= 0) & (taps < self.size)
        source = np.where(inside, taps, 0)
        seen = inside & (self.first < self.last)[source]
        nothing = np.iinfo(np.int64).max
        first = np.where(seen, self.first[source], nothing).min(axis=1, initial=nothing)
        last = np.where(seen, self.last[source], -1).max(axis=1, initial=-1)
        return Line(
            self.offset - self.stride * begin,
            self.stride * window.stride,
            self.window + self.stride * window.dilation * (window.kernel - 1),
            first,
            last,
        )

    def joined(self, other: Line) -> Line:
        """Return the axis of a map computed from two of the same size and stride, cell by cell."""
        offset = min(self.offset, other.offset)
        end = max(self.offset + self.window, other.offset + other.window)
        return Line(
            offset,
            self.stride,
            end - offset,
            np.minimum(self.first, other.first),
            np.maximum(self.last, other.last),
        )

    def box(self, cell: int) -> tuple[int, int]:
        """Return the pixels [first, last) that cell number `cell` depends on."""
        return int(self.first[cell]), int(self.last[cell])


@dataclass(frozen=True)
class Window:
    """A sliding window along one axis. `same`: "upper", "lower" or "" for explicit padding."""

    kernel: int
    stride: int = 1
    begin: int = 0
    end: int = 0
    dilation: int = 1
    ceil: bool = False
    same: str = ""

    def padding(self, size: int) -> tuple[int, int]:
        """Return the padding before and after, for an axis of `size` cells."""
        if not self.same:
            return self.begin, self.end
        cells = -(-size // self.stride)
        span = self.dilation * (self.kernel - 1) + 1
        total = max((cells - 1) * self.stride + span - size, 0)
        small, large = total // 2, total - total // 2
        return (small, large) if self.same == "upper" else (large, small)

    def count(self, size: int) -> int:
        """Return the number of cells that come of `size`; 0 where none fits."""
        begin, end = self.padding(size)
        free = size + begin + end - self.dilation * (self.kernel - 1) - 1
        if free < 0:
            return 0
        if not self.ceil:
            return free // self.stride + 1
        cells = -(-free // self.stride) + 1
        # a window must begin inside the input or its left padding (as Caffe, PyTorch and ONNX
        # Runtime have it)
        return cells - 1 if (cells - 1) * self.stride >= size + begin else cells

    def covers(self, size: int) -> bool:
        """Whether this is one window over exactly the whole axis."""
        return self.kernel == size and self.dilation == 1 and self.padding(size) == (0, 0)


def windows_of(node: Node) -> tuple[Window, ...]:
    """Return the window of a Conv or pooling node along each spatial axis.

    Raises RefusedError where the kernel's size is not in the model.
    """
    kernel = kernel_of(node)
    axes = len(kernel)
    strides = _listed(node, "strides", axes, 1)
    dilations = _listed(node, "dilations", axes, 1)
    pads = _listed(node, "pads", 2 * axes, 0)
    auto = attribute(node, "auto_pad") or "NOTSET"
    if auto == "VALID":
        pads = [0] * (2 * axes)
    same = {"SAME_UPPER": "upper", "SAME_LOWER": "lower"}.get(auto, "")
    ceil = bool(attribute(node, "ceil_mode") or 0)
    return tuple(
        Window(kernel[i], strides[i], pads[i], pads[axes + i], dilations[i], ceil, same)
        for i in range(axes)
    )


def kernel_of(node: Node) -> list[int]:
    """Return the kernel's size along each spatial axis. Raises RefusedError where it is unknown."""
    listed = node.attrs.get("kernel_shape")
    if listed:
        return [int(size) for size in listed]
    weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    shape = weight.shape if weight is not None else None
    if shape is None and len(node.inputs) > 1:
        shape = node.inputs[1].shape
    require(
        shape is not None and all(isinstance(size, int) for size in shape),
        f"the kernel size of {label(node)} is not known",
    )
    assert shape is not None
    return [int(size) for size in shape[2:]]


def _listed(node: Node, name: str, count: int, default: int) -> list[int]:
    values: Sequence[Any] | None = attribute(node, name)
    return [int(value) for value in values] if values else [default] * count
