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

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphpass.ir.windows import Window

Pixels = npt.NDArray[np.int64]

_MOST = 1 << 22  # pixels of a line, or cells that all windows along one read


class TooLargeError(Exception):
    """A line has more pixels or windows than can be followed; the text ends a sentence."""


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
        """Return the axis of an image of `size` pixels. Raises TooLargeError."""
        if size > _MOST:
            raise TooLargeError(f"is {size} pixels long, more than can be followed")
        pixels = np.arange(size, dtype=np.int64)
        return cls(0, 1, 1, pixels, pixels + 1)

    def taken(self, start: int, step: int, count: int) -> Line:
        """Return the axis that has cells start, start + step, …; cells outside see nothing."""
        return self.through(Window(1, step, -start, 0), count)

    def through(self, window: Window, count: int | None = None) -> Line:
        """Return the axis after a convolution or pooling (of `count` cells, if given).

        Raises TooLargeError.
        """
        begin, _ = window.padding(self.size)
        cells = window.count(self.size) if count is None else count
        if cells * window.kernel > _MOST:
            raise TooLargeError(
                f"has {cells} windows of {window.kernel} cells along one axis, more than can be "
                "followed"
            )
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
