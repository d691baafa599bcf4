"""Draw a map of scores over the picture that it was made from. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphpass.dense.heatmap import Cell, Scores
from graphpass.errors import OutputError, UsageError
from graphpass.ir.weight import Array
from graphpass.wording import visible

_DPI = 100
_COLORS = "inferno"
_STRONGEST = 0.8  # how much of the picture the strongest cell may hide
_LEAST_PIXELS = 640  # smaller pictures are drawn larger, each pixel as so many
_LEAST_LABELLED = 150  # pixels: in smaller overlays labels would hide what they name
_FRAME = (0.9, 0.6)  # inches: right of the picture for the bar, above it for the title


@dataclass(frozen=True)
class Drawing:
    """What is drawn: the map of the class `index`, called `label`, and boxes around `cells`."""

    scores: Scores
    index: int
    label: str
    cells: Sequence[Cell]
    title: str = ""

    def write(self, target: Path, *, overlay_only: bool = False) -> None:
        """Write a PNG: the picture in full resolution under the map, with boxes, title and bar.

        `overlay_only`: only map and boxes, transparent, each pixel as in the picture.
        """
        figure = self._overlay() if overlay_only else self._framed()
        try:
            figure.savefig(target, format="png", dpi=_DPI, transparent=overlay_only)
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror}") from None

    def _overlay(self) -> Any:
        height, width = self.scores.pixels.shape[:2]
        figure = _figure(width / _DPI, height / _DPI)
        self._draw_map(figure.add_axes((0, 0, 1, 1)), 1)
        return figure

    def _framed(self) -> Any:
        height, width = self.scores.pixels.shape[:2]
        each = max(1, math.ceil(_LEAST_PIXELS / max(height, width)))
        wide, high = each * width / _DPI, each * height / _DPI
        right, above = _FRAME
        figure = _figure(wide + right, high + above)
        whole, tall = wide + right, high + above
        axes = figure.add_axes((0, 0, wide / whole, high / tall))
        pixels = self.scores.pixels
        grey = pixels.shape[2] == 1
        axes.imshow(pixels[:, :, 0] if grey else pixels, cmap="gray", interpolation="nearest")
        self._draw_map(axes, each)
        inset = 0.1 / tall  # room for the numbers at the ends of the bar
        place = ((wide + 0.12) / whole, inset, 0.18 / whole, high / tall - 2 * inset)
        bar = figure.add_axes(place)
        figure.colorbar(_scale(self.scores, self.index), cax=bar)
        bar.tick_params(labelsize=9)
        title = visible(self.title)
        size = min(13.0, 1.7 * 72 * whole / max(1, len(title)))
        figure.text(0.1 / whole, 1 - above / 2 / tall, title, va="center", size=size)
        return figure

    def _draw_map(self, axes: Any, each: int) -> None:
        from matplotlib.patches import Rectangle
        from matplotlib.patheffects import withStroke

        height, width = self.scores.pixels.shape[:2]
        axes.imshow(_colors(self.scores, self.index), interpolation="bilinear")
        shown = each * min(height, width)
        size = min(15.0, max(7.0, shown / 40)) * 72 / _DPI
        line = max(1.0, shown / 350)
        for rank, cell in reversed(list(enumerate(self.cells))):
            left, upper, right, lower = cell.box
            corner, extent = (left - 0.5, upper - 0.5), (right - left, lower - upper)
            box = Rectangle(corner, *extent, fill=False, edgecolor="white", clip_on=True)
            box.set_linewidth(line * (1.6 if rank == 0 else 1.0))
            box.set_path_effects([withStroke(linewidth=3 * line, foreground="black")])
            axes.add_patch(box)
            if shown < _LEAST_LABELLED:
                continue
            above = upper * each > 2 * size
            axes.text(
                left - 0.5 if above else left + 2 / each,
                upper - 0.5 - line / each if above else upper + 2 / each,
                visible(f"{self.label} {said(cell.score)}"),
                color="white",
                size=size,
                va="bottom" if above else "top",
                clip_on=True,
                bbox={"facecolor": "black", "alpha": 0.7, "edgecolor": "none", "pad": 1.5},
            )
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="auto")
        axes.set_axis_off()


def said(score: float) -> str:
    """Write a score for people."""
    return f"{score:.2f}" if 0.005 <= abs(score) < 100 else f"{score:.2g}"


def _figure(width_inches: float, height_inches: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("drawing needs matplotlib: pip install 'graphpass[image]'") from None
    figure = Figure(figsize=(width_inches, height_inches), dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def _scale(scores: Scores, index: int) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(*scores.limits(index)), _COLORS)


def _colors(scores: Scores, index: int) -> Array:
    """Return the map as colours [height, width, 4], each as opaque as its score is high."""
    values, fade = _over_pixels(scores, index)
    mapped = _scale(scores, index)
    strength = mapped.norm(values)
    colors: Array = mapped.cmap(strength).astype(np.float32)
    colors[:, :, 3] = np.clip(strength, 0, 1) * fade * _STRONGEST
    return colors


def _over_pixels(scores: Scores, index: int) -> tuple[Array, Array]:
    """Return the score at each pixel, and 1 where cells lie, less and less towards the edges."""
    values = scores.values[:, :, index].astype(np.float32)
    places, fades = [], []
    for axis in (0, 1):
        pixels = np.arange(scores.pixels.shape[axis], dtype=np.float32)
        cells, stride = values.shape[axis], scores.stride[axis]
        at = (pixels + 0.5 - scores.center[axis]) / stride
        places.append(np.clip(at, 0, cells - 1))
        # a cell answers for half a stride around it; from there on to the edge nothing does
        beyond = np.maximum(np.maximum(-0.5 - at, at - (cells - 0.5)), 0)
        edges = (beyond[: len(beyond) // 2].max(initial=0), beyond.max(initial=0))
        width = np.where(at < 0, edges[0], edges[1])
        fades.append(1 - beyond / np.maximum(width, 1e-6))
    rows = _between(values, places[0])
    return _between(rows.T, places[1]).T, np.outer(fades[0], fades[1])


def _between(values: Array, places: Array) -> Array:
    """Interpolate along the first axis."""
    below = np.floor(places).astype(int)
    above = np.minimum(below + 1, len(values) - 1)
    share = (places - below)[:, None]
    result: Array = values[below] * (1 - share) + values[above] * share
    return result
